"""An answer without an end: Server-Sent Events, MJPEG. It ends with its content or with its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_REST_S = 0.5
"""When the server ends, a client has so long to take what is still to be sent."""


class LiveResponse(StreamingResponse):
    """Waits for the client's departure also while there is nothing to send, and always runs the content's `finally`.

    The content ends by itself once `stopping` is set; a client that does not take the rest is not waited for.
    """

    def __init__(
        self, content: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str], stopping: asyncio.Event
    ) -> None:
        super().__init__(content, 200, headers, media_type)
        self._content = content
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.create_task(self._send_all(send)),
            asyncio.create_task(self.listen_for_disconnect(receive)),
            asyncio.create_task(self._late()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, OSError):  # OSError: the client went away
                raise result

    async def _late(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(_REST_S)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._content):
            await self.stream_response(send)
