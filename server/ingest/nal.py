"""NAL units in front of the picture of an access unit (H.264, H.265; Annex B): parameter sets and the slice header.

Pure. Nothing behind the first slice is looked at, so this costs microseconds, whatever the picture weighs.
"""

from __future__ import annotations

from collections.abc import Iterator

from server.ingest.rtsp.bits import first_number, h264_sequence, h265_sequence

START_CODE = b"\x00\x00\x01"
_SET_BYTES = 4096
_LARGEST_ID = 255

_H264_SLICES = (1, 2, 5)
_H264_SETS = (7, 8)
_H265_LAST_SLICE = 31
_H265_SETS = (32, 33, 34)


def nal_type(codec: str, nal: bytes) -> int:
    """`codec`: h264 | hevc."""
    return nal[0] & 0x1F if codec == "h264" else nal[0] >> 1 & 0x3F


def leading_units(codec: str, data: bytes) -> Iterator[bytes]:
    """NAL units without start codes, up to and with the first slice; each cut off after 4 KiB."""
    begin = data.find(START_CODE)
    while 0 <= begin < len(data) - len(START_CODE) - 1:
        begin += len(START_CODE)
        kind = nal_type(codec, data[begin : begin + 1])
        if kind in _H264_SLICES if codec == "h264" else kind <= _H265_LAST_SLICE:
            yield data[begin : begin + _SET_BYTES]
            return
        end = data.find(START_CODE, begin)
        unit = data[begin : min(end if end >= 0 else len(data), begin + _SET_BYTES)].rstrip(b"\x00")
        if unit:
            yield unit
        begin = end


class ParameterSets:
    """The newest parameter sets of a stream, for a decoder that has to start anew."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._codec = codec
        self._sets: dict[tuple[int, int], bytes] = {}
        self.remember(extradata)

    def remember(self, data: bytes) -> None:
        """Take over the sets in an access unit."""
        for nal in leading_units(self._codec, data):
            kind = nal_type(self._codec, nal)
            if kind in (_H264_SETS if self._codec == "h264" else _H265_SETS):
                identifier = self._identifier(kind, nal)
                if identifier is not None and identifier <= _LARGEST_ID:
                    self._sets[kind, identifier] = nal

    def extradata(self) -> bytes:
        """All of them, Annex B, in the order in which decoders want them."""
        return b"".join(START_CODE + self._sets[key] for key in sorted(self._sets))

    def _identifier(self, kind: int, nal: bytes) -> int | None:
        if kind in (7, 33):
            sequence = h264_sequence(nal) if kind == 7 else h265_sequence(nal)
            return None if sequence is None else sequence.id
        if kind == 32:
            return nal[2] >> 4 if len(nal) > 2 else None
        return first_number(nal, 1 if kind == 8 else 2)


def is_reference(codec: str, data: bytes) -> bool:
    """Whether other frames may refer to this access unit. H.265 tells less, so there always True."""
    if codec != "h264":
        return True
    for nal in leading_units(codec, data):
        if nal_type(codec, nal) in _H264_SLICES:
            return bool(nal[0] & 0x60)
    return True
