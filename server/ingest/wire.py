"""The contract between a camera's process and the server.

Two channels, both of which outlive a killed camera until they have been read to their end:

* **events**: a pipe, camera -> server, of fixed-size records. A write of one record is atomic (POSIX: at most
  PIPE_BUF), so a process killed at any instant leaves whole records only, and the ledger that applies them one by one
  balances after each. End of file means that the process is gone.
* **control**: a stream socket, both ways, of length-prefixed messages: settings, freed slots, state changes, pictures.
  End of file means to the camera that the server is gone, and it exits.

A frame's life in records: `OPEN(seq)` when its access unit has come out of the demuxer, then either
`DROP(seq, reason)` or `READY(seq, slot)`. From READY on the server owns the slot, until it answers `FREE(slot, seq)`.
All times are CLOCK_MONOTONIC seconds (one clock for all processes of a machine) unless a name says `unix`.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

_RECORD = struct.Struct("=BBHHHHHIQdddddff")
RECORD_BYTES = _RECORD.size
assert RECORD_BYTES <= 512, "POSIX promises atomic pipe writes up to 512 bytes"


class EventKind(enum.IntEnum):
    OPEN = 1
    DROP = 2
    READY = 3
    HEARTBEAT = 4
    """Once a second from the process's main loop, whatever the camera does: silence means a stopped or hung process.
    `input_width`: the input size for which frames are scaled from here on."""
    DECODE_ERROR = 5
    """`count` decoder complaints, `reason` says of which kind (index into DECODE_ERROR_KINDS)."""


class DropReason(enum.IntEnum):
    """Why a frame ended in the camera's process (stage `ingest`). Names are label values of the metrics."""

    RATE_LIMIT = 1
    """Above the stream's max_fps."""
    DAMAGED = 2
    """Packets of this very frame were lost or corrupt, or the decoder complained about it."""
    AWAITING_KEYFRAME = 3
    """It refers to frames that were lost: nothing is shown until the next clean keyframe."""
    DECODE_ERROR = 4
    OVERLOAD = 5
    """The decoder cannot keep up: access units were skipped up to the next keyframe."""
    NO_SLOT = 6
    """Every slot is held by the server."""
    DISCONNECTED = 7
    """Still inside the decoder when the connection ended or started anew."""
    STOPPED = 8
    NOT_SHOWN = 9
    """The decoder took the access unit and gave no picture for it (a second field, a frame not for output)."""


class DecodeErrorKind(enum.IntEnum):
    RTP_LOSS = 1
    """RTP packets that never came."""
    BITSTREAM = 2
    """The decoder reported errors in the data."""
    MISSING_REFERENCE = 3
    CODEC = 4
    """The decoder refused the data altogether."""
    HARDWARE = 5
    """A hardware decoder could not be had, or failed: software decodes instead."""


class Event(NamedTuple):
    """One record. Fields that a kind does not use keep their defaults."""

    kind: EventKind
    seq: int = 0
    reason: int = 0
    slot: int = 0
    source_width: int = 0
    source_height: int = 0
    input_width: int = 0
    input_height: int = 0
    count: int = 0  # type: ignore[assignment]  # hides tuple.count
    pts: float = math.nan
    """Presentation time in seconds of the stream's own clock."""
    arrived_at: float = 0.0
    """When the last packet of the access unit came off the wire."""
    ready_at: float = 0.0
    """When the letterboxed picture stood in its slot."""
    captured_unix: float = math.nan
    """Capture time by the camera's clock (RTCP sender reports), Unix seconds."""
    received_unix: float = 0.0
    """`arrived_at` on the wall clock."""
    arrival_uncertainty_s: float = 0.0
    """A parser may have held the frame for so long before `arrived_at`: the true arrival is up to so much earlier."""
    capture_uncertainty_s: float = math.nan

    def pack(self) -> bytes:
        return _RECORD.pack(
            self.kind, self.reason, self.slot, self.source_width, self.source_height, self.input_width,
            self.input_height, self.count, self.seq, self.pts, self.arrived_at, self.ready_at, self.captured_unix,
            self.received_unix, self.arrival_uncertainty_s, self.capture_uncertainty_s,
        )  # fmt: skip


def unpack_events(data: bytes) -> Iterator[Event]:
    """Events of a whole number of records. Unknown kinds raise ValueError: both ends are of one release."""
    for (kind, reason, slot, sw, sh, iw, ih, count, seq, pts, arrived, ready, captured, received, au, cu) in (
        _RECORD.iter_unpack(data)
    ):  # fmt: skip
        yield Event(EventKind(kind), seq, reason, slot, sw, sh, iw, ih, count, pts, arrived, ready, captured, received,
                    au, cu)  # fmt: skip


