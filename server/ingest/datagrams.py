"""MPEG-TS from UDP datagrams, unicast or multicast, bare or inside RTP, as a file for libavformat.

The sender of the first datagram is the camera, others are ignored: two senders on one port would make one broken
stream. RTP's sequence numbers tell of every loss, without RTP the continuity counters of MPEG-TS have to do.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
from typing import Any

from server.ingest.mpegts import PACKET, SYNC, TransportStream
from server.ingest.network import Networks, Patience
from server.ingest.source import Reason, SourceError

_BUFFER_BYTES = 4 << 20
"""A 4K keyframe at once; the kernel may grant less (net.core.rmem_max)."""
_RTP_HEADER = 12


class Datagrams(TransportStream):
    """Opened anew for each connection."""

    def __init__(self, host: str, port: int, rtp: bool, networks: Networks) -> None:
        """`host`: a multicast group, an address of this machine, or "" for all of them."""
        super().__init__("udp")
        self._host, self._port = host, port
        self._rtp = rtp
        self._networks = networks
        self._patience = Patience()
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Listen. Raises SourceError."""
        self.shut()
        try:
            self._socket = _listen(self._host, self._port)
        except ValueError:
            raise SourceError(Reason.ERROR, "the host of a udp:// address is an IP address: a multicast group, one of "
                              "this machine, or none") from None  # fmt: skip
        except OSError as error:
            raise SourceError(Reason.ERROR, f"port {self._port} cannot be listened to: {error.strerror}") from None
        self._sender: Any = None
        self._refused = False
        self._sequence: int | None = None
        self.begin_anew()

    def allow_until(self, deadline: float, late: SourceError) -> None:
        self._patience.allow_until(deadline, late)

    def _datagram(self) -> bytes:
        while self._socket is not None:
            if packets := self._payload(self._socket):
                return packets
        return b""

    def shut(self) -> None:
        """Close the socket; `close` would be for ever."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """libavformat closes its files; the next connection opens this one again."""
        self.shut()

    def _payload(self, sock: socket.socket) -> bytes:
        if not select.select([sock], [], [], self._left_s())[0]:
            return b""
        try:
            data, sender = sock.recvfrom(65_536)
        except (BlockingIOError, ConnectionError):
            return b""
        if self._sender is None:
            if not self._networks.permits(sender[0]):
                self._refused = True
                return b""
        elif sender != self._sender:
            return b""
        packets = self._out_of_rtp(data) if self._rtp else data
        if len(packets) < PACKET or packets[0] != SYNC:
            if self._rtp and self._sender is None and len(data) >= _RTP_HEADER and data[0] >> 6 == 2:
                raise SourceError(Reason.CODEC, f"RTP without a session description can be MPEG-TS (payload type 33) "
                                  f"only, and this is of type {data[1] & 0x7F}")  # fmt: skip
            return b""
        self._sender = sender
        return packets[: len(packets) - len(packets) % PACKET]

    def _left_s(self) -> float:
        try:
            return self._patience.left_s()
        except SourceError as late:
            if self._sender is None and self._refused:
                raise SourceError(Reason.FORBIDDEN, "what comes is from a network where no camera may be") from None
            if self._sender is None:
                raise SourceError(late.reason, f"nothing comes on port {self._port}") from None
            raise

    def _out_of_rtp(self, data: bytes) -> bytes:
        """The payload of an RTP packet (RFC 3550); b"" if it is none."""
        if len(data) < _RTP_HEADER or data[0] >> 6 != 2:
            return b""
        begin = _RTP_HEADER + 4 * (data[0] & 0x0F)
        if data[0] & 0x10:
            if len(data) < begin + 4:
                return b""
            begin += 4 + 4 * struct.unpack_from("!H", data, begin + 2)[0]
        end = len(data) - (data[-1] if data[0] & 0x20 else 0)
        (sequence,) = struct.unpack_from("!H", data, 2)
        if self._sequence is not None:
            step = (sequence - self._sequence) & 0xFFFF
            if not 0 < step < 0x8000:
                return b""  # repeated, or so late that it counts as lost already
            self._missing += step - 1
        self._sequence = sequence
        return data[begin:end]


def _listen(host: str, port: int) -> socket.socket:
    """Raises OSError, or ValueError for what is no IP address."""
    address = ipaddress.ip_address(host) if host else None
    family = socket.AF_INET6 if address is not None and address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        multicast = address is not None and address.is_multicast
        if multicast:
            # Others on this machine may listen to the group as well. To a unicast port nobody else may.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        if address is not None and multicast:
            _join(sock, address.packed)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.setblocking(False)
        return sock
    except BaseException:
        sock.close()
        raise


def _join(sock: socket.socket, group: bytes) -> None:
    """On the interface that the routing table says."""
    if len(group) == 4:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4))
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + bytes(4))
