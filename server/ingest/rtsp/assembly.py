"""From RTP packets in order to whole access units, and what H.264 and H.265 have in common in that.

Pure. An access unit is complete when its last packet, the one with the marker bit, is there; for cameras that never
set it, when the next time stamp begins. Both give the arrival of the last packet, the latter one frame late.

What counts as damaged: an access unit with a gap inside, one whose beginning may be missing, and the first one after
a gap that may have swallowed whole units. An IDR picture is the exception: it refers to nothing before it, so it is
clean if it visibly begins after the gap (its first slice, and as many parameter sets as any IDR before it had).
A keyframe called damaged costs a whole group of pictures, so this is worth knowing exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from server.ingest.rtsp.rtp import RtpPacket

START_CODE = b"\x00\x00\x00\x01"
MAX_UNIT_BYTES = 16 << 20
"""Ten times the keyframes of 4K cameras; a peer that never ends its frame gets no further."""
MAX_SET_BYTES = 4096
MAX_UNSUPPORTED = 8
"""Packets of an unsupported kind before the stream is given up; single ones are corruption."""

_PART_OVERHEAD_BYTES = 128
"""What a part costs in memory beyond its data, so that tiny fragments are bounded as well."""
_NO_FRAGMENT = -1

SetKey = tuple[int, int]
"""NAL type and id of a parameter set: sorted, this is the order in which decoders want them."""


class UnsupportedPacket(Exception):
    """The camera packetises in a way that we do not support; the text names it."""


@dataclass(frozen=True, slots=True)
class CodedUnit:
    """One access unit as Annex B with what its packets told."""

    data: bytes
    timestamp: int
    """RTP time stamp."""
    arrived_at: float
    """Monotonic seconds, of the last packet."""
    keyframe: bool
    reference: bool
    damaged: bool
    lost: int


@dataclass(slots=True)
class _Draft:
    """The access unit that is being received."""

    timestamp: int | None = None
    arrived_at: float = 0.0
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    has_picture: bool = False
    """A slice was seen. Until then what there is belongs in front of the next picture."""
    begins: bool | None = None
    """The first slice is the picture's first one; None: not seen, or it cannot be told."""
    idr: bool = False
    keyframe: bool = False
    reference: bool = True
    damaged: bool = False
    sets: set[SetKey] = field(default_factory=set)
    """Parameter sets that it carries itself."""
    fragment: int = _NO_FRAGMENT
    """First header byte of the NAL unit whose fragments are coming."""
    inspected_from: int | None = None
    """Where in `parts` a fragmented NAL unit begins that has to be looked at as a whole."""


class Depacketizer(Protocol):
    """Packets of one stream in their order in, access units out. Constructed with the parameter sets of the SDP."""

    def push(self, packet: RtpPacket, lost: int = 0, restarted: bool = False) -> list[CodedUnit]:
        """Access units that are complete now. `lost`, `restarted`: see Delivery. Raises UnsupportedPacket."""
        ...

    def flush(self) -> list[CodedUnit]:
        """The access unit that the end of the stream cut off, as damaged."""
        ...


