"""Tasks that are to run as long as the server does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("yolov9.runtime")

PAUSE_S = 10.0


async def kept_running(
    name: str, run: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Until cancelled. An error that nobody foresaw is logged and costs PAUSE_S, not the rest of the server's life."""
    while True:
        try:
            await run()
            log.error("task=%s ended; it begins anew in %.0f s", name, PAUSE_S)
        except Exception:
            log.exception("task=%s failed; it begins anew in %.0f s", name, PAUSE_S)
        await sleep(PAUSE_S)
