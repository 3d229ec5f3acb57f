"""RTP and RTCP packets of one camera track: headers around a clip's payloads, sender reports, goodbye.

Pure: numbers in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from server.testing.clip import PAYLOAD_TYPE, Payload

_HEADER = struct.Struct(">BBHII")
_VERSION = 0x80
_MARKER = 0x80
_NTP_EPOCH_OFFSET_S = 2_208_988_800
_RTCP_SENDER_REPORT = 200
_RTCP_SDES = 202
_RTCP_BYE = 203
_SDES_CNAME = 1
_CNAME = b"camera"


class Track:
    """The state of an RTP sender. All clients of a mount receive the same packets, as from a multicast camera."""

    def __init__(self, ssrc: int, sequence: int, timestamp: int) -> None:
        """`sequence` is that of the first packet; `timestamp` is added to every frame's ticks."""
        self.ssrc = ssrc
        self.sequence = sequence & 0xFFFF
        self._base = timestamp
        self._packets = 0
        self._octets = 0

    def timestamp(self, ticks: int) -> int:
        """The RTP timestamp that stands for `ticks` of the camera's 90 kHz clock."""
        return (self._base + ticks) & 0xFFFFFFFF

    def packets(self, payloads: Iterable[Payload], ticks: int) -> list[bytes]:
        """The next packets, all with the timestamp of `ticks`."""
        timestamp = self.timestamp(ticks)
        out = []
        for payload in payloads:
            kind = PAYLOAD_TYPE | (_MARKER if payload.marker else 0)
            out.append(_HEADER.pack(_VERSION, kind, self.sequence, timestamp, self.ssrc) + payload.data)
            self.sequence = (self.sequence + 1) & 0xFFFF
            self._packets += 1
            self._octets += len(payload.data)
        return out

    def sender_report(self, unix: float, ticks: int) -> bytes:
        """SR and SDES: at the wall clock's `unix` (seconds) the camera's clock stood at `ticks`."""
        ntp = unix + _NTP_EPOCH_OFFSET_S
        seconds = int(ntp)
        fraction = min(int((ntp - seconds) * 2**32), 2**32 - 1)
        report = struct.pack(
            ">BBHIIIIII", _VERSION, _RTCP_SENDER_REPORT, 6, self.ssrc, seconds, fraction, self.timestamp(ticks),
            self._packets & 0xFFFFFFFF, self._octets & 0xFFFFFFFF,
        )  # fmt: skip
        item = bytes((_SDES_CNAME, len(_CNAME))) + _CNAME + b"\x00"
        item += b"\x00" * (-len(item) % 4)
        return report + struct.pack(">BBHI", _VERSION | 1, _RTCP_SDES, 1 + len(item) // 4, self.ssrc) + item

    def bye(self, unix: float, ticks: int) -> bytes:
        """A compound of sender report and BYE: a BYE by itself is no valid compound, and receivers ignore it."""
        return self.sender_report(unix, ticks) + struct.pack(">BBHI", _VERSION | 1, _RTCP_BYE, 1, self.ssrc)


def interleave(channel: int, packets: Iterable[bytes]) -> bytes:
    """Packets framed for the RTSP connection."""
    return b"".join(b"$" + struct.pack(">BH", channel, len(packet)) + packet for packet in packets)