class NalDepacketizer(ABC):
    """What the depacketisers of H.264 and H.265 share; it knows packets, gaps and NAL units, they know the layouts."""

    HEADER_BYTES: int
    """Length of a NAL unit header."""

    def __init__(self, parameter_sets: tuple[bytes, ...] = ()) -> None:
        self._draft = _Draft()
        self._sets: dict[SetKey, bytes] = {}
        self._usual_sets = 0
        """The most parameter sets inside an IDR so far."""
        self._lost = 0
        """Packets lost since the last unit."""
        self._suspect = False
        """A gap lies between the last unit and the draft's first slice."""
        self._joining = True
        """No unit has come out yet: the camera may have begun to send in the middle of one."""
        self._marker_ends_unit = True
        self._last_timestamp: int | None = None
        self._unsupported_packets = 0
        for nal in parameter_sets:
            self._inspect(nal)
        self._draft = _Draft()

    def push(self, packet: RtpPacket, lost: int = 0, restarted: bool = False) -> list[CodedUnit]:
        """At most the unit before this packet and the one that it ends."""
        done: list[CodedUnit] = []
        draft = self._draft
        gap = restarted or lost > 0
        if gap:
            self._note_gap(lost, packet.timestamp)
        if restarted or packet.timestamp != draft.timestamp:
            if draft.has_picture:
                done.append(self._finish())
                self._suspect = gap
            else:
                self._end_without_picture()
            draft = self._draft
            draft.timestamp = packet.timestamp
        if packet.arrived_at > draft.arrived_at:
            draft.arrived_at = packet.arrived_at
        if packet.payload:
            self._depacketize(packet.payload)
        if packet.marker:
            if not draft.has_picture:
                self._end_without_picture()
            elif self._marker_ends_unit:
                done.append(self._finish())
        return done

    def flush(self) -> list[CodedUnit]:
        if not self._draft.has_picture:
            return []
        self._draft.damaged = True
        return [self._finish()]

    # For the codecs ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _depacketize(self, payload: memoryview) -> None:
        """Take a payload of at least one byte apart: `_add_nal`, `_begin_fragment`, `_add_fragment`, `_malformed`."""

    @abstractmethod
    def _note(self, head: bytes) -> bool:
        """Look at the header of a NAL unit, with at most one byte behind it, and call `_picture` for slices. True if
        `_inspect` wants the whole NAL unit."""

    @abstractmethod
    def _inspect(self, nal: bytes) -> None:
        """Look at a whole NAL unit: `_remember` parameter sets, `_start_point`."""

    @abstractmethod
    def _is_delimiter(self, header: int) -> bool:
        """Whether a NAL unit with this first byte is an access unit delimiter, which has to stay in front."""

    def _add_nal(self, nal: memoryview) -> None:
        """A whole NAL unit. Empty ones are left out."""
        if len(nal) < self.HEADER_BYTES:
            if nal:
                self._malformed()
            return
        self._draft.fragment = _NO_FRAGMENT
        whole = bytes(nal)
        if self._note(whole[: self.HEADER_BYTES + 1]):
            self._inspect(whole)
        self._append(START_CODE, whole)

    def _add_aggregated(self, payload: memoryview) -> None:
        """NAL units with 16-bit sizes in front."""
        position, size = 0, len(payload)
        while position + 2 <= size:
            end = position + 2 + (payload[position] << 8 | payload[position + 1])
            if end > size:
                break
            self._add_nal(payload[position + 2 : end])
            position = end
        if position != size:
            self._malformed()

    def _begin_fragment(self, header: bytes, body: memoryview) -> None:
        draft = self._draft
        data = bytes(body)
        draft.fragment = header[0]
        draft.inspected_from = len(draft.parts) if self._note(header + data[:1]) else None
        self._append(START_CODE + header, data)

    def _add_fragment(self, first_header_byte: int, body: memoryview, last: bool) -> None:
        draft = self._draft
        if draft.fragment != first_header_byte:
            self._malformed()
            return
        self._append(bytes(body))
        if last:
            draft.fragment = _NO_FRAGMENT
            if draft.inspected_from is not None and draft.size <= MAX_UNIT_BYTES:
                self._inspect(b"".join(draft.parts[draft.inspected_from :])[len(START_CODE) :])

    def _malformed(self) -> None:
        """This packet, or one before it, is not what it should be."""
        self._draft.damaged = True
        self._draft.fragment = _NO_FRAGMENT

    def _refuse(self, name: str) -> None:
        """A packet of a kind that we know and do not support."""
        self._malformed()
        self._unsupported_packets += 1
        if self._unsupported_packets >= MAX_UNSUPPORTED:
            raise UnsupportedPacket(f"the camera sends {name} packets, which are not supported")

    def _picture(self, first: bool | None, idr: bool, keyframe: bool, reference: bool) -> None:
        """A slice. `first`: whether it is the first of its picture; None: cannot be told."""
        draft = self._draft
        if draft.has_picture:
            draft.reference = draft.reference or reference
            return
        draft.has_picture = True
        draft.begins, draft.idr, draft.reference = first, idr, reference
        draft.keyframe = draft.keyframe or keyframe

    def _start_point(self) -> None:
        """Decoding can start at the next picture, although its slices do not say so."""
        if not self._draft.has_picture:
            self._draft.keyframe = True

    def _remember(self, kind: int, identifier: int | None, nal: bytes) -> None:
        if identifier is not None and identifier < 256 and len(nal) <= MAX_SET_BYTES:
            self._sets[kind, identifier] = nal
            self._draft.sets.add((kind, identifier))

    # The rules --------------------------------------------------------------------------------------------------

    def _note_gap(self, lost: int, timestamp: int) -> None:
        self._lost += lost
        self._draft.fragment = _NO_FRAGMENT
        if self._draft.has_picture or self._draft.timestamp == timestamp:
            self._draft.damaged = True
        else:
            self._discard()

    def _end_without_picture(self) -> None:
        """A unit ends of which no slice was seen: parameter sets sent ahead, or the scraps that a loss left."""
        if self._draft.damaged:
            self._discard()

    def _discard(self) -> None:
        """Forget a unit without a picture (but not the parameter sets in it). The next one has to tell of it."""
        self._draft = _Draft()
        self._suspect = True

    def _append(self, *parts: bytes) -> None:
        draft = self._draft
        for part in parts:
            draft.size += len(part) + _PART_OVERHEAD_BYTES
        if draft.size > MAX_UNIT_BYTES:
            draft.damaged = True
        else:
            draft.parts += parts

    def _finish(self) -> CodedUnit:
        draft = self._draft
        timestamp = draft.timestamp or 0
        if draft.begins is False:
            if not self._suspect and not draft.damaged and timestamp == self._last_timestamp:
                # The rest of a picture whose beginning had a marker bit: this camera sets it on every slice.
                self._marker_ends_unit = False
            draft.damaged = True
        # Before the first unit of a connection there is nothing that could be missing: it only has to begin visibly.
        independent = draft.idr or self._joining
        visible = draft.begins is True and len(draft.sets) >= self._usual_sets
        if (self._suspect and not (independent and visible)) or (self._joining and not draft.begins):
            draft.damaged = True
        if draft.idr:
            self._usual_sets = max(self._usual_sets, len(draft.sets))
        if not draft.damaged:
            self._unsupported_packets = 0
        unit = CodedUnit(
            data=self._joined(draft),
            timestamp=timestamp,
            arrived_at=draft.arrived_at,
            keyframe=draft.keyframe,
            reference=draft.reference,
            damaged=draft.damaged,
            lost=self._lost,
        )
        self._draft = _Draft()
        self._last_timestamp = timestamp
        self._lost = 0
        self._suspect = self._joining = False
        return unit

    def _joined(self, draft: _Draft) -> bytes:
        """The unit as bytes; keyframes get the parameter sets that they do not carry."""
        data = b"".join(draft.parts)
        if not draft.keyframe or self._sets.keys() == draft.sets:
            return data
        sets = b"".join(START_CODE + self._sets[key] for key in sorted(self._sets))
        front = 0
        if len(data) > len(START_CODE) and self._is_delimiter(data[len(START_CODE)]):
            front = max(0, data.find(START_CODE, len(START_CODE)))
        return data[:front] + sets + data[front:]
