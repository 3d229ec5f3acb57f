"""One stream of the running server: its camera, its ledger, its results.

All that concerns this stream alone is here, and nothing of it can touch another: records of its camera become entries
of its ledger and frames for the dispatcher; answers become messages for the hub. One event loop, no locks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from server import outcome as outcomes
from server.analytics.analyst import Analyst
from server.batching.dispatcher import Dispatcher, Outcome
from server.batching.scheduler import Policy, Waiting
from server.inference.protocol import Frame
from server.ingest.clocks import instant
from server.ingest.wire import DecodeErrorKind, DropReason, EncodeRequest, Event, EventKind, StateChange
from server.ledger import Ledger
from server.metrics import StreamCounters
from server.models.model import Model, class_thresholds, missing_classes
from server.results import Result, State
from server.streams import LedgerView, StreamDefinition, StreamStatus
from yolov9.geometry import input_shape

if TYPE_CHECKING:
    from server.analytics.journal import Journal
    from server.delivery.hub import Hub
    from server.ingest.supervisor import Camera
    from server.metrics import Metrics

log = logging.getLogger("yolov9.stream")

RECENT_RESULTS = 100
_LATENCIES = 512
"""Totals kept for the percentiles of the status: some 20 s of a 25 fps camera."""
_RATE_WINDOW_S = 5
SLOTS = 6
"""One is written, one waits, up to two are in the engine or on the way to it, one is being given back; one to spare."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a stream that does not say otherwise gets."""

    confidence: float = 0.25
    iou: float = 0.7
    max_staleness_ms: float = 500.0


class _Limits(NamedTuple):
    """What is to be reported of a frame, as one model counts its classes."""

    confidence: float
    thresholds: bytes | None
    """See `protocol.Frame.class_thresholds`."""


@dataclass(frozen=True, slots=True)
class House:
    """What a stream shares with the others."""

    dispatcher: Dispatcher
    hub: Hub
    journal: Journal
    metrics: Metrics
    model: Callable[[], Model]
    defaults: Callable[[], Defaults]
    clock: Callable[[], float]
    wall_clock: Callable[[], float]


