"""The running server as delivery and metrics see it: the roster of streams, the engine room and the hub, as one.

Implements `delivery.ports.RuntimePort` and `metrics.MetricsSource`.

Everything here runs on one event loop; what would block it (SQLite, image decoding, process starts that wait) runs in
threads or processes. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from server.analytics.event_store import EventStore
from server.analytics.journal import Journal
from server.checks import Check, StoreWatch
from server.connect.mqtt import Mqtt
from server.connect.webhooks import Hook
from server.delivery.hub import Hub
from server.delivery.ports import NoPicture
from server.detect import Detected
from server.engine_room import EngineRoom
from server.ingest.supervisor import Camera, ProbeResult
from server.ingest.wire import EncodeRequest
from server.keeping import kept_running
from server.metrics import Metrics, StreamCounters
from server.models.deployment import WorkerFactory
from server.models.registry import Registry
from server.models.swap import Swapper
from server.results import Detection
from server.roster import Roster
from server.settings import ServerSettings
from server.store import Store
from server.stream import Stream
from server.streams import StreamDefinition, StreamPatch
from yolov9.bundle import Bundle

_SNAPSHOT_TRIES = 3
_DAY_S = 86_400


class Runtime:
    """`start`, use, `stop`. `worker_factory` and `camera_factory` are replaced in tests."""

    def __init__(
        self,
        settings: ServerSettings,
        bundle: Bundle,
        store: Store,
        *,
        metrics: Metrics,
        worker_factory: WorkerFactory,
        model_name: str | None = None,
        camera_factory: Callable[..., Camera] = Camera,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._store = store
        self._store_watch = StoreWatch(store.check)
        self.metrics = metrics
        self._make_camera = camera_factory
        self._clock = clock
        self._wall_clock = wall_clock
        self._requests = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.hub = Hub(settings.websocket_queue_messages, settings.websocket_queue_bytes, metrics=metrics, clock=clock)
        self.journal = Journal(
            EventStore(
                settings.data / "events.sqlite", metrics=metrics, max_age_s=settings.events_days * _DAY_S,
                max_bytes=settings.events_max_mb << 20, wall_clock=wall_clock,
            ),
            Hub(settings.websocket_queue_messages, settings.websocket_queue_bytes, metrics=metrics, clock=clock),
            metrics,
        )  # fmt: skip
        name = model_name or bundle.name
        self.engine = EngineRoom(settings, bundle, name, metrics=metrics, make_worker=worker_factory, clock=clock)
        max_bytes = settings.model_max_mb << 20
        self.registry = Registry(settings.data, settings.model_folders, max_bytes, bundle, name)

    # Life.

    async def start(self) -> None:
        """Start the worker and the streams of the store; returns without waiting for either."""
        self.engine.start()
        self.roster = Roster(
            self._settings, self._store, self.engine, hub=self.hub, journal=self.journal, metrics=self.metrics,
            make_camera=self._make_camera, clock=self._clock, wall_clock=self._wall_clock,
        )  # fmt: skip
        self.swapper = Swapper(
            self._settings, self.engine, self.roster, self.registry, self._store, self.metrics, self._clock
        )
        self.metrics.bind(self)
        await self.roster.restore()
        self._spawn(self.registry.scan())
        self._keep("tick", self._tick)
        self._keep("store", self._store_watch.run)
        if self._settings.mqtt_url is not None:
            self._keep("mqtt", Mqtt(self._settings, self.journal, lambda: self.streams, clock=self._clock).run)
        for hook in self._settings.webhooks:
            sender = Hook(hook, self._settings, self.journal, self.metrics, wall_clock=self._wall_clock)
            self._keep("webhook", sender.run)

    async def drain(self) -> None:
        """The first half of `stop`: no new frames, and what is in the house is answered to whoever still listens."""
        await self.swapper.give_up()
        await self.roster.drain()

    async def stop(self) -> None:
        """No new frames; what is in the house is answered, within the drain time; ledgers are closed and logged."""
        for task in self._tasks:
            task.cancel()
        await self.swapper.stop()
        await self.roster.drain()
        await self.engine.stop()
        await self.journal.close()
        await self._store.close()

    def reconfigure(self, names: frozenset[str]) -> None:
        """These settings have changed (`server.reload`): tell whoever has a copy."""
        settings = self._settings
        if not names.isdisjoint({"websocket_queue_messages", "websocket_queue_bytes"}):
            for hub in (self.hub, self.journal.feed):
                hub.limit(settings.websocket_queue_messages, settings.websocket_queue_bytes)
        if not names.isdisjoint({"events_days", "events_max_mb"}):
            self.journal.store.limit(settings.events_days * _DAY_S, settings.events_max_mb << 20)
        if not names.isdisjoint(Roster.COPIED):
            self.roster.reconfigure()

    def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._spawn(kept_running(name, run))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            self.roster.tick()
            await asyncio.sleep(1.0)

    # Streams.

    @property
    def streams(self) -> Mapping[str, Stream]:
        return self.roster.streams

    async def add_stream(self, definition: StreamDefinition) -> Stream:
        return await self.roster.add(definition)

    async def update_stream(self, stream_id: str, patch: StreamPatch) -> Stream:
        return await self.roster.update(stream_id, patch)

    async def remove_stream(self, stream_id: str) -> None:
        await self.roster.remove(stream_id)

    async def probe(self, definition: StreamDefinition) -> ProbeResult:
        return await self.roster.probe(definition)

    # Pictures.

    async def snapshot(
        self,
        stream_id: str,
        *,
        seq: int | None = None,
        annotate: bool = False,
        max_width: int | None = None,
        quality: int = 85,
    ) -> bytes:
        stream = self.roster.get(stream_id)
        # The camera keeps the newest detected frame; under way to it, a newer one may take its place.
        for _ in range(_SNAPSHOT_TRIES if seq is None else 1):
            boxes: list[tuple[float, float, float, float, str]] = []
            wanted = seq
            if annotate:
                results = (r for r in stream.recent(10) if r["status"] == "ok" and seq in (None, r["seq"]))
                last = next(results, None)
                if last is None:
                    raise NoPicture(f"stream {stream_id!r} has no such detected frame")
                wanted, boxes = last["seq"], [_box(d) for d in last["detections"]]
            request = EncodeRequest(
                id=next(self._requests), seq=wanted, boxes=boxes, quality=quality, max_width=max_width
            )
            try:
                jpeg = await stream.camera.encode(request)
            except (TimeoutError, ConnectionError):
                break
            if jpeg:
                return jpeg
        raise NoPicture(f"stream {stream_id!r} has no such picture now (state {stream.state})")

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: list[str] | None = None,
    ) -> Detected:
        return await self.engine.detect(image, confidence=confidence, iou=iou, classes=classes)

    # Health and numbers.

    def readiness(self) -> tuple[bool, str]:
        return self.engine.readiness().verdict()

    def checks(self) -> list[Check]:
        return [*self.engine.readiness().checks(), self._store_watch.check]

    @property
    def queue_depth(self) -> int:
        return self.engine.dispatcher.waiting

    def stream_counters(self) -> Mapping[str, StreamCounters]:
        return {stream.id: stream.counters() for stream in self.streams.values()}

    @property
    def model(self) -> Mapping[str, object]:
        return self.engine.view()


def _box(detection: Detection) -> tuple[float, float, float, float, str]:
    x1, y1, x2, y2 = detection["box"]
    return x1, y1, x2, y2, f"{detection['class']} {detection['confidence']:.2f}"
