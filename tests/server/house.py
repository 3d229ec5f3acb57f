"""A running server with workers and cameras of our own making, for tests of the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from server.inference.protocol import Done, Hello, Infer
from server.ingest.wire import Event, EventKind
from server.metrics import Metrics
from server.runtime import Runtime
from server.settings import ServerSettings
from server.shm import Arena
from server.store import Store
from server.streams import StreamDefinition
from yolov9.geometry import input_shape


class FakeWorker:
    """Answers when told to, or at once if it is `obliging`."""

    def __init__(self, bundle: Any, **callbacks: Any) -> None:
        self.bundle = bundle
        self.on = SimpleNamespace(**callbacks)
        self.ready = False
        self.reason = "starting"
        self.upgrade = None
        self.sent: list[Infer] = []
        self.arenas: dict[int, Arena] = {}
        self.asked: list[tuple[int, int]] = []
        self.stopped = False
        self.obliging = False
        self.seconds = 0.01
        self.found = b""
        self.error: str | None = None

    def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped, self.ready = True, False

    def prepare(self, height: int, width: int) -> None:
        self.asked.append((height, width))
        if self.obliging:
            asyncio.get_running_loop().call_soon(self.on.on_prepared, height, width, None)

    def attach(self, arena_id: int, arena: Arena) -> None:
        self.arenas[arena_id] = arena

    def detach(self, arena_id: int) -> None:
        del self.arenas[arena_id]

    def infer(self, request: Infer) -> None:
        self.sent.append(request)
        if self.obliging:
            asyncio.get_running_loop().call_soon(self.answer, 0.0)

    def up(self) -> None:
        self.ready = True
        height, width = input_shape(self.bundle.input_size, 640, 384)
        self.on.on_up(Hello("fake", "fp32", "none", "test", 1, 1, height, width))

    def down(self, reason: str) -> None:
        self.ready = False
        self.on.on_down(reason)

    def answer(self, now: float) -> None:
        request = self.sent.pop(0)
        found = [] if self.error else [self.found] * len(request.frames)
        self.on.on_done(Done(request.id, now, now + self.seconds, now + self.seconds, found, self.error), None)


class FakeCamera:
    fails = False
    alive = True

    def __init__(self, settings: Any, *, on_events: Any, **more: Any) -> None:
        if self.fails:
            raise OSError(24, "Too many open files")
        self.settings = settings
        self.on_events = on_events
        self.input_size: int = settings.input_size
        self.arena = Arena.create("fake", 1, 4096)

    def start(self, next_seq: int) -> None: ...
    def drain(self) -> None: ...
    def free(self, slot: int, seq: int, completed: bool) -> None: ...

    def apply(self, settings: Any) -> None:
        self.settings = settings

    def resize(self, input_size: int) -> None:
        self.input_size = input_size

    async def stop(self, timeout_s: float) -> None:
        await asyncio.sleep(0.02)


class House:
    def __init__(self, path: Path, bundle: Any = None, **settings: Any) -> None:
        self.now = 1000.0
        self.store = Store(path / "s.sqlite")
        self.cameras = type("Cameras", (FakeCamera,), {})
        self.workers: list[FakeWorker] = []
        self.runtime = Runtime(
            ServerSettings(**{"max_streams": 3, "data": path, **settings}), bundle or tiny(), self.store,
            metrics=Metrics(), worker_factory=self._make_worker, camera_factory=self.cameras, clock=lambda: self.now,
            wall_clock=lambda: 1e9 + self.now,
        )  # fmt: skip

    def _make_worker(self, bundle: Any, **callbacks: Any) -> Any:
        self.workers.append(FakeWorker(bundle, **callbacks))
        return self.workers[-1]

    @property
    def worker(self) -> FakeWorker:
        worker: Any = self.runtime.engine.live.worker
        return worker  # type: ignore[no-any-return]

    async def add(self, stream_id: str = "door", **fields: Any) -> Any:
        return await self.runtime.add_stream(StreamDefinition(id=stream_id, url="rtsp://h/1", **fields))

    def frame(self, stream: Any, seq: int, input_size: int = 640) -> None:
        """A 640x384 picture, scaled for a model of this input size."""
        height, width = input_shape(input_size, 640, 384)
        stream.on_events(
            [
                Event(EventKind.OPEN, seq, arrived_at=self.now),
                Event(EventKind.READY, seq, source_width=640, source_height=384, input_width=width,
                      input_height=height, arrived_at=self.now, ready_at=self.now),
            ]
        )  # fmt: skip

    def beat(self, stream: Any, input_size: int) -> None:
        """The camera's process says for which size it scales."""
        stream.on_events([Event(EventKind.HEARTBEAT, arrived_at=self.now, input_width=input_size)])


def tiny() -> Any:
    return SimpleNamespace(path=Path("tiny"), name="tiny", names={0: "person", 1: "car"}, input_size=640, hash="0" * 12)


async def until(condition: Callable[[], Any]) -> None:
    """Some turns of the event loop later; AssertionError after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