class Stream:
    """`camera` is set by the runtime right after construction (it needs this stream's callbacks)."""

    camera: Camera
    in_order = True

    def __init__(self, definition: StreamDefinition, arena: int, house: House) -> None:
        self._house = house
        self.arena = arena
        """The arena's number at the worker."""
        self.ledger_entries = Ledger()
        self._held: dict[int, Event] = {}  # READY frames that the server owns, by seq
        self._empty = asyncio.Event()
        self._empty.set()
        self._recent: deque[Result] = deque(maxlen=RECENT_RESULTS)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._rates: deque[tuple[float, int, int]] = deque(maxlen=_RATE_WINDOW_S + 1)
        self._state = StateChange(state="connecting")
        self._state_at = house.clock()
        self._seen = StateChange(state="connecting")  # last state that described the source
        self._newest: Event | None = None
        self._shape: tuple[int, int] | None = None  # (height, width) of the newest input
        self._input_size: int | None = None  # long side for which the camera's process scales now, as it says itself
        self.reconnects: dict[str, int] = {}
        self.decode_errors: dict[str, int] = {}
        self.changing = asyncio.Lock()
        """Held while settings change or the stream goes: one at a time, and nothing after it has gone."""
        self.closing = False
        self.analyst = Analyst()
        self.define(definition)

    @property
    def id(self) -> str:
        return self.definition.id

    def define(self, definition: StreamDefinition) -> None:
        """Take settings over; they hold from the next frame that is sent to the engine."""
        defaults = self._house.defaults()
        self.definition = definition
        self.analyst.define(definition)
        self._limits: dict[int, _Limits] = {}  # by the generation of the model
        self._confidence = definition.confidence if definition.confidence is not None else defaults.confidence
        self._iou = definition.iou if definition.iou is not None else defaults.iou
        fifo = bool(definition.every_frame)
        staleness_ms = definition.max_staleness_ms or defaults.max_staleness_ms
        self._house.dispatcher.configure(
            definition.id,
            Policy(
                weight=definition.weight or 1.0, max_staleness_s=float("inf") if fifo else staleness_ms / 1e3, fifo=fifo
            ),
        )

    # From the camera.

    def on_events(self, events: list[Event]) -> None:
        """Records of the camera's process, in its order."""
        ledger = self.ledger_entries
        ready = False
        for event in events:
            match event.kind:
                case EventKind.OPEN:
                    ledger.open(event.seq)
                    self._newest = event
                case EventKind.DROP:
                    ledger.drop(event.seq, "ingest", DropReason(event.reason).name.lower())
                case EventKind.READY:
                    ready = True
                    self._offer(event)
                case EventKind.DECODE_ERROR:
                    kind = DecodeErrorKind(event.reason).name.lower()
                    self.decode_errors[kind] = self.decode_errors.get(kind, 0) + event.count
                case EventKind.HEARTBEAT:
                    self._input_size = event.input_width or None
        if ready:
            self._house.dispatcher.pump()

    def _offer(self, event: Event) -> None:
        self._held[event.seq] = event
        self._empty.clear()
        shape = self._shape = (event.input_height, event.input_width)
        self._house.dispatcher.offer(Waiting(self.id, event.seq, shape, event.arrived_at, event.ready_at, self))

    def on_state(self, change: StateChange) -> None:
        """A change of state: to the log, to subscribers, into the status."""
        before = self._state
        if change.codec:
            self._seen = change
        if change.width and change.height:
            # Told once the source is open: the engine compiles while the camera's first keyframe is awaited.
            size = self._house.model().input_size
            self._house.dispatcher.want(input_shape(size, change.width, change.height))
        if change.state in ("connecting", "backoff", "stopped") and change.reason is None and before.reason is not None:
            # The reason stays until the stream runs again: "connecting, because of a time-out".
            change = StateChange(state=change.state, reason=before.reason, detail=before.detail)
        self._state = change
        self._state_at = self._house.clock()
        if change.state == "backoff":
            reason = change.reason or "error"
            self.reconnects[reason] = self.reconnects.get(reason, 0) + 1
        elif (before.state, before.reason) == (change.state, change.reason):
            return  # more is known of the source, and that is all
        log.info(
            "stream=%s state=%s reason=%s%s", self.id, change.state, change.reason,
            f" detail={change.detail!r}" if change.detail else "", extra={"stream": self.id},
        )  # fmt: skip
        self._house.hub.publish(self.state_message())

    def on_lost(self) -> None:
        """The camera's process is gone and its last record has been applied. Whole pictures go their way."""
        self._input_size = None
        entries = self.ledger_entries
        entries.drop_all("ingest", "process_lost", [seq for seq in entries.open_seqs() if seq not in self._held])

    # From the dispatcher.

    def frame(self, waiting: Waiting, model: Model) -> Frame:
        event, limits = self._held[waiting.seq], self._limits_for(model)
        return Frame(
            self.arena, event.slot, event.source_width, event.source_height, limits.confidence, self._iou,
            limits.thresholds,
        )  # fmt: skip

    def _limits_for(self, model: Model) -> _Limits:
        """What the model lacks is left out: `status` says so."""
        known = self._limits.get(model.generation)
        if known is not None:
            return known
        definition = self.definition
        lacking = set(self.missing_classes(model.names))
        classes = None if definition.classes is None else [c for c in definition.classes if c not in lacking]
        chosen = {c: x for c, x in (definition.class_confidence or {}).items() if c not in lacking}
        thresholds = class_thresholds(model.names, self._confidence, classes, chosen)
        confidence = self._confidence
        if thresholds is not None:
            confidence = float(thresholds[thresholds <= 1.0].min(initial=1.0))
        while len(self._limits) > 1:  # two at a time, while one model takes the place of another
            del self._limits[min(self._limits)]
        limits = self._limits[model.generation] = _Limits(
            confidence, None if thresholds is None else thresholds.tobytes()
        )
        return limits

    @property
    def source_size(self) -> tuple[int, int] | None:
        """(width, height) of the camera's pictures, None if it has not been seen yet."""
        seen = self._seen
        return (seen.width, seen.height) if seen.width and seen.height else None

    def scales_for(self, input_size: int) -> bool:
        """Whether no frame of another input size can come from the camera any more. One told by `Camera.resize` says
        with its heartbeat that it has heard."""
        return not self.camera.alive or self._input_size == input_size

    def missing_classes(self, names: dict[int, str]) -> list[str]:
        """Classes that this stream asks for and a model of these does not have."""
        return missing_classes(names, self.definition.classes, self.definition.class_confidence)

    def dropped(self, frame: Waiting, reason: str) -> None:
        event = self._release(frame.seq)
        self.ledger_entries.drop(frame.seq, "batching", reason)
        self.camera.free(event.slot, event.seq, False)

    def done(self, frame: Waiting, outcome: Outcome) -> None:
        house = self._house
        event = self._release(frame.seq)
        failed = outcome.reason is not None
        if outcome.reason is not None:
            self.ledger_entries.drop(frame.seq, "inference", outcome.reason)
            house.metrics.inference_error(outcome.reason)
        else:
            self.ledger_entries.complete(frame.seq)
        self.camera.free(event.slot, event.seq, not failed)
        if self.closing:
            return
        model = outcome.model
        now = instant(house.clock, house.wall_clock)
        message = outcomes.result(
            self.id, event, outcome, names=model.names, model=model.name, generation=model.generation,
            sent_at=now.monotonic, sent_unix=now.unix,
        )  # fmt: skip
        if not failed:
            observation = self.analyst.observe(message, event.arrived_at)
            house.journal.observe(self.id, message, event.received_unix, observation, self._encode)
        self._recent.append(message)
        if not failed:
            spent = message["latency_ms"]
            self._latencies.append(spent["total"])
            house.metrics.observe_result(
                self.id, spent["decode"] / 1e3, spent["queue"] / 1e3, spent["inference"] / 1e3,
                spent["postprocess"] / 1e3, spent["total"] / 1e3,
            )  # fmt: skip
            house.metrics.count_detections(self.id, [d["class"] for d in message["detections"]])
        house.hub.publish(message)

    async def _encode(self, request: EncodeRequest) -> bytes:
        return await self.camera.encode(request)

    def _release(self, seq: int) -> Event:
        event = self._held.pop(seq)
        if not self._held:
            self._empty.set()
        return event

    async def emptied(self, timeout_s: float) -> bool:
        """Wait until the server owns no frame of this stream; False if the time was over before."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def end_tracks(self) -> None:
        """The stream goes, and what it saw goes out of sight."""
        self._house.journal.close_stream(self.id, self.analyst, self._house.clock(), self._house.wall_clock())

    # For delivery.

    def ledger(self) -> LedgerView:
        self.camera.drain()
        return LedgerView.model_validate(self.ledger_entries.snapshot())

    def recent(self, limit: int) -> Sequence[Result]:
        return list(islice(reversed(self._recent), limit))

    def state_message(self) -> State:
        state, elapsed = self._state, self._house.clock() - self._state_at
        message: State = {"type": "state", "stream": self.id, "state": state.state, "reason": state.reason}
        if state.retry_in_s is not None:
            message["retry_in_s"] = round(max(state.retry_in_s - elapsed, 0.0), 3)
        return message

    @property
    def state(self) -> str:
        return self._state.state

    def counters(self) -> StreamCounters:
        """For a scrape of the metrics."""
        self.camera.drain()
        entries = self.ledger_entries
        return StreamCounters(
            received=entries.received,
            completed=entries.completed,
            in_flight=entries.in_flight,
            dropped=entries.dropped,
            state=self._state.state,
            last_frame_age_s=self.last_frame_age_s(),
            reconnects=self.reconnects,
            decode_errors=self.decode_errors,
            tracks=self.analyst.tracks,
            zone_objects=self.analyst.areas.occupancy(),
            line_crossings=self.analyst.areas.crossings,
        )

    def last_frame_age_s(self) -> float | None:
        return None if self._newest is None else self._house.clock() - self._newest.arrived_at

    def tick(self) -> None:
        """Once a second: samples for the rates, and the end of what is not seen because there are no frames."""
        self._house.journal.idle(self.id, self.analyst, self._house.clock(), self._house.wall_clock())
        self._rates.append((self._house.clock(), self.ledger_entries.received, self.ledger_entries.completed))

    def rates(self) -> tuple[float | None, float | None]:
        """Frames a second (received, detected) over the last seconds; None before there are two samples."""
        if len(self._rates) < 2:
            return None, None
        (t0, received0, completed0), (t1, received1, completed1) = self._rates[0], self._rates[-1]
        return round((received1 - received0) / (t1 - t0), 2), round((completed1 - completed0) / (t1 - t0), 2)

    def status(self) -> StreamStatus:
        self.camera.drain()
        state, seen, newest = self._state, self._seen, self._newest
        received_fps, detected_fps = self.rates()
        p50 = p99 = None
        if self._latencies:
            p50, p99 = (round(float(x), 2) for x in np.percentile(self._latencies, (50, 99)))
        last = self._recent[-1] if self._recent else None
        age = self.last_frame_age_s()
        return StreamStatus.model_validate(
            {
                "state": state.state,
                "reason": state.reason,
                "detail": state.detail,
                "retry_in_s": self.state_message().get("retry_in_s"),
                "codec": seen.codec,
                "width": last["width"] if last else seen.width,
                "height": last["height"] if last else seen.height,
                "missing_classes": self.missing_classes(self._house.model().names),
                "input_width": None if self._shape is None else self._shape[1],
                "input_height": None if self._shape is None else self._shape[0],
                "fps": seen.fps,
                "fps_received": received_fps,
                "fps_detected": detected_fps,
                "latency_ms_p50": p50,
                "latency_ms_p99": p99,
                "last_frame_age_s": None if age is None else round(age, 3),
                "transport": seen.transport,
                "decoder": seen.decoder,
                "decoder_detail": seen.decoder_detail,
                "client": seen.client,
                "reconnects": sum(self.reconnects.values()),
                "received_at": None if newest is None else outcomes.timestamp(newest.received_unix),
            }
        )
