"""What a source is: it opens, and yields access units until it ends or fails. It never retries.

Retrying, decoding, pacing and slots live elsewhere (`camera`, `decoder`), so a source is small and can be tested alone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Reason(enum.StrEnum):
    """Why a source is not delivering. Values are part of the REST contract."""

    AUTH = "auth"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    """The name does not resolve, or there is no route."""
    FORBIDDEN = "forbidden"
    """Its address is in a network where the server's settings allow no camera."""
    TIMEOUT = "timeout"
    """No answer while opening."""
    STALLED = "stalled"
    """It was delivering and went silent for longer than the read time-out."""
    ENDED = "ended"
    CODEC = "codec"
    """No video, or a codec that is not supported."""
    DECODE = "decode"
    PROTOCOL = "protocol"
    """The peer does not speak the protocol."""
    PROCESS_LOST = "process_lost"
    ERROR = "error"


class SourceError(Exception):
    """A source could not be opened or broke. `detail` is one sentence for people and never holds credentials."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What the source says of its video. Width, height and fps may be unknown (0) until frames are decoded."""

    codec: str
    """FFmpeg's name: h264, hevc, mjpeg, ..."""
    extradata: bytes = b""
    """Out-of-band parameter sets for the decoder (H.264, H.265: Annex B)."""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    transport: str | None = None
    client: str = "libav"
    live: bool = True
    """A camera: paced by itself, low delay. False: a file that can wait for us."""
    rotation: int = 0
    """Degrees counter-clockwise (0, 90, 180, 270) by which pictures are to be turned; known to the container only."""
    pixel_format: str = ""
    """FFmpeg's name, where the pictures are not coded (rawvideo)."""


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One coded frame, whole, as it came off the wire."""

    data: bytes
    """H.264, H.265: Annex B."""
    pts: float | None
    """Seconds on the stream's own clock."""
    arrived_at: float
    """CLOCK_MONOTONIC seconds when its last packet was read from the socket."""
    received_unix: float
    """The same instant on the wall clock."""
    keyframe: bool
    """Decoding can start here (IDR, CRA/BLA, recovery point)."""
    reference: bool = True
    """Other frames may refer to it; False only if the bitstream says so."""
    damaged: bool = False
    """Packets of this access unit, or of units before it that left no trace, are missing."""
    lost_packets: int = 0
    """RTP packets known to be lost since the access unit before."""
    arrival_uncertainty_s: float = 0.0
    captured_unix: float | None = None
    capture_uncertainty_s: float | None = None
    discontinuity: bool = False
    """It does not continue the units before it (a file that begins anew): the decoder gives out what it holds first."""


class Source(Protocol):
    """Used by one thread. `close` is called by the same thread and returns within a second."""

    def open(self) -> StreamInfo:
        """Connect. Raises SourceError within the open time-out."""
        ...

    def units(self) -> Iterator[AccessUnit | None]:
        """Access units in decoding order; None at least once a second while nothing comes (a tick: look at stop flags).

        Ends when the source ends in order; raises SourceError(STALLED) once the read time-out has passed in silence.
        """
        ...

    def close(self) -> None: ...
