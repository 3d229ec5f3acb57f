"""The running server: streams come and go, frames travel, the worker lives or is brought back.

Implements `delivery.ports.RuntimePort` and `metrics.MetricsSource`.

Everything here runs on one event loop; what would block it (SQLite, image decoding, process starts that wait) runs in
threads or processes. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from server import media
from server.batching.dispatcher import Dispatcher
from server.batching.scheduler import Scheduler
from server.delivery.hub import Hub
from server.delivery.ports import (
    InvalidField,
    NoCapacity,
    NoPicture,
    StreamExists,
    StreamNotFound,
)
from server.detect import SLOTS as DETECT_SLOTS
from server.detect import DetectDesk
from server.inference.client import Worker
from server.inference.protocol import Done, Hello
from server.ingest.supervisor import Camera, ProbeResult, probe
from server.ingest.wire import CameraSettings, EncodeRequest
from server.metrics import Metrics, StreamCounters
from server.results import Detection
from server.settings import ServerSettings
from server.shm import Arena, slot_bytes
from server.store import Store
from server.stream import SLOTS, Defaults, House, Model, Stream, class_thresholds
from server.streams import StreamDefinition, StreamPatch
from yolov9.bundle import Bundle
from yolov9.geometry import input_shape

log = logging.getLogger("yolov9.runtime")

_DRAIN_S = 4.0
"""Of the 5 s that a SIGTERM grants: frames in the house are answered within it, then it closes."""
_IN_ENGINE_S = 1.0
"""How long a stream that goes waits for its frames in the engine."""
_SNAPSHOT_TRIES = 3
_NO_ANSWER_S = 10.0
"""Frames wait and none has been answered for so long: not ready."""


@dataclass(slots=True)
class Readiness:
    """Why the server is ready or not, from facts that change."""

    worker_ready: bool
    worker_reason: str
    failing_s: float | None
    unanswered_s: float

    def verdict(self) -> tuple[bool, str]:
        if not self.worker_ready:
            return False, self.worker_reason
        if self.failing_s is not None:
            return False, f"inference has been failing for {self.failing_s:.1f} s"
        if self.unanswered_s > _NO_ANSWER_S:
            return False, f"frames wait and none has been answered for {self.unanswered_s:.1f} s"
        return True, "model loaded, inference works"


class Runtime:
    """`start`, use, `stop`. `worker_factory` and `camera_factory` are replaced in tests."""

    def __init__(
        self,
        settings: ServerSettings,
        bundle: Bundle,
        store: Store,
        *,
        metrics: Metrics,
        worker_factory: Callable[..., Worker],
        camera_factory: Callable[..., Camera] = Camera,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._store = store
        self.metrics = metrics
        self._make_worker = worker_factory
        self._make_camera = camera_factory
        self._clock = clock
        self._wall_clock = wall_clock
        self._streams: dict[str, Stream] = {}
        self._adding: set[str] = set()
        self._model = Model(bundle.name, 1, bundle.names, bundle.input_size)
        self._hello: Hello | None = None  # what the worker said of itself
        self._arenas = itertools.count(1)
        self._requests = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.hub = Hub(settings.websocket_queue_messages, settings.websocket_queue_bytes, metrics=metrics, clock=clock)

    # Life.

    async def start(self) -> None:
        """Start the worker and the streams of the store; returns without waiting for either."""
        loop = asyncio.get_running_loop()
        self._worker = self._make_worker(
            on_done=self._on_done, on_prepared=self._on_prepared, on_up=self._on_up, on_down=self._on_down
        )
        scheduler = Scheduler(max_batch=1, max_delay_s=self._settings.max_delay_ms / 1e3)
        self.dispatcher = Dispatcher(
            scheduler, self._worker, clock=self._clock, loop=loop, on_batch=self.metrics.observe_batch
        )
        self._worker.start()
        arena_id = next(self._arenas)
        self._desk_arena = Arena.create("yolov9-detect", DETECT_SLOTS, slot_bytes(self._model.input_size))
        self._worker.attach(arena_id, self._desk_arena)
        self._desk = DetectDesk(self.dispatcher, self._desk_arena, arena_id, lambda: self._model, self._clock)
        self.metrics.bind(self)
        settings = self._settings
        defaults = Defaults(settings.confidence, settings.iou, settings.max_staleness_ms)
        self._house = House(
            self.dispatcher, self.hub, self.metrics, lambda: self._model, defaults, self._clock, self._wall_clock
        )
        for definition in await self._store.load():
            try:
                self._open(definition, self._check(definition))
            except (InvalidField, NoCapacity, OSError) as error:
                log.error("stream=%s not restored: %s", definition.id, error, extra={"stream": definition.id})
        self._spawn(self._tick())

    async def stop(self) -> None:
        """No new frames; what is in the house is answered, within the drain time; ledgers are closed and logged."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(self._drain(stream) for stream in list(self._streams.values())))
        await self._worker.stop()
        self.dispatcher.close()
        self._desk_arena.close()
        await self._store.close()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            for stream in self._streams.values():
                stream.tick()
            await asyncio.sleep(1.0)

    # Streams.

    @property
    def streams(self) -> Mapping[str, Stream]:
        return self._streams

    async def add_stream(self, definition: StreamDefinition) -> Stream:
        if definition.id in self._streams or definition.id in self._adding:
            raise StreamExists(f"stream {definition.id!r} exists already")
        address = self._check(definition)
        self._adding.add(definition.id)
        try:
            await self._store.put(definition)
            try:
                return self._open(definition, address)
            except BaseException:
                await self._store.delete(definition.id)
                raise
        except OSError as error:
            raise NoCapacity(f"no memory or descriptors for another stream: {error.strerror}") from error
        finally:
            self._adding.discard(definition.id)

    async def update_stream(self, stream_id: str, patch: StreamPatch) -> Stream:
        async with self._changing(stream_id) as stream:
            try:
                definition = stream.definition.patched(patch)
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                raise InvalidField(".".join(map(str, first["loc"])) or "url", first["msg"]) from None
            address = self._check(definition)
            await self._store.put(definition)
            stream.define(definition)
            stream.camera.apply(self._camera_settings(definition, address))
            return stream

    async def remove_stream(self, stream_id: str) -> None:
        async with self._changing(stream_id) as stream:
            await self._store.delete(stream_id)
            await self._close(stream)

    @asynccontextmanager
    async def _changing(self, stream_id: str) -> AsyncIterator[Stream]:
        """The stream, for one who changes it alone. StreamNotFound, also if it went while others were waited for."""
        stream = self._get(stream_id)
        async with stream.changing:
            if self._streams.get(stream_id) is not stream:
                raise self._missing(stream_id)
            yield stream

    async def _drain(self, stream: Stream) -> None:
        """The end of the server: the stream's frames are still answered."""
        async with stream.changing:
            if stream.id in self._streams:
                await self._close(stream, _DRAIN_S / 2)

    async def probe(self, definition: StreamDefinition) -> ProbeResult:
        """Open the source in a process of its own, say what it is, keep nothing."""
        settings = self._camera_settings(definition, self._check(definition))
        result = await probe(settings, self._settings.open_timeout_s + 3.0)
        result.capacity = self._has_room(result.width or 1280, result.height or 720, result.fps or 25.0)
        return result

    def _get(self, stream_id: str) -> Stream:
        try:
            return self._streams[stream_id]
        except KeyError:
            raise self._missing(stream_id) from None

    @staticmethod
    def _missing(stream_id: str) -> StreamNotFound:
        return StreamNotFound(f"there is no stream {stream_id!r}")

    def _check(self, definition: StreamDefinition) -> str:
        """What only the running server can judge: the address, the classes, the room. Returns the address to open."""
        try:
            address = media.resolve(definition.url, self._settings.media)
        except media.BadAddress as error:
            raise InvalidField("url", str(error)) from None
        if (definition.every_frame or definition.loop) and not media.is_file(address):
            name = "every_frame" if definition.every_frame else "loop"
            raise InvalidField(name, "is for files only; a live camera cannot wait")
        try:
            class_thresholds(
                self._model.names, self._settings.confidence, definition.classes, definition.class_confidence
            )
        except ValueError as error:
            where, _, why = str(error).partition(": ")
            raise InvalidField(where, why) from None
        count = len(self._streams) + len(self._adding)
        if definition.id not in self._streams and count >= self._settings.max_streams:
            raise NoCapacity(f"the server serves {self._settings.max_streams} streams at most (max_streams)")
        return address

    def _open(self, definition: StreamDefinition, address: str) -> Stream:
        arena_id = next(self._arenas)
        stream = Stream(definition, arena_id, self._house)
        try:
            stream.camera = self._make_camera(
                self._camera_settings(definition, address), slots=SLOTS, on_events=stream.on_events,
                on_state=stream.on_state, on_lost=stream.on_lost, clock=self._clock,
            )  # fmt: skip
        except BaseException:
            self.dispatcher.remove(definition.id)
            raise
        self._worker.attach(arena_id, stream.camera.arena)
        self._streams[definition.id] = stream
        self.hub.publish(stream.state_message())
        stream.camera.start(1)
        return stream

    async def _close(self, stream: Stream, drain_s: float = 0.0) -> None:
        """Stop the camera, give its frames `drain_s` to be answered, take the waiting ones back, close the ledger."""
        await stream.camera.stop(_DRAIN_S / 2)
        if drain_s and self._worker.ready:
            await stream.emptied(drain_s)
        stream.closing = True
        self.dispatcher.remove(stream.id)
        await stream.emptied(_IN_ENGINE_S)
        stream.ledger_entries.drop_all("inference", "stopped")
        self._worker.detach(stream.arena)
        stream.camera.arena.close()
        self._streams.pop(stream.id, None)
        self.metrics.forget(stream.id)
        self.hub.close_stream(stream.id)
        log.info("stream=%s closed ledger=%s", stream.id, stream.ledger_entries.snapshot(), extra={"stream": stream.id})

    def _camera_settings(self, definition: StreamDefinition, address: str) -> CameraSettings:
        settings = self._settings
        secret = definition.password
        return CameraSettings(
            stream=definition.id,
            url=address,
            username=definition.username,
            password=None if secret is None else secret.get_secret_value(),
            transport=definition.transport or "auto",
            rtsp_client=definition.rtsp_client or "native",
            max_fps=definition.max_fps,
            loop=bool(definition.loop),
            every_frame=bool(definition.every_frame),
            realtime=definition.realtime if definition.realtime is not None else not definition.every_frame,
            input_size=self._model.input_size,
            open_timeout_s=settings.open_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            backoff_initial_s=settings.backoff_initial_s,
            backoff_max_s=settings.backoff_max_s,
        )

    # Pictures.

    async def snapshot(
        self, stream_id: str, *, annotate: bool = False, max_width: int | None = None, quality: int = 85
    ) -> bytes:
        stream = self._get(stream_id)
        # The camera keeps the newest detected frame; under way to it, a newer one may take its place.
        for _ in range(_SNAPSHOT_TRIES):
            boxes: list[tuple[float, float, float, float, str]] = []
            seq = None
            if annotate:
                last = next((r for r in stream.recent(10) if r["status"] == "ok"), None)
                if last is None:
                    raise NoPicture(f"stream {stream_id!r} has no detected frame yet")
                seq, boxes = last["seq"], [_box(d) for d in last["detections"]]
            request = EncodeRequest(id=next(self._requests), seq=seq, boxes=boxes, quality=quality, max_width=max_width)
            try:
                jpeg = await stream.camera.encode(request)
            except (TimeoutError, ConnectionError):
                break
            if jpeg:
                return jpeg
        raise NoPicture(f"stream {stream_id!r} has no picture now (state {stream.state})")

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: list[str] | None = None,
    ) -> tuple[int, int, list[Detection], dict[str, float]]:
        lowest = self._settings.confidence if confidence is None else confidence
        try:
            thresholds = class_thresholds(self._model.names, lowest, classes)
        except ValueError as error:
            raise InvalidField("classes", str(error).partition(": ")[2]) from None
        return await self._desk.detect(
            image,
            lowest,
            self._settings.iou if iou is None else iou,
            None if thresholds is None else thresholds.tobytes(),
        )

    # The engine.

    def _on_up(self, hello: Hello) -> None:
        self._hello = hello
        log.info("engine=%s precision=%s device=%s %s", hello.engine, hello.precision, hello.device, hello.why)
        self.dispatcher.on_up(hello)

    def _on_down(self, reason: str) -> None:  # the worker has logged it
        self.dispatcher.on_down()

    def _on_prepared(self, height: int, width: int, error: str | None) -> None:
        if error is not None:
            log.error("shape %dx%d could not be prepared: %s", width, height, error)
        self.dispatcher.on_prepared(height, width, error)

    def _on_done(self, done: Done, reason: str | None) -> None:
        self.dispatcher.on_done(done, reason)

    @property
    def ready(self) -> bool:
        return self._worker.ready

    def readiness(self) -> tuple[bool, str]:
        failing = self.dispatcher.failing_since
        return Readiness(
            worker_ready=self._worker.ready,
            worker_reason=self._worker.reason,
            failing_s=None if failing is None else self._clock() - failing,
            unanswered_s=self.dispatcher.unanswered_s(),
        ).verdict()

    @property
    def queue_depth(self) -> int:
        return self.dispatcher.waiting

    def stream_counters(self) -> Mapping[str, StreamCounters]:
        return {stream.id: stream.counters() for stream in self._streams.values()}

    @property
    def model(self) -> Mapping[str, object]:
        hello, model = self._hello, self._model
        return {
            "name": model.name,
            "generation": model.generation,
            "engine": hello.engine if hello else None,
            "precision": hello.precision if hello else None,
            "device": hello.device if hello else None,
            "why": hello.why if hello else None,
            "upgrade": msgspec.to_builtins(self._worker.upgrade),
            "hash": self._bundle.hash,
            "input_size": model.input_size,
            "names": model.names,
        }

    def _has_room(self, width: int, height: int, fps: float) -> bool:
        """Whether the engine could detect every frame of the streams that run and of one more."""
        shape = input_shape(self._model.input_size, width, height)
        usual = self.dispatcher.usual_s(shape)
        if usual is None:
            return True  # nothing measured yet
        rates = sum(stream.rates()[0] or 0.0 for stream in self._streams.values())
        parallel = self._hello.parallel if self._hello else 1
        return (rates + fps) * usual <= parallel


def _box(detection: Detection) -> tuple[float, float, float, float, str]:
    x1, y1, x2, y2 = detection["box"]
    return x1, y1, x2, y2, f"{detection['class']} {detection['confidence']:.2f}"
