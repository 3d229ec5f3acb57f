"""A faster engine that is built while another one serves: the thread that waits for it, and what is told meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from server.inference import protocol
from server.inference.loading import Upgrade, describe

log = logging.getLogger("yolov9.inference")

_TOLD_AT = 0.05
"""The server is told of the progress in steps of this size."""


class Building:
    """`say` sends a reply to the server; `on_built` is called from the thread, once, if it succeeds."""

    def __init__(self, upgrade: Upgrade, say: Callable[[protocol.Reply], None], on_built: Callable[[], None]) -> None:
        self._upgrade = upgrade
        self._say = say
        self._on_built = on_built
        self._told = 0.0
        self._cancelled = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="upgrade", daemon=True).start()

    def cancel(self) -> None:
        """Nothing is told any more. The builder ends by itself."""
        self._cancelled.set()

    def failed(self, error: Exception) -> None:
        """It has been built and does not work, or could not be built: the engine that serves goes on."""
        name = f"{self._upgrade.engine} {self._upgrade.precision}"
        log.error("upgrade engine=%s state=failed %s", name, describe(error), exc_info=error)
        self._tell("failed", self._told, describe(error))

    def _run(self) -> None:
        upgrade, began = self._upgrade, time.monotonic()
        name = f"{upgrade.engine} {upgrade.precision}"
        log.info("upgrade engine=%s state=building", name)
        self._tell("building", 0.0, "")
        try:
            upgrade.build(self._progress, self._cancelled)
        except Exception as error:  # whatever it is, it costs the upgrade only
            if not self._cancelled.is_set():
                self.failed(error)
            return
        log.info("upgrade engine=%s state=built seconds=%.1f", name, time.monotonic() - began)
        self._on_built()

    def _progress(self, share: float, what: str) -> None:
        if share >= self._told + _TOLD_AT and not self._cancelled.is_set():
            self._told = share
            self._tell("building", share, what)

    def _tell(self, state: str, progress: float, detail: str) -> None:
        self._say(protocol.Upgrade(self._upgrade.engine, self._upgrade.precision, state, progress, detail))
