"""What of the server works, one check a part: behind `/readyz` and its metrics. Only looks at what is known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from server.store import StoreError

log = logging.getLogger("yolov9.server")

STORE_CHECK_S = 10.0


class Check(NamedTuple):
    name: str
    """model, inference or store"""
    ok: bool
    detail: str
    required: bool
    """Without it the server is not ready. Detection goes on while the data base is out of order, and while cameras are
    down: taking the server out of service would mend neither."""


class StoreWatch:
    """Tries the data base every STORE_CHECK_S, and says once when it fails and when it works again."""

    def __init__(self, attempt: Callable[[], Awaitable[None]]) -> None:
        self._attempt = attempt
        self.fault: str | None = None

    async def run(self) -> None:
        """Endless."""
        while True:
            await self.look()
            await asyncio.sleep(STORE_CHECK_S)

    async def look(self) -> None:
        try:
            await self._attempt()
        except StoreError as error:
            if self.fault is None:
                log.error("store state=failing %s", error.detail)
            self.fault = error.detail
        else:
            if self.fault is not None:
                log.info("store state=working")
            self.fault = None

    @property
    def check(self) -> Check:
        detail = "changes are kept" if self.fault is None else "changes of streams and models cannot be kept"
        return Check("store", self.fault is None, detail, required=False)
