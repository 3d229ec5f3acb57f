"""JPEGs of streams, made once for all who ask for the same at the same time.

A camera's process encodes on request; ten viewers of one live view must not cost it ten encodings.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from server.delivery.ports import RuntimePort, Unavailable

_TIMEOUT_S = 5.0


class Picture(NamedTuple):
    """What is asked for."""

    stream: str
    annotate: bool
    max_width: int | None
    quality: int
    seq: int | None = None
    """A frame that the camera's process still keeps; None: the newest."""


class Pictures:
    def __init__(self, runtime: RuntimePort) -> None:
        self._runtime = runtime
        self._pending: dict[Picture, asyncio.Task[bytes]] = {}

    async def get(self, picture: Picture) -> bytes:
        """The frame as JPEG. NoPicture, StreamNotFound; Unavailable if the camera's process does not answer."""
        task = self._pending.get(picture)
        if task is None:
            task = self._pending[picture] = asyncio.create_task(self._take(picture))
            task.add_done_callback(lambda done: self._forget(picture, done))
        return await asyncio.shield(task)  # one that goes away takes nothing from the others

    async def _take(self, picture: Picture) -> bytes:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._runtime.snapshot(
                    picture.stream,
                    seq=picture.seq,
                    annotate=picture.annotate,
                    max_width=picture.max_width,
                    quality=picture.quality,
                )
        except TimeoutError:
            raise Unavailable("The camera's process gave no picture in time.", retry_after_s=1) from None

    def _forget(self, picture: Picture, task: asyncio.Task[bytes]) -> None:
        del self._pending[picture]
        if not task.cancelled():
            task.exception()  # seen, even if everybody who asked has gone
