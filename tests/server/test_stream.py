"""One stream with a camera, a worker and a hub of our own making: ledger, results, states, settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.batching.dispatcher import Dispatcher
from server.batching.line import Line
from server.batching.scheduler import Scheduler
from server.inference.protocol import Done, Hello, Infer
from server.ingest.wire import DecodeErrorKind, DropReason, Event, EventKind, StateChange
from server.metrics import Metrics
from server.models.model import Model
from server.stream import Defaults, House, Stream
from server.streams import StreamDefinition, StreamPatch

NAMES = {0: "person", 1: "car", 2: "dog"}


class FakeCamera:
    def __init__(self) -> None:
        self.freed: list[tuple[int, int, bool]] = []

    def free(self, slot: int, seq: int, completed: bool) -> None:
        self.freed.append((slot, seq, completed))

    def drain(self) -> None: ...


class FakeHub:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def publish(self, message: Any) -> None:
        self.messages.append(message)


class FakeJournal:
    def __init__(self) -> None:
        self.observed: list[Any] = []

    def observe(self, stream: str, message: Any, unix: float, observation: Any, encode: Any) -> None:
        self.observed.append((stream, message["seq"], unix, [track_id for track_id, _ in observation.seen]))

    def idle(self, stream: str, analyst: Any, now: float, unix: float) -> None: ...


class World:
    def __init__(self, **fields: Any) -> None:
        self.now = 50.0
        self.ready = True
        self.sent: list[Infer] = []
        self.asked: list[tuple[int, int]] = []
        self.hub = FakeHub()
        self.journal = FakeJournal()
        self.camera = FakeCamera()
        self.metrics = Metrics()
        self.model = Model("tiny", 4, NAMES, 640)
        self.line = Line(self.model)
        self.line.worker = self
        self.dispatcher = Dispatcher(Scheduler(), self.line, clock=lambda: self.now, loop=self)  # type: ignore[arg-type]
        self.dispatcher.on_up(self.line, Hello("fake", "fp32", "none", "test", 1, 1, 384, 640))
        house = House(
            self.dispatcher, self.hub, self.journal, self.metrics, lambda: self.model, Defaults, lambda: self.now,
            lambda: 1e9 + self.now,
        )  # type: ignore[arg-type]  # fmt: skip
        self.stream = Stream(StreamDefinition(id="door", url="rtsp://h/1", **fields), 7, house)
        self.stream.camera = self.camera  # type: ignore[assignment]

    def call_later(self, delay: float, call: Any) -> Any:
        class Timer:
            def cancel(self) -> None: ...

        return Timer()

    def prepare(self, height: int, width: int) -> None:
        self.asked.append((height, width))

    def infer(self, request: Infer) -> None:
        self.sent.append(request)

    def frame(self, seq: int, **more: Any) -> None:
        self.stream.on_events([Event(EventKind.OPEN, seq, arrived_at=self.now), ready(seq, self.now, **more)])

    def answer(self, rows: list[list[float]], error: str | None = None) -> None:
        found = [] if error else [np.array(rows, np.float32).reshape(-1, 6).tobytes()]
        request = self.sent[-1]
        now = self.now
        self.dispatcher.on_done(self.line, Done(request.id, now + 0.001, now + 0.021, now + 0.022, found, error))


def ready(seq: int, now: float, **more: Any) -> Event:
    return Event(
        EventKind.READY, seq, slot=seq % 6, source_width=1280, source_height=720, input_width=640, input_height=384,
        pts=seq / 10, arrived_at=now - 0.004, ready_at=now, received_unix=1e9 + now - 0.004, **more,
    )  # fmt: skip


def test_a_frame_becomes_a_result_whose_stages_add_up_to_its_age() -> None:
    world = World()
    world.frame(1)
    world.answer([[10, 20, 110.126, 220, 0.91, 1]])
    result = next(m for m in world.hub.messages if m["type"] == "result")
    assert result["status"] == "ok"
    assert (result["model"], result["model_generation"], result["seq"], result["pts"]) == ("tiny", 4, 1, 0.1)
    (found,) = result["detections"]
    assert (found["class"], found["class_id"], found["box"][2], found["track_id"]) == ("car", 1, 110.13, None)
    spent = result["latency_ms"]
    assert spent["decode"] == pytest.approx(4.0)
    assert spent["total"] == pytest.approx(sum(spent[s] for s in ("decode", "queue", "inference", "postprocess")))
    assert world.camera.freed == [(1, 1, True)]
    assert world.stream.ledger().model_dump() == {"received": 1, "completed": 1, "in_flight": 0, "dropped": {}}


def test_what_a_parser_may_have_held_back_counts_and_is_stated() -> None:
    world = World()
    world.frame(1, arrival_uncertainty_s=0.1)
    world.answer([])
    result = world.hub.messages[-1]
    assert result["latency_ms"]["decode"] == pytest.approx(104.0, abs=0.01)
    assert result["time"]["received_uncertainty_ms"] == pytest.approx(100.0, abs=0.01)


def test_a_failed_inference_is_an_error_and_never_an_empty_scene() -> None:
    world = World()
    world.frame(1)
    world.answer([], error="device lost")
    result = world.hub.messages[-1]
    assert (result["status"], result["error"], result["detections"]) == ("error", "device lost", [])
    assert world.stream.ledger().dropped == {"inference": {"engine_error": 1}}
    assert world.camera.freed == [(1, 1, False)]


def test_drops_replacements_and_decoder_complaints_are_counted_with_their_reasons() -> None:
    world = World()
    world.frame(1)
    world.frame(2)
    world.frame(3)
    world.stream.on_events(
        [
            Event(EventKind.OPEN, 4),
            Event(EventKind.DROP, 4, reason=DropReason.DAMAGED),
            Event(EventKind.DECODE_ERROR, reason=DecodeErrorKind.RTP_LOSS, count=5),
        ]
    )
    ledger = world.stream.ledger()
    assert (ledger.received, ledger.in_flight) == (4, 2)
    assert ledger.dropped == {"batching": {"replaced": 1}, "ingest": {"damaged": 1}}
    assert world.stream.decode_errors == {"rtp_loss": 5}


def test_a_lost_camera_process_costs_what_it_had_open_and_not_what_it_had_handed_over() -> None:
    world = World()
    world.frame(1)
    world.stream.on_events([Event(EventKind.OPEN, 2), Event(EventKind.OPEN, 3)])
    world.stream.on_lost()
    assert world.stream.ledger().dropped == {"ingest": {"process_lost": 2}}
    world.answer([])
    assert world.stream.ledger().completed == 1


def test_the_reason_stays_through_backoff_and_connecting_until_it_runs_again() -> None:
    world = World()
    change = world.stream.on_state
    change(StateChange(state="backoff", reason="timeout", detail="no answer", retry_in_s=2.0))
    world.now += 0.5
    assert world.stream.status().retry_in_s == pytest.approx(1.5)
    change(StateChange(state="connecting"))
    change(StateChange(state="connecting", codec="h264"))
    assert (world.stream.status().state, world.stream.status().reason) == ("connecting", "timeout")
    change(StateChange(state="running", codec="h264", width=1280, height=720, fps=25.0, client="native"))
    status = world.stream.status()
    assert (status.state, status.reason, status.codec, status.client) == ("running", None, "h264", "native")
    assert [m["state"] for m in world.hub.messages] == ["backoff", "connecting", "running"]
    assert world.stream.reconnects == {"timeout": 1}


def test_the_engine_is_told_of_a_shape_before_the_first_frame_needs_it() -> None:
    world = World()
    world.stream.on_state(StateChange(state="connecting"))
    world.stream.on_state(StateChange(state="connecting", codec="h264", width=640, height=480))
    assert world.asked == [(480, 640)]
    assert world.hub.messages == [], "it was connecting before"
    assert world.stream.status().codec == "h264"
    assert world.stream.status().input_width is None
    world.frame(1)
    assert (world.stream.status().input_width, world.stream.status().input_height) == (640, 384)
    assert world.asked == [(480, 640)]


def test_thresholds_travel_with_each_frame_and_change_with_a_patch() -> None:
    world = World(classes=["person", "dog"], class_confidence={"dog": 0.9}, confidence=0.4, iou=0.5)
    world.frame(1)
    (frame,) = world.sent[-1].frames
    assert frame.class_thresholds is not None
    assert np.frombuffer(frame.class_thresholds, np.float32).tolist() == pytest.approx([0.4, 2.0, 0.9])
    assert (frame.confidence, frame.iou) == (pytest.approx(0.4), 0.5)
    world.stream.define(world.stream.definition.patched(StreamPatch(classes=None, class_confidence=None)))
    world.answer([])
    world.frame(2)
    assert world.sent[-1].frames[0].class_thresholds is None


def test_classes_that_the_model_lacks_are_left_out_and_the_status_names_them() -> None:
    world = World(classes=["cat", "dog"], class_confidence={"cat": 0.5, "bird": 0.6})
    world.frame(1)
    thresholds = world.sent[-1].frames[0].class_thresholds
    assert thresholds is not None
    assert np.frombuffer(thresholds, np.float32).tolist() == pytest.approx([2.0, 2.0, 0.25])
    assert world.stream.status().missing_classes == ["cat", "bird"]


def test_only_classes_that_the_model_lacks_means_that_nothing_is_reported() -> None:
    world = World(classes=["cat"])
    world.frame(1)
    thresholds = world.sent[-1].frames[0].class_thresholds
    assert thresholds is not None
    assert np.frombuffer(thresholds, np.float32).tolist() == [2.0, 2.0, 2.0]


def test_recent_results_come_newest_first_and_are_bounded() -> None:
    world = World()
    for seq in range(1, 131):
        world.frame(seq)
        world.answer([])
        world.now += 0.04
    assert [r["seq"] for r in world.stream.recent(3)] == [130, 129, 128]
    assert len(world.stream.recent(1000)) == 100
    assert world.stream.status().latency_ms_p50 == pytest.approx(4.0, abs=0.01)


def test_results_are_followed_and_failures_are_not() -> None:
    world = World()
    for seq in range(1, 5):
        world.now += 0.1
        world.frame(seq)
        world.answer([[10, 20, 60, 120, 0.9, 0]], error="it broke" if seq == 2 else None)
    results = [m for m in world.hub.messages if m["type"] == "result"]
    assert [[d["track_id"] for d in m["detections"]] for m in results] == [[None], [], [1], [1]]
    assert [(seq, tracks) for _, seq, _, tracks in world.journal.observed] == [(1, []), (3, [1]), (4, [1])]
    assert world.stream.counters().tracks == 1
