"""What clients receive: the messages of WebSocket and SSE, as typed dictionaries.

TypedDict, since one definition then serves msgspec (encoding) and pydantic (OpenAPI), and `class` can be a key.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

Detection = TypedDict(
    "Detection",
    {
        "class": str,
        "class_id": int,
        "confidence": float,
        "box": list[float],  # x1, y1, x2, y2 in pixels of the source frame
        "track_id": int | None,
        "zones": list[str],
    },
)
"""One object in one frame."""


class ResultTime(TypedDict):
    """RFC 3339 wall-clock times in UTC. `captured_at` is null where the camera does not tell."""

    captured_at: str | None
    capture_uncertainty_ms: float | None
    received_at: str
    received_uncertainty_ms: float
    """The last packet may have come up to so much earlier (a parser that holds a frame back until the next begins)."""
    sent_at: str


class ResultLatency(TypedDict):
    """Milliseconds of the monotonic clock; the stages add up to `total`."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float
    """From the last packet on the wire (hold of a parser included, as the most it can be) to encoding."""


class Result(TypedDict):
    """One frame's answer. `status: error` never carries detections and says why in `error`."""

    type: Literal["result"]
    stream: str
    seq: int
    status: Literal["ok", "error"]
    error: NotRequired[str]
    model: str
    model_generation: int
    pts: float | None
    width: int
    height: int
    time: ResultTime
    latency_ms: ResultLatency
    detections: list[Detection]


class Gap(TypedDict):
    """Messages that this subscriber did not get, because it reads too slowly."""

    type: Literal["gap"]
    stream: str
    missed: int
    reason: str


class State(TypedDict):
    """A stream changed its state."""

    type: Literal["state"]
    stream: str
    state: str
    reason: str | None
    retry_in_s: NotRequired[float]


EventKind = Literal["new", "update", "end", "zone_enter", "zone_leave", "dwell", "line_cross"]

TrackEvent = TypedDict(
    "TrackEvent",
    {
        "id": str,
        "stream": str,
        "track_id": int,
        "class": str,
        "state": Literal["active", "ended"],
        "first_seen": str,
        "last_seen": str,
        "confidence": float,  # the highest
        "box": list[float],  # in the best frame: x1, y1, x2, y2 in pixels of the source
        "seq": int,  # the best frame's
        "width": int,
        "height": int,
        "zones": list[str],  # all that it has been in, in order
        "lines": list[str],  # all that it has crossed, in order
        "snapshot": bool,  # there is a picture of the best frame
    },
)
"""The life of one object in front of one camera. Times are RFC 3339 in UTC. `id` sorts by the time of its beginning."""


class EventMessage(TypedDict):
    """Something happened to an object."""

    type: Literal["event"]
    id: int
    """Number of the message, rising over all streams and restarts: the cursor of those who must miss none."""
    stream: str
    kind: EventKind
    at: str
    name: str | None
    """Of the zone or line."""
    direction: Literal["in", "out"] | None
    seconds: float | None
    """How long it stayed in the zone (zone_leave, dwell)."""
    event: TrackEvent


Message = Result | Gap | State | EventMessage
