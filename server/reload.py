"""Settings that change while the server runs: read anew by SIGHUP or `POST /settings/reload`, taken over or refused.

There is one ServerSettings object in the server, and only this module changes it. Rooms that read a setting when they
need it follow at once; what was copied is told through `apply`. A setting that is not in LIVE keeps its value until the
next start, and every reload says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from server import logs
from server.delivery.ports import ServerError
from server.settings import ServerSettings, SettingsError

log = logging.getLogger("yolov9.server")

MASK = "***"
LIVE = frozenset(
    {
        "confidence", "iou", "max_staleness_ms", "open_timeout_s", "read_timeout_s", "backoff_initial_s",
        "backoff_max_s", "media", "source_schemes", "allow_networks", "deny_networks", "max_streams", "max_clients",
        "websocket_queue_messages", "websocket_queue_bytes", "allowed_hosts", "allowed_origins", "swap_timeout_s",
        "swap_max_slowdown", "log_level", "log_format", "events_days", "events_max_mb",
    }
)  # fmt: skip
"""Settings that a reload takes over."""


class SettingsRefused(ServerError):
    """The settings cannot be used as they are now; the old ones go on."""

    status, code = 422, "settings_refused"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did."""

    changed: dict[str, Any] = field(default_factory=dict)
    """Taken over, with the new values."""
    restart: list[str] = field(default_factory=list)
    """Differ from what the server runs with, and are taken over at its next start."""


class Reloader:
    """`load` reads all sources of settings again (SettingsError); `apply` tells the rooms, on the event loop."""

    def __init__(
        self,
        settings: ServerSettings,
        load: Callable[[], ServerSettings],
        apply: Callable[[frozenset[str]], None] = lambda names: None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._apply = apply
        self._turn = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """SettingsRefused if they cannot be used; nothing has changed then."""
        async with self._turn:
            try:
                fresh = await asyncio.to_thread(self._load)
            except SettingsError as error:
                log.error("settings state=refused %s", error)
                raise SettingsRefused(str(error)) from None
            old = self._settings
            different = [n for n in ServerSettings.model_fields if getattr(fresh, n) != getattr(old, n)]
            changed = [name for name in different if name in LIVE]
            for name in changed:
                setattr(old, name, getattr(fresh, name))
            if not {"log_level", "log_format"}.isdisjoint(changed):
                logs.configure(old.log_level, old.log_format)
            self._apply(frozenset(changed))
            shown = shown_settings(old)
            done = Reloaded({name: shown[name] for name in changed}, [n for n in different if n not in LIVE])
            log.info("settings state=reloaded changed=%s restart=%s", done.changed, done.restart)
            return done


def shown_settings(settings: ServerSettings) -> dict[str, Any]:
    """All settings as plain JSON, secrets masked."""
    shown: dict[str, Any] = settings.model_dump(mode="json")
    for name in ServerSettings.model_fields:
        if isinstance(getattr(settings, name), SecretStr):
            shown[name] = MASK
    return shown


def ignore_hangup() -> None:
    """While the server starts: a reload that comes too early must not end it."""
    if not _at_a_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def on_hangup(reloader: Reloader) -> Iterator[None]:
    """SIGHUP reloads while this is open. In the event loop's thread.

    At a terminal the signal means that it was closed, and keeps its meaning.
    """
    loop = asyncio.get_running_loop()
    if _at_a_terminal():
        yield
        return
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with contextlib.suppress(SettingsRefused):  # it has been logged
            await reloader.reload()

    def start() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, start)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in tasks:
            task.cancel()


def _at_a_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:  # no standard input at all
        return False
