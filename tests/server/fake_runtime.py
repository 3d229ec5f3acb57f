"""A runtime without cameras and engines, for tests of delivery."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from server.analytics.event_store import EventStore
from server.analytics.journal import Journal
from server.checks import Check
from server.delivery.hub import Hub
from server.delivery.ports import InvalidField, NoPicture, StreamExists, StreamNotFound
from server.detect import Detected
from server.metrics import Metrics, StreamCounters
from server.models.registry import Registry
from server.results import Detection, Result
from server.streams import LedgerView, StreamDefinition, StreamPatch, StreamStatus

JPEG = b"\xff\xd8\xff\xe0 a picture \xff\xd9"


def detection(name: str = "person", confidence: float = 0.9, zones: Sequence[str] = ()) -> Detection:
    return {
        "class": name,
        "class_id": 0,
        "confidence": confidence,
        "box": [1.0, 2.0, 30.0, 40.0],
        "track_id": None,
        "zones": list(zones),
    }


def result(stream: str, seq: int = 1, detections: Sequence[Detection] = ()) -> Result:
    return {
        "type": "result",
        "stream": stream,
        "seq": seq,
        "status": "ok",
        "model": "tiny",
        "model_generation": 1,
        "pts": 0.04 * seq,
        "width": 640,
        "height": 360,
        "time": {
            "captured_at": None,
            "capture_uncertainty_ms": None,
            "received_at": "2026-11-24T10:15:30.123Z",
            "received_uncertainty_ms": 0.0,
            "sent_at": "2026-11-24T10:15:30.150Z",
        },
        "latency_ms": {"decode": 3.0, "queue": 1.0, "inference": 20.0, "postprocess": 0.5, "total": 24.5},
        "detections": list(detections),
    }


@dataclass
class FakeStream:
    definition: StreamDefinition
    results: list[Result] = field(default_factory=list)
    """Oldest first."""

    def status(self) -> StreamStatus:
        return StreamStatus(state="running", codec="h264", width=640, height=360)

    def ledger(self) -> LedgerView:
        return LedgerView(received=5, completed=2, in_flight=1, dropped={"ingest": {"damaged": 2}})

    def recent(self, limit: int) -> Sequence[Result]:
        return self.results[::-1][:limit]


@dataclass
class FakeProbe:
    ok: bool = True
    reason: str | None = None
    detail: str | None = None
    codec: str | None = "h264"
    width: int | None = 1280
    height: int | None = 720
    fps: float | None = 25.0
    capacity: bool = True


class FakeSwapper:
    """Every model is active at once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def begin(self, name: str, *, force: bool = False) -> None:
        self._registry.get(name)

    async def drained(self) -> None: ...


class FakeRuntime:
    """Implements RuntimePort. `failure`: raised by every coroutine, if set."""

    def __init__(
        self,
        *,
        max_messages: int = 64,
        max_bytes: int = 1 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = Metrics()
        self.metrics.bind(self)
        self.hub = Hub(max_messages, max_bytes, metrics=self.metrics, clock=clock)
        self._feed = Hub(max_messages, max_bytes, metrics=self.metrics, clock=clock)
        self._streams: dict[str, FakeStream] = {}
        self.failure: Exception | None = None
        self.ready = (True, "model loaded, inference works")
        self.queue_depth = 0
        self.jpeg: bytes | None = JPEG
        self.snapshots: list[tuple[str, bool, int | None, int]] = []
        self.asked: list[int | None] = []
        """`seq` of each snapshot."""
        self.detected: list[tuple[bytes, float | None, float | None, list[str] | None]] = []
        self._seq = itertools.count(1)

    @cached_property
    def journal(self) -> Journal:
        """Made when it is used first: its store is a thread."""
        return Journal(
            EventStore(None, metrics=self.metrics, max_age_s=1e9, max_bytes=1 << 30), self._feed, self.metrics
        )

    @cached_property
    def registry(self) -> Registry:
        """A real one, with the model `tiny`."""
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        bundle: Any = SimpleNamespace(
            path=folder / "tiny", names={0: "person"}, input_size=640, hash="abc", precision="fp32",
            files={}, lineage={},
        )  # fmt: skip
        return Registry(folder, [], 1 << 20, bundle, "tiny")

    @property
    def swapper(self) -> FakeSwapper:
        return FakeSwapper(self.registry)

    @property
    def streams(self) -> Mapping[str, FakeStream]:
        return self._streams

    def add(self, stream_id: str, url: str = "rtsp://192.0.2.1/x") -> FakeStream:
        stream = self._streams[stream_id] = FakeStream(StreamDefinition(id=stream_id, url=url))
        self.hub.publish({"type": "state", "stream": stream_id, "state": "running", "reason": None})
        return stream

    def see(self, stream_id: str, *detections: Detection) -> Result:
        """A frame of the stream has its result."""
        message = result(stream_id, next(self._seq), detections)
        self._streams[stream_id].results.append(message)
        self.hub.publish(message)
        return message

    async def add_stream(self, definition: StreamDefinition) -> FakeStream:
        self._fail()
        if definition.id in self._streams:
            raise StreamExists(f"stream {definition.id!r} exists already")
        if definition.url.startswith("file:"):
            raise InvalidField("url", "file: addresses are not served")
        stream = self._streams[definition.id] = FakeStream(definition)
        self.hub.publish({"type": "state", "stream": definition.id, "state": "connecting", "reason": None})
        return stream

    async def update_stream(self, stream_id: str, patch: StreamPatch) -> FakeStream:
        self._fail()
        stream = self._get(stream_id)
        stream.definition = stream.definition.patched(patch)
        return stream

    async def remove_stream(self, stream_id: str) -> None:
        self._fail()
        self._get(stream_id)
        del self._streams[stream_id]
        self.metrics.forget(stream_id)
        self.hub.close_stream(stream_id)

    async def probe(self, definition: StreamDefinition) -> FakeProbe:
        self._fail()
        return FakeProbe()

    async def snapshot(
        self,
        stream_id: str,
        *,
        seq: int | None = None,
        annotate: bool = False,
        max_width: int | None = None,
        quality: int = 85,
    ) -> bytes:
        self._fail()
        self.asked.append(seq)
        self.snapshots.append((stream_id, annotate, max_width, quality))
        if self.jpeg is None:
            raise NoPicture("no picture yet")
        return self.jpeg

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: list[str] | None = None,
    ) -> Detected:
        self._fail()
        self.detected.append((image, confidence, iou, classes))
        latency_ms: dict[str, float] = dict(result("x")["latency_ms"])  # type: ignore[arg-type]
        return Detected(640, 360, [detection()], latency_ms, "tiny", 1)

    def readiness(self) -> tuple[bool, str]:
        return self.ready

    def checks(self) -> list[Check]:
        return [Check("inference", self.ready[0], self.ready[1], True), Check("store", True, "changes are kept", False)]

    def reconfigure(self, names: frozenset[str]) -> None:
        pass

    @property
    def model(self) -> Mapping[str, object]:
        return {"name": "tiny", "generation": 1, "engine": "openvino", "precision": "bf16", "hash": "abc"}

    def stream_counters(self) -> Mapping[str, StreamCounters]:
        return {
            stream_id: StreamCounters(5, 2, 1, {("ingest", "damaged"): 2}, "running", 0.04)
            for stream_id in self._streams
        }

    def _get(self, stream_id: str) -> FakeStream:
        try:
            return self._streams[stream_id]
        except KeyError:
            raise StreamNotFound(f"there is no stream {stream_id!r}") from None

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