class Control(enum.IntEnum):
    """Kinds of control messages. Server -> camera below 100, camera -> server from 100 on."""

    FREE = 1
    """Payload: `pack_free`. The slot may be written again; `completed` tells whether the frame has a result."""
    SETTINGS = 2
    """Payload: JSON `CameraSettings`; what can change while running is applied, the rest means a reconnect."""
    ENCODE = 3
    """Payload: JSON `EncodeRequest`."""
    STOP = 4
    STATE = 100
    """Payload: JSON `StateChange`."""
    IMAGE = 101
    """Payload: u32 request id, then JPEG bytes (empty: there is no such picture)."""


_HEADER = struct.Struct("=IB")
_FREE = struct.Struct("=HQB")
_REQUEST_ID = struct.Struct("=I")
MAX_CONTROL_BYTES = 64 << 20


class CameraSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All that a camera's process is told. Holds credentials: never logged, `repr` hides them."""

    stream: str
    url: str
    """As given by the user, without user information."""
    username: str | None = None
    password: str | None = None
    transport: str = "auto"
    """tcp | udp | auto"""
    rtsp_client: str = "native"
    """native (RTP of our own) | libav"""
    max_fps: float | None = None
    loop: bool = False
    every_frame: bool = False
    """Files only: no frame is ever skipped; the reader waits for a free slot."""
    realtime: bool = True
    """Files only: paced by PTS, like a camera; False: as fast as slots come free."""
    input_size: int = 640
    """Long side of the model's input, pixels, a multiple of 32."""
    open_timeout_s: float = 5.0
    read_timeout_s: float = 5.0
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 30.0
    decoder: str = "auto"
    """auto | software | cuda | vaapi | qsv"""
    allow_networks: list[str] | None = None
    """CIDR: where the source may be; None: everywhere."""
    deny_networks: list[str] = []

    def __repr__(self) -> str:
        return f"CameraSettings(stream={self.stream!r})"


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a JPEG of a frame that the process still keeps."""

    id: int
    seq: int | None = None
    """A kept frame; None: the newest decoded one. `completed=True` with None: the newest that has a result."""
    completed: bool = False
    boxes: list[tuple[float, float, float, float, str]] = []
    """x1, y1, x2, y2 in source pixels and the text to draw."""
    quality: int = 85
    max_width: int | None = None
    """Pixels, of the cut-out where there is one."""
    crop: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2 in source pixels: only this part of the picture."""


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """Sent once for each change. `reason` is one of `server.ingest.source.Reason` or None."""

    state: str
    """connecting | running | backoff | stopped"""
    reason: str | None = None
    detail: str | None = None
    """One sentence for people; never holds credentials."""
    retry_in_s: float | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    """As the source states it."""
    transport: str | None = None
    decoder: str | None = None
    """software | cuda | qsv | ...: what decodes"""
    decoder_detail: str | None = None
    """Why it is not the one that was asked for."""
    client: str | None = None
    """native | libav | gstreamer"""


def pack_control(kind: Control, payload: bytes | msgspec.Struct = b"") -> bytes:
    """One message with its length prefix, ready for the socket."""
    if isinstance(payload, msgspec.Struct):
        payload = msgspec.json.encode(payload)
    return _HEADER.pack(len(payload), kind) + payload


def pack_free(slot: int, seq: int, completed: bool) -> bytes:
    return pack_control(Control.FREE, _FREE.pack(slot, seq, completed))


def unpack_free(payload: bytes) -> tuple[int, int, bool]:
    """(slot, seq, completed)"""
    slot, seq, completed = _FREE.unpack(payload)
    return slot, seq, bool(completed)


def pack_image(request_id: int, jpeg: bytes) -> bytes:
    return pack_control(Control.IMAGE, _REQUEST_ID.pack(request_id) + jpeg)


def unpack_image(payload: bytes) -> tuple[int, bytes]:
    """(request id, JPEG bytes)"""
    return _REQUEST_ID.unpack_from(payload)[0], payload[_REQUEST_ID.size :]


def decode_payload(payload: bytes, kind: type[Any]) -> Any:
    """A JSON payload as the struct `kind`; msgspec.ValidationError where it does not fit."""
    return msgspec.json.decode(payload, type=kind)


class ControlReader:
    """Cuts a byte stream into control messages. Feed whatever the socket gave; iterate over what is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Control, bytes]]:
        """Raises ValueError at a message longer than MAX_CONTROL_BYTES."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            length, kind = _HEADER.unpack_from(self._buffer)
            if length > MAX_CONTROL_BYTES:
                raise ValueError(f"control message of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Control(kind), payload
