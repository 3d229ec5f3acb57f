"""Motion JPEG out of RTP (RFC 2435): fragments of the entropy-coded data, and headers made anew for each picture.

Every picture stands for itself, so a loss concerns nothing but the picture it is in.
"""

from __future__ import annotations

import functools

from server.ingest.rtsp.assembly import MAX_UNIT_BYTES, MAX_UNSUPPORTED, CodedUnit, UnsupportedPacket
from server.ingest.rtsp.rtp import RtpPacket

_FIRST_RESTART_TYPE, _LAST_TYPE = 64, 127
_SAMPLING = {0: 0x21, 1: 0x22}
"""RTP type (without the restart bit) -> sampling factors of the luminance: 4:2:2, 4:2:0."""
_END_OF_IMAGE = b"\xff\xd9"
_MAX_FRAGMENTS = 65_536

# ITU-T T.81 annex K: quantisation (luminance, chrominance; zigzag order) ...
_QUANTIZERS = tuple(
    bytes.fromhex(table)
    for table in (
        "100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a333d3c3933383740485c4e404457453738506d51575f62676867"
        "3e4d71797064785c656763",
        "1112121815182f1a1a2f63423842636363636363" + 44 * "63",
    )
)  # fmt: skip
# ... and Huffman tables, each with its class and number, as in a DHT segment.
_HUFFMAN = tuple(
    bytes.fromhex(table)
    for table in (
        "0000010501010101010100000000000000000102030405060708090a0b",
        "100002010303020403050504040000017d01020300041105122131410613516107227114328191a1082342b1c11552d1f0243362"
        "7282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a636465666768696a737475767778"
        "797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7"
        "d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
        "0100030101010101010101010000000000000102030405060708090a0b",
        "1100020102040403040705040400010277000102031104052131061241510761711322328108144291a1b1c109233352f0156272"
        "d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a636465666768696a7374757677"
        "78797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5"
        "d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
    )
)


class JpegDepacketizer:
    """Access units are whole JPEG files."""

    def __init__(self, parameter_sets: tuple[bytes, ...] = ()) -> None:
        self._tables: dict[int, tuple[bytes, ...]] = {}
        """Quantisation tables that were sent, by Q."""
        self._lost = 0
        self._unsupported_packets = 0
        self._parts: list[bytes] = []
        """The header and the fragments of the picture that is being received; empty until its beginning has come."""
        self._size = 0
        """Of the fragments: the offset that the next one has to have."""
        self._damaged = False
        self._timestamp: int | None = None
        self._arrived_at = 0.0

    def push(self, packet: RtpPacket, lost: int = 0, restarted: bool = False) -> list[CodedUnit]:
        done: list[CodedUnit] = []
        self._lost += lost
        if lost or restarted:
            self._damaged = True
        if restarted or packet.timestamp != self._timestamp:
            # Without its marker bit a picture has no visible end: a camera that never sets it gets no further.
            done += self._finish(damaged=True)
            self._timestamp = packet.timestamp
        self._arrived_at = max(self._arrived_at, packet.arrived_at)
        self._add(packet.payload)
        if packet.marker:
            done += self._finish(damaged=False)
        return done

    def flush(self) -> list[CodedUnit]:
        return self._finish(damaged=True)

    def _add(self, payload: memoryview) -> None:
        if len(payload) < 8:
            self._damaged = True
            return
        offset = int.from_bytes(payload[1:4], "big")
        kind, quality, position = payload[4], payload[5], 8
        restarts = 0
        if _FIRST_RESTART_TYPE <= kind <= _LAST_TYPE:
            restarts = int.from_bytes(payload[8:10], "big")
            position += 4
        if offset == 0:
            sampling = _SAMPLING.get(kind % _FIRST_RESTART_TYPE if kind <= _LAST_TYPE else kind)
            tables, position = self._quantizers(payload, position, quality)
            if sampling is None or payload[6] == 0 or payload[7] == 0:
                self._refuse(f"JPEG type {kind} of {8 * payload[6]}x{8 * payload[7]} pixels")
                return
            if tables is None:
                self._damaged = True
                return
            # The beginning is here, so nothing that was lost before concerns this picture.
            self._damaged = False
            self._parts = [_header(8 * payload[6], 8 * payload[7], sampling, restarts, tables)]
            self._size = 0
        body = bytes(payload[position:])
        if offset != self._size or not self._parts or len(self._parts) > _MAX_FRAGMENTS or offset > MAX_UNIT_BYTES:
            self._damaged = True
            return
        self._parts.append(body)
        self._size += len(body)

    def _quantizers(self, payload: memoryview, position: int, quality: int) -> tuple[tuple[bytes, ...] | None, int]:
        """(tables for luminance and chrominance, position behind them); None if they have not been sent."""
        if 1 <= quality <= 99:
            return tuple(_scaled(table, quality) for table in _QUANTIZERS), position
        if quality < 128 or len(payload) < position + 4:
            return None, position
        precision, length = payload[position + 1], int.from_bytes(payload[position + 2 : position + 4], "big")
        position += 4
        if length:
            data = bytes(payload[position : position + length])
            # One table of 64 bytes for all components, or one for each; 16-bit tables do not exist in baseline JPEG.
            if precision & 3 or length not in (64, 128) or len(data) < length:
                return None, position
            tables = (data[:64], data[-64:])
            if quality != 255:
                self._tables[quality] = tables
            return tables, position + length
        return self._tables.get(quality), position

    def _refuse(self, name: str) -> None:
        self._damaged = True
        self._unsupported_packets += 1
        if self._unsupported_packets >= MAX_UNSUPPORTED:
            raise UnsupportedPacket(f"the camera sends {name}, which is not supported")

    def _finish(self, damaged: bool) -> list[CodedUnit]:
        if not self._parts:
            self._forget()
            return []
        data = b"".join(self._parts)
        if not data.endswith(_END_OF_IMAGE):
            data += _END_OF_IMAGE
        damaged = damaged or self._damaged
        if not damaged:
            self._unsupported_packets = 0
        unit = CodedUnit(
            data=data,
            timestamp=self._timestamp or 0,
            arrived_at=self._arrived_at,
            keyframe=True,
            reference=False,
            damaged=damaged,
            lost=self._lost,
        )
        self._lost = 0
        self._forget()
        return [unit]

    def _forget(self) -> None:
        self._parts = []
        self._size = 0
        self._damaged = False
        self._timestamp = None
        self._arrived_at = 0.0


@functools.cache
def _scaled(table: bytes, quality: int) -> bytes:
    """RFC 2435 4.2: the tables of annex K by a factor, as libjpeg does it."""
    factor = 5000 // quality if quality < 50 else 200 - 2 * quality
    return bytes(min(max((value * factor + 50) // 100, 1), 255) for value in table)


def _header(width: int, height: int, sampling: int, restarts: int, tables: tuple[bytes, ...]) -> bytes:
    """Everything before the entropy-coded data."""
    segments = [(0xDB, bytes((number,)) + table) for number, table in enumerate(tables)]
    if restarts:
        segments.append((0xDD, restarts.to_bytes(2, "big")))
    frame = bytes((8, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), 3, 1, sampling, 0, 2, 0x11, 1, 3, 0x11, 1))
    segments.append((0xC0, frame))
    segments += [(0xC4, table) for table in _HUFFMAN]
    segments.append((0xDA, bytes((3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0))))
    return b"\xff\xd8" + b"".join(
        bytes((0xFF, marker)) + (len(data) + 2).to_bytes(2, "big") + data for marker, data in segments
    )
