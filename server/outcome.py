"""A frame's answer as the message that clients receive. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np

from server.batching.dispatcher import Outcome
from server.inference.protocol import DETECTION_COLUMNS
from server.ingest.wire import Event
from server.results import Detection, Result, ResultLatency


def detections(packed: bytes, names: dict[int, str]) -> list[Detection]:
    """float32[n, 6] rows as messages: boxes to .01 pixel, confidence to .0001."""
    rows = np.frombuffer(packed, np.float32).reshape(-1, DETECTION_COLUMNS).astype(np.float64)
    boxes = rows[:, :4].round(2).tolist()
    scores = rows[:, 4].round(4).tolist()
    classes = rows[:, 5].astype(int).tolist()
    return [
        {"class": names[class_id], "class_id": class_id, "confidence": score, "box": box, "track_id": None, "zones": []}
        for box, score, class_id in zip(boxes, scores, classes, strict=True)
    ]


def timestamp(unix: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def latency(event: Event, outcome: Outcome, sent_at: float) -> ResultLatency:
    """Stages in milliseconds, adding up to the total. What a parser may have held back counts as decode."""
    begin = event.arrived_at - event.arrival_uncertainty_s
    return {
        "decode": _ms(event.ready_at - begin),
        "queue": _ms(outcome.started_at - event.ready_at),
        "inference": _ms(outcome.finished_at - outcome.started_at),
        "postprocess": _ms(sent_at - outcome.finished_at),
        "total": _ms(sent_at - begin),
    }


def result(
    stream: str,
    event: Event,
    outcome: Outcome,
    *,
    names: dict[int, str],
    model: str,
    generation: int,
    sent_at: float,
    sent_unix: float,
) -> Result:
    """`event` is the frame's READY record; `sent_at` monotonic and `sent_unix` wall clock are the same instant."""
    known = not math.isnan(event.captured_unix)
    message: Result = {
        "type": "result",
        "stream": stream,
        "seq": event.seq,
        "status": "ok",
        "model": model,
        "model_generation": generation,
        "pts": None if math.isnan(event.pts) else round(event.pts, 6),
        "width": event.source_width,
        "height": event.source_height,
        "time": {
            "captured_at": timestamp(event.captured_unix) if known else None,
            "capture_uncertainty_ms": _ms(event.capture_uncertainty_s) if known else None,
            "received_at": timestamp(event.received_unix),
            "received_uncertainty_ms": _ms(event.arrival_uncertainty_s),
            "sent_at": timestamp(sent_unix),
        },
        "latency_ms": latency(event, outcome, sent_at),
        "detections": [],
    }
    if outcome.error is None:
        message["detections"] = detections(outcome.detections, names)
    else:
        message["status"] = "error"
        message["error"] = outcome.error
    return message


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
