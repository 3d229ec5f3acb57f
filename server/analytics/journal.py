"""What happens in front of all cameras, as it happens: to the store, to those who listen, to the metrics.

The server's one place for events. Streams report each frame; what follows from it is told at once over `feed` and put
into the store. Whoever must miss nothing follows the store (`follow`), everybody else subscribes to `feed`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from server.analytics.analyst import Analyst, Observation
from server.analytics.event_store import EventStore
from server.analytics.lives import Lives, Wanted
from server.ingest.wire import EncodeRequest
from server.results import EventMessage, Result

if TYPE_CHECKING:
    from server.delivery.hub import Hub
    from server.metrics import Metrics

log = logging.getLogger("yolov9.events")

Encode = Callable[[EncodeRequest], Awaitable[bytes]]
"""Asks a camera's process for a JPEG; b"" if it has the frame no more. TimeoutError, ConnectionError."""

_PICTURES_AT_ONCE = 8
"""Asked for and not there yet, of all streams."""
_WIDTH = 480
"""Pixels of an event's picture, at most."""
_QUALITY = 80
_PAGE = 200


class Journal:
    def __init__(self, store: EventStore, feed: Hub, metrics: Metrics) -> None:
        self.store = store
        self.feed = feed
        self._metrics = metrics
        self._number = itertools.count(store.last_number + 1)
        self._events = itertools.count()
        self._lives: dict[str, Lives] = {}
        self._pictures: set[asyncio.Task[None]] = set()
        self._requests = itertools.count(1 << 31)  # apart from those of snapshots

    def observe(self, stream: str, result: Result, unix: float, observation: Observation, encode: Encode) -> None:
        """A frame of `stream` that was received at `unix`. `encode`: of its camera. Never raises, never waits."""
        messages, wanted = self._lives_of(stream).observe(result, unix, observation)
        self._tell(messages)
        if wanted is not None and len(self._pictures) < _PICTURES_AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._take_picture(stream, wanted, encode))
            self._pictures.add(task)
            task.add_done_callback(self._pictures.discard)

    def idle(self, stream: str, analyst: Analyst, now: float, unix: float) -> None:
        """No frame of `stream` came for a while: tracks may have ended. `now` is monotonic, `unix` the same instant."""
        observation = analyst.idle(now)
        if observation is not None:
            self._tell(self._lives_of(stream).end(observation.ended, unix - observation.now))

    def close_stream(self, stream: str, analyst: Analyst, now: float, unix: float) -> None:
        """The stream is gone, and what was seen by it."""
        behind = unix - analyst.time_at(now)
        self._tell(self._lives_of(stream).end(analyst.close(), behind))
        self._lives.pop(stream, None)

    async def follow(self, name: str) -> AsyncIterator[EventMessage]:
        """Every message once it is on disk, from where `name` stopped, over restarts: at least once. Endless.

        A message counts as done with when the next one is asked for; one who begins gets what comes from now on.
        """
        done = await self.store.cursor(name)
        if done is None:
            done = self.store.stored_number
            await self.store.move_cursor(name, done)
        while True:
            await self.store.beyond(done)
            messages = await self.store.changes(done, _PAGE)
            for message in messages:
                yield message
                done = message["id"]
                await self.store.move_cursor(name, done)
            if not messages:  # removed meanwhile, by age or by hand
                done = max(done, self.store.stored_number)

    async def close(self) -> None:
        """After the last stream. What waits is written."""
        for task in self._pictures:
            task.cancel()
        await asyncio.gather(*self._pictures, return_exceptions=True)
        self.feed.close()
        await self.store.close()

    def _lives_of(self, stream: str) -> Lives:
        lives = self._lives.get(stream)
        if lives is None:
            lives = self._lives[stream] = Lives(stream, self._new_event_id, lambda: next(self._number))
        return lives

    def _new_event_id(self, unix: float) -> str:
        """Sorts by time; unique over streams and restarts, as no two events begin in one millisecond at one count."""
        return f"{int(unix * 1e3):012x}{next(self._events) % (1 << 20):05x}"

    def _tell(self, messages: list[EventMessage]) -> None:
        for message in messages:
            self._metrics.count_event(message["stream"], message["kind"])
            self.store.put(message)
            self.feed.publish(message)

    async def _take_picture(self, stream: str, wanted: Wanted, encode: Encode) -> None:
        request = EncodeRequest(
            id=next(self._requests), seq=wanted.seq, crop=wanted.crop, quality=_QUALITY, max_width=_WIDTH
        )
        try:
            jpeg = await encode(request)
        except (TimeoutError, ConnectionError):
            return  # the next frame that is better will do
        lives = self._lives.get(stream)
        if not jpeg or lives is None:
            return
        message = lives.pictured(wanted)
        if message is not None:
            self.store.put_snapshot(wanted.event_id, jpeg)
            self._tell([message])
