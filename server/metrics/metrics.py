"""All metrics of one server: names, labels, and where their numbers come from.

Counts of frames are not kept here: they are the ledgers', read at each scrape through `MetricsSource`, so that
`/metrics` and `/streams/{id}/ledger` cannot disagree. What happens too fast to be asked for (latencies, detections) is
observed by the rooms where it happens, on the one event loop: no locks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from server.metrics.exposition import Histogram, family, header, labels

if TYPE_CHECKING:
    from server.checks import Check

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("connecting", "running", "backoff", "failed", "stopped")
STAGES = ("decode", "queue", "inference", "postprocess", "delivery", "total")

_STAGE_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
"""Seconds. A stage takes from a fraction of a millisecond to the staleness budget (.5 s) and beyond."""
_TOTAL_BOUNDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
"""Fewer: each stream has them."""
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)

_BATCH = "yolov9_batch_size"
_STAGE = "yolov9_frame_latency_seconds"
_TOTAL = "yolov9_stream_latency_seconds"
_STATE = "yolov9_stream_state"


@dataclass(frozen=True, slots=True)
class StreamCounters:
    """One stream at the time of a scrape. Mappings are read at once and not kept: the originals may be given."""

    received: int
    completed: int
    in_flight: int
    dropped: Mapping[tuple[str, str], int]
    """(stage, reason) -> frames"""
    state: str
    """One of STATES."""
    last_frame_age_s: float | None = None
    """None: no frame yet."""
    reconnects: Mapping[str, int] = field(default_factory=dict)
    """reason -> times"""
    decode_errors: Mapping[str, int] = field(default_factory=dict)
    """kind -> complaints"""
    tracks: int = 0
    """Objects that are followed now."""
    zone_objects: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(zone, class) -> objects in it now"""
    line_crossings: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """(line, direction, class) -> times"""


class MetricsSource(Protocol):
    """What a scrape reads. It must cost counters only: no calls to other processes."""

    def stream_counters(self) -> Mapping[str, StreamCounters]: ...
    @property
    def queue_depth(self) -> int:
        """Frames that wait for the engine."""
        ...

    @property
    def model(self) -> Mapping[str, object]:
        """name, engine, precision, hash"""
        ...

    def readiness(self) -> tuple[bool, str]:
        """(ready, reason)"""
        ...

    def checks(self) -> Sequence[Check]: ...


