"""H.264: was a reference picture lost in front of this access unit, without a trace?

Pure. libavcodec conceals such a loss in silence (a copy of the picture before takes the place of the missing one, noted
at debug level only), and what follows is wrong until the next keyframe. The stream itself tells: `frame_num` in the
slice headers counts reference pictures. H.265 needs nothing of the kind, its decoder complains about missing pictures.

Not seen: exactly 2^n reference pictures lost in a row (n is 4 and more), and losses in streams that allow gaps in
`frame_num`. A picture with memory management operation 5 would be taken for a loss; no camera is known to use it.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.ingest.nal import leading_units, nal_type
from server.ingest.rtsp.bits import Bits, SequenceInfo, h264_sequence, unescape

_SLICES = (1, 2, 5)
_IDR, _SPS, _PPS = 5, 7, 8
_SLICE_HEADER_BYTES = 24
"""`frame_num` ends within it, emulation prevention included."""


@dataclass(frozen=True, slots=True)
class _SliceHeader:
    idr: bool
    reference: bool
    frame_num: int
    sequence: SequenceInfo


class FrameNumbers:
    """Access units of one stream, Annex B, in decoding order; those that are skipped on purpose are left out."""

    def __init__(self, extradata: bytes = b"") -> None:
        """`extradata`: parameter sets that came out of band, Annex B."""
        self._sequences: dict[int, SequenceInfo] = {}
        self._sequence_of_picture_set: dict[int, int] = {}
        self._previous: int | None = None
        self.follows(extradata)

    def restart(self) -> None:
        """The next access unit is a keyframe after a loss: nothing is expected of it."""
        self._previous = None

    def follows(self, data: bytes) -> bool:
        """False if a reference picture is missing between the last access unit and this one. What cannot be read is
        left to the decoder: True."""
        try:
            header = self._first_slice(data)
        except EOFError:
            return True
        if header is None:
            return True
        previous = self._previous
        if header.idr or header.reference:
            self._previous = header.frame_num
        elif previous is None:
            return True
        if header.idr or previous is None or header.sequence.frame_num_gaps:
            return True
        expected = (previous + 1) % (1 << header.sequence.frame_num_bits)
        return header.frame_num in (previous, expected)

    def _first_slice(self, data: bytes) -> _SliceHeader | None:
        for nal in leading_units("h264", data):
            kind = nal_type("h264", nal)
            if kind in (_SPS, _PPS):
                self._remember(kind, nal)
            elif kind in _SLICES:
                return self._slice(nal[:_SLICE_HEADER_BYTES])
        return None

    def _remember(self, kind: int, nal: bytes) -> None:
        if kind == _SPS:
            sequence = h264_sequence(nal)
            if sequence is not None:
                self._sequences[sequence.id] = sequence
            return
        bits = Bits(unescape(nal[:_SLICE_HEADER_BYTES])[1:])
        identifier, sequence_id = bits.ue(), bits.ue()
        if identifier < 256:
            self._sequence_of_picture_set[identifier] = sequence_id

    def _slice(self, nal: bytes) -> _SliceHeader | None:
        bits = Bits(unescape(nal)[1:])
        bits.ue(), bits.ue()  # first macroblock, slice type
        sequence = self._sequences.get(self._sequence_of_picture_set.get(bits.ue(), -1))
        if sequence is None:
            return None
        if sequence.separate_planes:
            bits.u(2)
        return _SliceHeader(
            idr=nal_type("h264", nal) == _IDR,
            reference=bool(nal[0] & 0x60),
            frame_num=bits.u(sequence.frame_num_bits),
            sequence=sequence,
        )
