"""What the routes share. One for each application, at `app.state.context`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from server.access.registry import Access
from server.delivery.feeds import Feeds
from server.delivery.pictures import Pictures
from server.delivery.ports import NoCapacity, RuntimePort, StreamHandle, StreamNotFound
from server.reload import Reloader
from server.settings import ServerSettings

DETECTS_AT_ONCE = 8
"""Images of `POST /detect` in memory at once, 32 MB each at most; others wait in their sockets."""
DRY_RUNS_AT_ONCE = 4


class Context:
    """Runtime, settings, and what is limited for all clients together."""

    def __init__(
        self, runtime: RuntimePort, settings: ServerSettings, access: Access, reloader: Reloader | None = None
    ) -> None:
        self.runtime = runtime
        self.settings = settings
        self.access = access
        self.reloader = reloader or Reloader(settings, lambda: settings)
        self.pictures = Pictures(runtime)
        self.feeds = Feeds(runtime, self.pictures)
        self.stopping = asyncio.Event()
        """Set when the server ends: endless answers end."""
        self.detects = asyncio.Semaphore(DETECTS_AT_ONCE)
        self.dry_runs = asyncio.Semaphore(DRY_RUNS_AT_ONCE)
        self._clients = 0
        self._alone = asyncio.Event()
        self._alone.set()

    def stream(self, stream_id: str) -> StreamHandle:
        """StreamNotFound if there is none."""
        handle = self.runtime.streams.get(stream_id)
        if handle is None:
            raise StreamNotFound(f"There is no stream {stream_id!r}.")
        return handle

    def check_room(self) -> None:
        """NoCapacity if there are too many subscribers already."""
        if self._clients >= self.settings.max_clients:
            raise NoCapacity(f"There are {self._clients} subscribers already (max_clients).", retry_after_s=5)

    @contextmanager
    def client(self, kind: str) -> Iterator[None]:
        """Counts a subscriber (websocket, sse, mjpeg, live) while it is there."""
        self._clients += 1
        self._alone.clear()
        self.runtime.metrics.client_changed(kind, 1)
        try:
            yield
        finally:
            self._clients -= 1
            if not self._clients:
                self._alone.set()
            self.runtime.metrics.client_changed(kind, -1)

    async def alone(self, timeout_s: float) -> None:
        """Wait until the last subscriber has gone, so long at most."""
        try:
            await asyncio.wait_for(self._alone.wait(), timeout_s)
        except TimeoutError:
            pass

    def stop(self) -> None:
        """End all subscriptions and endless answers. Each is told why on its own way out: see `alone`."""
        self.stopping.set()
        self.runtime.hub.close()
        self.runtime.journal.feed.close()


async def context_of(connection: HTTPConnection) -> Context:
    """A coroutine, since FastAPI would run a plain function in a thread."""
    context: Context = connection.app.state.context
    return context


InContext = Annotated[Context, Depends(context_of)]
