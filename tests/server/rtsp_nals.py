"""NAL units and their packetisation by hand, for tests of the depacketisers."""

from __future__ import annotations

import itertools

from server.ingest.rtsp.assembly import CodedUnit, NalDepacketizer
from server.ingest.rtsp.rtp import RtpPacket

START = b"\0\0\0\1"
SPS = bytes.fromhex("6742c01fda014016e840000003004000000c83c60ca8")  # 1280x720
PPS = bytes.fromhex("68ce0fc8")
VPS5 = bytes.fromhex("40010c01ffff01600000030090000003000003005d959809")
SPS5 = bytes.fromhex("42010101600000030090000003000003005da00280802d165959a4932b9a020000030002000003003210")
PPS5 = bytes.fromhex("4401c172b46240")
RECOVERY = bytes.fromhex("060101320503aabbcc0601c480")  # pic timing (1), user data (5), recovery point (6)


def annexb(*nals: bytes) -> bytes:
    return b"".join(START + nal for nal in nals)


def idr(body: bytes = b"idr") -> bytes:
    return b"\x65\x88" + body


def inter(body: bytes = b"p", first: bool = True, reference: bool = True) -> bytes:
    return bytes([0x41 if reference else 0x01, 0x9A if first else 0x2A]) + body


def fragments(nal: bytes, *cuts: int) -> list[bytes]:
    """FU-A payloads of an H.264 NAL unit, cut at these positions of its body."""
    body = nal[1:]
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
    last = len(pieces) - 1
    return [
        bytes([nal[0] & 0xE0 | 28, (0x80 if i == 0 else 0) | (0x40 if i == last else 0) | nal[0] & 0x1F]) + piece
        for i, piece in enumerate(pieces)
    ]


def stap(*nals: bytes) -> bytes:
    return b"\x78" + b"".join(len(nal).to_bytes(2, "big") + nal for nal in nals)


class Feed:
    """Pushes payloads with a running sequence number; `lose` skips some."""

    def __init__(self, depacketizer: NalDepacketizer) -> None:
        self.depacketizer = depacketizer
        self.sequence = 0
        self.lost = 0

    def lose(self, count: int = 1) -> None:
        self.lost += count

    def push(self, payload: bytes, timestamp: int, marker: bool = False, restarted: bool = False) -> list[CodedUnit]:
        self.sequence += 1 + self.lost
        packet = RtpPacket(marker, 96, self.sequence, timestamp, 1, memoryview(payload), float(self.sequence))
        lost, self.lost = self.lost, 0
        return self.depacketizer.push(packet, lost, restarted)

    def all(self, payloads: list[bytes], timestamp: int) -> list[CodedUnit]:
        """The payloads of one access unit, the last with the marker."""
        last = len(payloads) - 1
        return [unit for i, payload in enumerate(payloads) for unit in self.push(payload, timestamp, i == last)]


def nal5(kind: int, body: bytes = b"body", first: bool = True, temporal_id: int = 0) -> bytes:
    return bytes([kind << 1, temporal_id + 1, 0x80 if first else 0x00]) + body


def fragments5(nal: bytes, *cuts: int) -> list[bytes]:
    body, kind = nal[2:], nal[0] >> 1 & 0x3F
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
    last = len(pieces) - 1
    head = bytes([nal[0] & 0x81 | 49 << 1, nal[1]])
    return [
        head + bytes([(0x80 if i == 0 else 0) | (0x40 if i == last else 0) | kind]) + piece
        for i, piece in enumerate(pieces)
    ]


def aggregate5(*nals: bytes) -> bytes:
    return bytes([48 << 1, 1]) + b"".join(len(nal).to_bytes(2, "big") + nal for nal in nals)