class Metrics:
    """`bind` once, then observe and `render`. One event loop."""

    def __init__(self) -> None:
        self._source: MetricsSource | None = None
        self._stages = {stage: Histogram(_STAGE, _STAGE_BOUNDS, stage=stage) for stage in STAGES}
        self._observe_delivery = self._stages["delivery"].observe
        self._batch = Histogram(_BATCH, _BATCH_BOUNDS)
        self._totals: dict[str, Histogram] = {}
        self._detections: dict[str, dict[str, int]] = {}
        self._inference_errors: dict[str, int] = {}
        self._swaps = {"ok": 0, "failed": 0}
        self._clients = {"websocket": 0, "sse": 0, "mjpeg": 0, "live": 0}
        self._messages_dropped = {"slow_client": 0}
        self._events: dict[str, dict[str, int]] = {}
        self._events_lost = 0
        self._event_store_errors = 0
        self._webhook_events = {"delivered": 0, "retried": 0, "given_up": 0}
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def bind(self, source: MetricsSource) -> None:
        """Where a scrape reads the ledgers and the model."""
        self._source = source

    # Observations.

    def observe_result(
        self, stream: str, decode: float, queue: float, inference: float, postprocess: float, total: float
    ) -> None:
        """A frame's stages, in seconds."""
        stages = self._stages
        stages["decode"].observe(decode)
        stages["queue"].observe(queue)
        stages["inference"].observe(inference)
        stages["postprocess"].observe(postprocess)
        stages["total"].observe(total)
        histogram = self._totals.get(stream)
        if histogram is None:
            histogram = self._totals[stream] = Histogram(_TOTAL, _TOTAL_BOUNDS, stream=stream)
        histogram.observe(total)

    def observe_delivery(self, seconds: float) -> None:
        """From `sent_at` to the hand-over to one client's socket."""
        self._observe_delivery(seconds)

    def observe_batch(self, size: int) -> None:
        self._batch.observe(size)

    def count_detections(self, stream: str, classes: Sequence[str]) -> None:
        """The classes of one frame's detections."""
        counts = self._detections.setdefault(stream, {})
        for name in classes:
            counts[name] = counts.get(name, 0) + 1

    def inference_error(self, reason: str) -> None:
        self._inference_errors[reason] = self._inference_errors.get(reason, 0) + 1

    def model_swap(self, ok: bool) -> None:
        self._swaps["ok" if ok else "failed"] += 1

    def client_changed(self, kind: str, change: int) -> None:
        """A client of `kind` (websocket, sse, mjpeg, live) has come (+1) or gone (-1)."""
        self._clients[kind] += change

    def messages_dropped(self, reason: str, count: int = 1) -> None:
        """Messages that a subscriber will not get."""
        self._messages_dropped[reason] = self._messages_dropped.get(reason, 0) + count

    def count_event(self, stream: str, kind: str) -> None:
        """Something happened to an object (new, end, zone_enter, ...)."""
        counts = self._events.setdefault(stream, {})
        counts[kind] = counts.get(kind, 0) + 1

    def events_lost(self, count: int) -> None:
        """Events and their pictures that the store will never have."""
        self._events_lost += count

    def event_store_error(self) -> None:
        """Events could not be written; they wait."""
        self._event_store_errors += 1

    def webhook_event(self, result: str) -> None:
        """An attempt to post an event (delivered, retried, given_up)."""
        self._webhook_events[result] += 1

    def forget(self, stream: str) -> None:
        """A stream has gone, and its series with it."""
        self._totals.pop(stream, None)
        self._detections.pop(stream, None)
        self._events.pop(stream, None)

    # The scrape.

    def render(self) -> bytes:
        """All metrics in Prometheus' text format; content type CONTENT_TYPE. RuntimeError before `bind`."""
        source = self._source
        if source is None:
            raise RuntimeError("metrics are rendered before they are bound to the server")
        parts = [*self._of_streams(source.stream_counters()), *self._of_server(source)]
        return "".join(parts).encode() + generate_latest(self._process)

    def _of_streams(self, streams: Mapping[str, StreamCounters]) -> list[str]:
        at = {stream: labels(stream=stream) for stream in streams}
        opened = {stream: text[:-1] for stream, text in at.items()}  # further labels and `}` follow
        items = [(at[stream], counters) for stream, counters in streams.items()]

        def split(name: str, counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, float]]:
            """Samples of a family with one label more: stream -> value of that label -> count."""
            ends = {value: labels(**{name: value})[1:] for values in counts.values() for value in values}
            return [
                (f"{opened[stream]},{ends[value]}", count)
                for stream, values in counts.items()
                for value, count in values.items()
            ]

        dropped = [
            (f'{opened[stream]},stage="{stage}",reason="{reason}"}}', count)
            for stream, counters in streams.items()
            for (stage, reason), count in counters.dropped.items()
        ]
        in_zones = [
            (labels(**{"stream": stream, "zone": zone, "class": name}), count)
            for stream, counters in streams.items()
            for (zone, name), count in counters.zone_objects.items()
        ]
        crossings = [
            (labels(**{"stream": stream, "line": line, "direction": direction, "class": name}), count)
            for stream, counters in streams.items()
            for (line, direction, name), count in counters.line_crossings.items()
        ]
        states = "".join([_state_lines(stream, counters.state) for stream, counters in streams.items()])
        ages = [(a, c.last_frame_age_s) for a, c in items if c.last_frame_age_s is not None]
        totals = "".join([h.text() for stream, h in self._totals.items() if stream in streams])
        found = {stream: counts for stream, counts in self._detections.items() if stream in streams}
        return [
            family("yolov9_stream_frames_received_total", "counter", "Frames that came out of the camera.",
                   [(a, c.received) for a, c in items]),
            family("yolov9_stream_frames_completed_total", "counter", "Frames that got a result.",
                   [(a, c.completed) for a, c in items]),
            family("yolov9_stream_frames_dropped_total", "counter", "Frames that ended without a result.", dropped),
            family("yolov9_stream_frames_in_flight", "gauge", "Frames inside the server now.",
                   [(a, c.in_flight) for a, c in items]),
            header(_TOTAL, "histogram", "From the last packet on the wire to the result.") + totals,
            family("yolov9_stream_up", "gauge", "Whether the stream runs.",
                   [(a, int(c.state == "running")) for a, c in items]),
            header(_STATE, "gauge", "1 for the state that the stream is in.") + states,
            family("yolov9_stream_reconnects_total", "counter", "Connections lost or refused, by reason.",
                   split("reason", {s: c.reconnects for s, c in streams.items()})),
            family("yolov9_stream_last_frame_age_seconds", "gauge", "Since the newest frame came.", ages),
            family("yolov9_decode_errors_total", "counter", "What the receiver and the decoder complained of.",
                   split("kind", {s: c.decode_errors for s, c in streams.items()})),
            family("yolov9_detections_total", "counter", "Detections reported.", split("class", found)),
            family("yolov9_events_total", "counter", "Events told, by kind.",
                   split("kind", {stream: counts for stream, counts in self._events.items() if stream in streams})),
            family("yolov9_stream_tracks", "gauge", "Objects that are followed now.",
                   [(a, c.tracks) for a, c in items]),
            family("yolov9_zone_objects", "gauge", "Objects in a zone now.", in_zones),
            family("yolov9_line_crossings_total", "counter", "Objects that crossed a line.", crossings),
        ]  # fmt: skip

    def _of_server(self, source: MetricsSource) -> list[str]:
        model = source.model
        info = labels(**{key: model.get(key) or "" for key in ("name", "engine", "precision", "hash")})
        stages = "".join([histogram.text() for histogram in self._stages.values()])
        others = {kind: count for kind, count in self._clients.items() if kind != "websocket"}

        def by(name: str, counts: Mapping[str, int]) -> list[tuple[str, float]]:
            return [(labels(**{name: value}), count) for value, count in counts.items()]

        return [
            header(_STAGE, "histogram", "Time that frames spend in each stage.") + stages,
            header(_BATCH, "histogram", "Frames in a batch of the engine.") + self._batch.text(),
            family("yolov9_ready", "gauge", "Whether the model is loaded and inference works.",
                   [("", int(source.readiness()[0]))]),
            family("yolov9_check_ok", "gauge", "Whether this part of the server works.",
                   [(labels(check=check.name), int(check.ok)) for check in source.checks()]),
            family("yolov9_queue_depth", "gauge", "Frames that wait for the engine.", [("", source.queue_depth)]),
            family("yolov9_inference_errors_total", "counter", "Frames whose inference failed.",
                   by("reason", self._inference_errors)),
            family("yolov9_model_info", "gauge", "The model that answers.", [(info, 1)]),
            family("yolov9_model_swaps_total", "counter", "Model changes at run time.", by("result", self._swaps)),
            family("yolov9_websocket_clients", "gauge", "WebSocket subscribers now.",
                   [("", self._clients["websocket"])]),
            family("yolov9_http_clients", "gauge", "Subscribers over HTTP, and viewers of pictures, now.",
                   by("kind", others)),
            family("yolov9_events_lost_total", "counter", "Events and pictures of events that were never stored.",
                   [("", self._events_lost)]),
            family("yolov9_event_store_errors_total", "counter", "Attempts to store events that failed.",
                   [("", self._event_store_errors)]),
            family("yolov9_webhook_events_total", "counter", "Attempts to post events to webhooks.",
                   by("result", self._webhook_events)),
            family("yolov9_websocket_messages_dropped_total", "counter", "Messages that subscribers did not get.",
                   by("reason", self._messages_dropped)),
        ]  # fmt: skip


@lru_cache(maxsize=8192)
def _state_lines(stream: str, now: str) -> str:
    """The sample lines of a stream in state `now`: always one of a few texts, so they are kept."""
    return "".join(f"{_STATE}{labels(stream=stream, state=state)} {int(state == now)}\n" for state in STATES)
