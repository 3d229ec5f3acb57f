"""Messages between the server and an inference worker's process (SOCK_SEQPACKET; msgpack).

Pixels never travel here: a frame is named by arena and slot. Arena descriptors go with `AttachArena` (SCM_RIGHTS).
Times are CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

import msgspec

MAX_MESSAGE_BYTES = 1 << 20
DETECTION_COLUMNS = 6
"""x1, y1, x2, y2 in pixels of the *source* frame, confidence, class id."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One frame of a batch. All frames of a batch have one input shape."""

    arena: int
    slot: int
    source_width: int
    source_height: int
    confidence: float
    """Lowest confidence to report, before `class_thresholds`."""
    iou: float
    class_thresholds: bytes | None = None
    """float32[nc]: the lowest confidence of each class; 2.0 excludes a class. None: `confidence` for all."""
    max_detections: int = 300


class AttachArena(msgspec.Struct, frozen=True, tag="attach"):
    """One descriptor comes with it."""

    arena: int
    slots: int
    slot_bytes: int


class DetachArena(msgspec.Struct, frozen=True, tag="detach"):
    arena: int


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Compile and warm an input shape, beside the running ones; answered by `Prepared`."""

    height: int
    width: int


class Infer(msgspec.Struct, frozen=True, tag="infer"):
    id: int
    height: int
    width: int
    frames: list[Frame]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    pass


Request = AttachArena | DetachArena | Prepare | Infer | Stop


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message: the engine is loaded and one warm-up inference has succeeded."""

    engine: str
    precision: str
    device: str
    why: str
    """Why this engine was chosen, and what was wrong with the faster ones."""
    parallel: int
    """Batches that may run at once."""
    max_batch: int
    height: int
    width: int
    """The shape that is warm already."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Instead of Hello: no engine could be started. `detail` is for people."""

    detail: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    height: int
    width: int
    seconds: float
    error: str | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Answer to Infer. With `error` set, `detections` is empty and every frame of the batch failed."""

    id: int
    started_at: float
    """The engine began (after any wait inside the worker)."""
    finished_at: float
    """The engine had finished."""
    postprocessed_at: float
    detections: list[bytes]
    """For each frame float32[n, 6], see DETECTION_COLUMNS, best first."""
    error: str | None = None
    engine_failed: bool = False
    """With `error`: the engine is to blame, not the request."""


class Mode(msgspec.Struct, frozen=True, tag="mode"):
    """The engine runs another way from now on, because the load asks for it."""

    mode: str
    """latency | throughput"""
    parallel: int
    """As in Hello."""


class Upgrade(msgspec.Struct, frozen=True, tag="upgrade"):
    """A faster engine is being built, or could not be. The one that runs goes on."""

    engine: str
    precision: str
    state: str
    """building | failed"""
    progress: float
    """0..1"""
    detail: str = ""
    """For people: what is being done, or what went wrong."""


class Switched(msgspec.Struct, frozen=True, tag="switched"):
    """The upgrade has come: from now on another engine runs. Every shape that was prepared is so for it, too. The
    fields are Hello's."""

    engine: str
    precision: str
    device: str
    why: str
    parallel: int
    max_batch: int


Reply = Hello | Failed | Prepared | Done | Mode | Upgrade | Switched

_request_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    return _request_encoder.encode(message)


def decode_request(data: bytes) -> Request:
    request: Request = _request_decoder.decode(data)
    return request


def decode_reply(data: bytes) -> Reply:
    reply: Reply = _reply_decoder.decode(data)
    return reply
