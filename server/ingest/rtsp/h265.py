"""H.265 out of RTP (RFC 7798): single NAL units, aggregation packets (AP) and fragmentation units (FU)."""

from __future__ import annotations

from server.ingest.rtsp.assembly import NalDepacketizer
from server.ingest.rtsp.bits import first_number, h265_sequence

_FIRST_IRAP, _LAST_IRAP, _LAST_SLICE = 16, 23, 31
_INDEPENDENT = frozenset((16, 17, 18, 19, 20))
"""BLA and IDR: nothing that is shown after them refers to anything before. After a CRA leading pictures may."""
_LAST_SUB_LAYER_NON_REFERENCE = 14
_VPS, _SPS, _PPS, _DELIMITER = 32, 33, 34, 35
_LAST_NAL_TYPE = 47
_AP, _FU, _PACI = 48, 49, 50


class H265Depacketizer(NalDepacketizer):
    """A start point is any IRAP picture (IDR, CRA, BLA)."""

    HEADER_BYTES = 2

    def __init__(self, parameter_sets: tuple[bytes, ...] = ()) -> None:
        self._sub_layers: int | None = None
        super().__init__(parameter_sets)

    def _depacketize(self, payload: memoryview) -> None:
        if len(payload) < self.HEADER_BYTES:
            self._malformed()
            return
        first = payload[0]
        kind = first >> 1 & 0x3F
        if first & 0x80:
            self._malformed()
        if kind == _FU:
            self._fragment(payload)
        elif kind <= _LAST_NAL_TYPE:
            self._add_nal(payload)
        elif kind == _AP:
            self._add_aggregated(payload[2:])
        elif kind == _PACI:
            self._refuse("H.265 PACI")
        # 51 to 63 are unspecified: ignored.

    def _fragment(self, payload: memoryview) -> None:
        if len(payload) < 3:
            self._malformed()
            return
        flags = payload[2]
        start, end = flags & 0x80, bool(flags & 0x40)
        header = payload[0] & 0x81 | (flags & 0x3F) << 1
        if not start:
            self._add_fragment(header, payload[3:], end)
        elif flags & 0x3F > _LAST_NAL_TYPE:
            self._malformed()
        elif end:  # a NAL unit in one fragment: forbidden, but clear enough
            self._add_nal(memoryview(bytes((header, payload[1])) + payload[3:]))
        else:
            self._begin_fragment(bytes((header, payload[1])), payload[3:])

    def _note(self, head: bytes) -> bool:
        kind = head[0] >> 1 & 0x3F
        if kind <= _LAST_SLICE:
            first = bool(head[2] & 0x80) if len(head) > 2 else None
            keyframe = _FIRST_IRAP <= kind <= _LAST_IRAP
            self._picture(first, kind in _INDEPENDENT, keyframe, self._is_reference(kind, (head[1] & 7) - 1))
            return False
        return kind in (_VPS, _SPS, _PPS)

    def _is_reference(self, kind: int, temporal_id: int) -> bool:
        """Even types up to 14 are not referred to within their sub-layer; pictures of higher sub-layers still may, so
        only in the highest one is such a picture referred to by none."""
        sub_layer_non_reference = kind <= _LAST_SUB_LAYER_NON_REFERENCE and kind % 2 == 0
        return not (sub_layer_non_reference and self._sub_layers is not None and temporal_id >= self._sub_layers - 1)

    def _inspect(self, nal: bytes) -> None:
        kind = nal[0] >> 1 & 0x3F
        if kind == _VPS and len(nal) > self.HEADER_BYTES:
            self._remember(kind, nal[2] >> 4, nal)
        elif kind == _PPS:
            self._remember(kind, first_number(nal, self.HEADER_BYTES), nal)
        elif kind == _SPS and (sequence := h265_sequence(nal)) is not None:
            self._sub_layers = sequence.sub_layers
            self._remember(kind, sequence.id, nal)

    def _is_delimiter(self, header: int) -> bool:
        return header >> 1 & 0x3F == _DELIMITER
