"""H.264 out of RTP (RFC 6184): single NAL units, STAP-A and FU-A."""

from __future__ import annotations

from server.ingest.rtsp.assembly import NalDepacketizer
from server.ingest.rtsp.bits import first_number, h264_sequence, has_recovery_point

_SLICE, _PARTITION_A, _IDR, _SEI, _SPS, _PPS, _DELIMITER = 1, 2, 5, 6, 7, 8, 9
_LAST_NAL_TYPE = 23
_STAP_A, _FU_A = 24, 28
_UNSUPPORTED = {25: "STAP-B", 26: "MTAP16", 27: "MTAP24", 29: "FU-B"}


class H264Depacketizer(NalDepacketizer):
    """A start point is an IDR picture or one with a recovery point SEI (streams with intra refresh have no IDR)."""

    HEADER_BYTES = 1

    def _depacketize(self, payload: memoryview) -> None:
        indicator = payload[0]
        kind = indicator & 0x1F
        if indicator & 0x80:
            self._malformed()
        if kind == _FU_A:
            self._fragment(indicator, payload)
        elif 1 <= kind <= _LAST_NAL_TYPE:
            self._add_nal(payload)
        elif kind == _STAP_A:
            self._add_aggregated(payload[1:])
        elif kind in _UNSUPPORTED:
            self._refuse(f"H.264 {_UNSUPPORTED[kind]}")
        # 0, 30 and 31 are undefined: receivers ignore them (RFC 6184 5.2).

    def _fragment(self, indicator: int, payload: memoryview) -> None:
        if len(payload) < 2:
            self._malformed()
            return
        flags = payload[1]
        start, end = flags & 0x80, bool(flags & 0x40)
        header = indicator & 0xE0 | flags & 0x1F
        if not start:
            self._add_fragment(header, payload[2:], end)
        elif not 1 <= flags & 0x1F <= _LAST_NAL_TYPE:
            self._malformed()
        elif end:  # a NAL unit in one fragment: forbidden, but clear enough
            self._add_nal(memoryview(bytes((header,)) + payload[2:]))
        else:
            self._begin_fragment(bytes((header,)), payload[2:])

    def _note(self, head: bytes) -> bool:
        kind = head[0] & 0x1F
        if 1 <= kind <= _IDR:
            # first_mb_in_slice is an Exp-Golomb number: 0 is the single bit 1.
            told = len(head) > 1 and kind in (_SLICE, _PARTITION_A, _IDR)
            idr = kind == _IDR
            self._picture(bool(head[1] & 0x80) if told else None, idr, idr, bool(head[0] & 0x60))
            return False
        return kind in (_SEI, _SPS, _PPS)

    def _inspect(self, nal: bytes) -> None:
        kind = nal[0] & 0x1F
        if kind == _SPS:
            sequence = h264_sequence(nal)
            self._remember(kind, sequence.id if sequence else None, nal)
        elif kind == _PPS:
            self._remember(kind, first_number(nal, self.HEADER_BYTES), nal)
        elif kind == _SEI and has_recovery_point(nal):
            self._start_point()

    def _is_delimiter(self, header: int) -> bool:
        return header & 0x1F == _DELIMITER
