"""Live pictures of detected frames: each encoded once, however many look, and never while nobody does.

A feed follows the results of one stream. When a frame has its result, the camera's process, which still keeps it, is
asked for a JPEG, if a viewer is waiting for one. Nothing queues: a viewer that is still busy with the picture before
is not waiting, and gets the newest one when it asks again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

from server.delivery.hub import INTERNAL_ERROR, Closing
from server.delivery.pictures import Picture, Pictures
from server.delivery.ports import NoPicture, RuntimePort, StreamHandle, StreamNotFound, Unavailable
from server.results import Result

log = logging.getLogger("yolov9.delivery")

_RETRY_S = 0.5
"""The camera's process gave no picture of a frame, and no newer frame came: asked again after so long."""
_HEADER = struct.Struct("!Qd")
_FAILED = Closing(INTERNAL_ERROR, "the live view failed")


class View(NamedTuple):
    """What is looked at. Viewers of the same share every picture."""

    stream: str
    annotate: bool
    max_width: int | None
    quality: int


class LivePicture:
    """A detected frame as JPEG."""

    def __init__(self, seq: int, pts: float | None, jpeg: bytes) -> None:
        self.seq = seq
        self.jpeg = jpeg
        self._pts = float("nan") if pts is None else pts

    @cached_property
    def message(self) -> bytes:
        """`WS /streams/{id}/live`: u64 seq and f64 PTS in seconds (NaN: unknown), both big-endian, then the JPEG."""
        return _HEADER.pack(self.seq, self._pts) + self.jpeg

    @cached_property
    def frame(self) -> bytes:
        """The message as a WebSocket frame from a server: not masked, so it serves every viewer (RFC 6455, 5.2)."""
        length = len(self.message)
        if length < 1 << 16:
            return struct.pack("!BBH", 0x82, 126, length) + self.message
        return struct.pack("!BBQ", 0x82, 127, length) + self.message


class Viewer:
    """One who looks. `take(picture)` and `end()` are set by whoever sends, and are called on the event loop."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self.waiting = False
        self.seen: int | None = None
        """`seq` of the picture it got last."""
        self.closing: Closing | None = None
        self.take: Callable[[LivePicture], None] = lambda picture: None
        self.end: Callable[[], None] = lambda: None

    def want(self) -> None:
        """Give me a picture that I have not seen, once, as soon as there is one."""
        self.waiting = True
        self._feed.turn.set()

    async def next(self) -> LivePicture | None:
        """The next picture; None if the feed has ended. For a viewer without callbacks of its own."""
        if self.closing is not None:
            return None
        answer: asyncio.Future[LivePicture | None] = asyncio.get_running_loop().create_future()
        self.take = lambda picture: None if answer.done() else answer.set_result(picture)
        self.end = lambda: None if answer.done() else answer.set_result(None)
        self.want()
        try:
            return await answer
        finally:
            self.waiting = False

    def give(self, picture: LivePicture) -> None:
        """For the feed."""
        self.waiting, self.seen = False, picture.seq
        self.take(picture)

    def close(self, closing: Closing) -> None:
        """For the feed."""
        self.closing = closing
        self.end()


class Feeds:
    """One for each application."""

    def __init__(self, runtime: RuntimePort, pictures: Pictures) -> None:
        self._runtime = runtime
        self._pictures = pictures
        self._feeds: dict[View, _Feed] = {}

    @contextmanager
    def watch(self, view: View) -> Iterator[Viewer]:
        """A viewer of a stream that exists (else StreamNotFound). The feed ends with its last viewer."""
        feed = self._feeds.get(view)
        if feed is None:
            handle = self._runtime.streams.get(view.stream)
            if handle is None:
                raise StreamNotFound(f"There is no stream {view.stream!r}.")
            feed = self._feeds[view] = _Feed(view, handle, self._runtime, self._pictures, self._ended)
        viewer = Viewer(feed)
        feed.viewers[viewer] = None
        try:
            yield viewer
        finally:
            del feed.viewers[viewer]
            if not feed.viewers:
                feed.task.cancel()
                self._ended(feed)

    def _ended(self, feed: _Feed) -> None:
        if self._feeds.get(feed.view) is feed:
            del self._feeds[feed.view]


class _Feed:
    """Follows one stream for all viewers of one view."""

    def __init__(
        self,
        view: View,
        handle: StreamHandle,
        runtime: RuntimePort,
        pictures: Pictures,
        on_end: Callable[[_Feed], None],
    ) -> None:
        self.view = view
        self.viewers: dict[Viewer, None] = {}  # an ordered set
        self.turn = asyncio.Event()
        """There may be something to do: a result, or a viewer that waits."""
        self._handle = handle
        self._hub = runtime.hub
        self._pictures = pictures
        self._on_end = on_end
        self._latest: LivePicture | None = None
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        closing = _FAILED
        subscriber = self._hub.subscribe(streams=frozenset((self.view.stream,)), bound=True)

        def heard() -> None:
            while subscriber.pop() is not None:
                pass  # only that something came counts: the newest result is asked for
            self.turn.set()

        subscriber.wake = heard
        heard()
        try:
            while subscriber.closing is None:
                await self.turn.wait()
                self.turn.clear()
                await self._serve()
            closing = subscriber.closing
        except Exception:  # its viewers are told, and nobody else has a part in it
            log.exception("stream=%s a live view failed", self.view.stream, extra={"stream": self.view.stream})
        finally:
            self._hub.unsubscribe(subscriber)
            self._on_end(self)
            for viewer in list(self.viewers):
                viewer.close(closing)

    async def _serve(self) -> None:
        """The newest detected frame, for those who wait and have not seen it."""
        newest = self._newest()
        if newest is None or not self._waiting(newest["seq"]):
            return
        latest = self._latest
        if latest is None or latest.seq != newest["seq"]:
            view = self.view
            picture = Picture(view.stream, view.annotate, view.max_width, view.quality, newest["seq"])
            try:
                jpeg = await self._pictures.get(picture)
            except StreamNotFound:
                return  # the hub says so, too
            except (NoPicture, Unavailable):
                asyncio.get_running_loop().call_later(_RETRY_S, self.turn.set)
                return
            latest = self._latest = LivePicture(newest["seq"], newest["pts"], jpeg)
        for viewer in self._waiting(latest.seq):
            viewer.give(latest)

    def _newest(self) -> Result | None:
        """A frame whose inference failed is not kept by the camera's process."""
        return next((result for result in self._handle.recent(10) if result["status"] == "ok"), None)

    def _waiting(self, seq: int) -> list[Viewer]:
        return [viewer for viewer in self.viewers if viewer.waiting and viewer.seen != seq]
