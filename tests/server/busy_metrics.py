"""The metrics of a server to which everything happens: each scrape finds more of it."""

from __future__ import annotations

from collections.abc import Mapping

from server.checks import Check
from server.metrics import Metrics, StreamCounters

STREAMS = ("front", "yard", "gate")
DROPS = (
    ("ingest", "damaged"), ("ingest", "rate_limit"), ("ingest", "process_lost"), ("batching", "replaced"),
    ("batching", "stale"), ("inference", "timeout"),
)  # fmt: skip


class BusyServer:
    """`render` is one scrape."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.metrics.bind(self)
        self._scrapes = 0

    def render(self) -> bytes:
        self._scrapes += 1
        metrics = self.metrics
        for stream in STREAMS:
            for _ in range(5):
                metrics.observe_result(stream, 0.003, 0.004, 0.021, 0.0006, 0.031)
            metrics.count_detections(stream, ["person", "car"])
            metrics.count_event(stream, "new")
        metrics.observe_batch(2)
        metrics.observe_delivery(0.0004)
        for _ in range(20):
            metrics.inference_error("timeout")
        metrics.model_swap(ok=self._scrapes % 2 == 0)
        metrics.messages_dropped("slow_client", 3)
        if self._scrapes == 1:
            metrics.client_changed("websocket", 1)
        return metrics.render()

    # What a scrape reads.

    def stream_counters(self) -> Mapping[str, StreamCounters]:
        n = self._scrapes
        states = dict(zip(STREAMS, ("running", "running", "backoff"), strict=True))
        return {
            stream: StreamCounters(
                received=30 * n, completed=12 * n, in_flight=0, dropped={drop: 3 * n for drop in DROPS}, state=state,
                last_frame_age_s=0.04, reconnects={"timeout": n, "stalled": n}, decode_errors={"rtp_loss": n},
                tracks=2, zone_objects={("yard", "person"): 1}, line_crossings={("gate", "in", "person"): n},
            )
            for stream, state in states.items()
        }  # fmt: skip

    queue_depth = 2

    @property
    def model(self) -> Mapping[str, object]:
        return {"name": "street-t", "engine": "openvino", "precision": "bf16", "hash": "0123456789ab"}

    def checks(self) -> list[Check]:
        return [Check("inference", True, "works", True), Check("store", True, "changes are kept", False)]

    def readiness(self) -> tuple[bool, str]:
        return True, "model loaded, inference works"
