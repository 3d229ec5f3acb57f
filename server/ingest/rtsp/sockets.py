"""The sockets of an RTSP session: one stream (TCP, TLS) and, for UDP, a pair of datagram sockets.

All are non-blocking; `client` and `source` wait with a selector. Linux stamps packets as they arrive (SO_TIMESTAMPNS),
for TCP as well as for UDP, so a busy machine delays our reading but not what we believe to be the time of arrival.
Where there is no stamp (TLS) the time after the read counts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import struct
import time
from typing import NamedTuple

from server.ingest import network
from server.ingest.clocks import instant
from server.ingest.network import ANYWHERE, Networks, tls_context
from server.ingest.rtsp.address import Address

READ_BYTES = 64 * 1024
DATAGRAM_BUFFER_BYTES = 4 << 20
"""A 4K keyframe at once; the kernel may grant less (net.core.rmem_max)."""
MAX_UNSENT_BYTES = 64 * 1024

_SO_TIMESTAMPNS = 35
"""Not in Python's socket module; the number is the same on x86 and ARM."""
_ANCILLARY_BYTES = socket.CMSG_SPACE(16)
_TIMESPEC = struct.Struct("@qq")
_TIMESPEC_32 = struct.Struct("@ii")
_PORT_ATTEMPTS = 32
_MAX_STAMP_AGE_S = 10.0


class Chunk(NamedTuple):
    data: bytes
    """Empty: the peer has closed."""
    arrived_at: float
    """Monotonic seconds at which the last of it arrived."""
    unix_offset: float
    """Wall clock minus monotonic clock at the time of the read."""
    uncertainty_s: float
    """Its end may have arrived up to so long before."""
    spread_s: float = 0.0
    """What is not its end may have arrived up to so long before."""


class StreamSocket:
    """A connected TCP or TLS socket. Writes are buffered, so neither side can block the other."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self.peer = str(sock.getpeername()[0])
        """The peer's address."""
        self.local = (sock.family, str(sock.getsockname()[0]))
        """(address family, own address)"""
        self._unsent = bytearray()
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._read_at = self._empty_at = time.monotonic()
        self.drained = True
        """The last read took everything that was there."""
        if not self._tls:
            _request_stamps(sock)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """TLS has decrypted more than was read, which no selector sees."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def receive(self) -> Chunk | None:
        """What has come, None if there is nothing. Raises OSError if the connection broke."""
        ancillary: list[tuple[int, int, bytes]] = []
        waited = self.drained
        begun_at = time.monotonic()
        try:
            if self._tls:
                data = self._socket.recv(READ_BYTES)
                self.drained = False
            else:
                size, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
                data = bytes(self._view[:size])
                self.drained = size < READ_BYTES
                # Cameras write a frame in pieces without TCP_NODELAY: their last piece waits for our acknowledgement
                # of the one before, which the kernel would delay by 40 ms. It forgets this wish, so it is repeated.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self.drained = True
            self._empty_at = begun_at
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            data = b""
        arrived_at, unix_offset, now = _arrival(ancillary)
        # Who is late to read (a busy machine) finds several frames at once, and the kernel has the time of the last of
        # them only. The others came after the socket had been seen empty.
        spread = max(0.0, arrived_at - self._empty_at)
        if self._tls:  # data that was there without waiting may have come at any time since the read before
            spread = uncertainty = 0.0 if waited else max(0.0, arrived_at - self._read_at)
        else:
            uncertainty = 0.0 if self.drained else spread
        self._read_at = now
        if self.drained:
            self._empty_at = begun_at
        return Chunk(data, arrived_at, unix_offset, uncertainty, spread)

    def send(self, data: bytes) -> None:
        """Send or keep for `flush`. Raises OSError if the connection broke or the peer reads nothing."""
        if len(self._unsent) + len(data) > MAX_UNSENT_BYTES:
            raise TimeoutError("the peer does not read")
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send what could not be sent before."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self._unsent[:sent]

    def finish(self) -> None:
        """No more requests: tells the peer so."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class Datagrams:
    """Two neighbouring UDP ports, RTP on the even one, that listen to one server only."""

    def __init__(self, family: socket.AddressFamily, local: str) -> None:
        """Raises OSError when no pair is free."""
        self.rtp, self.rtcp = _bind_pair(family, local)
        self._buffer = bytearray(65_536)
        self._view = memoryview(self._buffer)
        self._allowed: set[str] = set()
        for sock in (self.rtp, self.rtcp):
            sock.setblocking(False)
            _request_stamps(sock)
        with contextlib.suppress(OSError):
            self.rtp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER_BYTES)

    @property
    def ports(self) -> tuple[int, int]:
        return self.rtp.getsockname()[1], self.rtcp.getsockname()[1]

    def allow(self, *addresses: str) -> None:
        """Accept packets from these addresses and from no others."""
        self._allowed |= {_plain(address) for address in addresses}

    def receive(self, sock: socket.socket) -> Chunk | None:
        """The next datagram of the server on `sock` (one of the two), None if there is none."""
        while True:
            try:
                size, ancillary, _, sender = sock.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
            except BlockingIOError:
                return None
            except ConnectionError:
                continue  # an ICMP answer to one of our reports
            if sender[0] not in self._allowed and _plain(sender[0]) not in self._allowed:
                continue
            arrived_at, unix_offset, _ = _arrival(ancillary)
            return Chunk(bytes(self._view[:size]), arrived_at, unix_offset, 0.0)

    def punch(self, host: str, ports: tuple[int, int]) -> None:
        """Send the smallest packets that are one to the server's ports."""
        self.send(host, ports[0], rtp=b"\x80" + bytes(11))
        self.send(host, ports[1], rtcp=b"\x80\xc9\x00\x01" + bytes(4))

    def send(self, host: str, port: int, rtp: bytes | None = None, rtcp: bytes | None = None) -> None:
        """Nothing depends on these arriving, so an error is none."""
        for sock, data in ((self.rtp, rtp), (self.rtcp, rtcp)):
            if data is not None:
                with contextlib.suppress(OSError):
                    sock.sendto(data, (host, port))

    def close(self) -> None:
        self.rtp.close()
        self.rtcp.close()


def connect(address: Address, deadline: float, tls_verify: bool, networks: Networks = ANYWHERE) -> StreamSocket:
    """Connect to the first permitted address of the host that answers, until `deadline` (monotonic). Raises
    SourceError."""
    tls = tls_context(tls_verify) if address.tls else None
    return StreamSocket(network.connect(address.host, address.port, deadline, networks, tls))


def _bind_pair(family: socket.AddressFamily, local: str) -> tuple[socket.socket, socket.socket]:
    failure: OSError | None = None
    for _ in range(_PORT_ATTEMPTS):
        rtp = socket.socket(family, socket.SOCK_DGRAM)
        rtcp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            rtp.bind((local, 0))
            port = rtp.getsockname()[1]
            if port % 2 == 0:
                rtcp.bind((local, port + 1))
                return rtp, rtcp
        except OSError as error:
            failure = error
        rtp.close()
        rtcp.close()
    raise failure or OSError("no free pair of UDP ports")


def _plain(address: str) -> str:
    """Without scope, and IPv4 as IPv4 also where it came through an IPv6 socket."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _request_stamps(sock: socket.socket) -> None:
    # Refused by systems without stamps: the time of the read is used then.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def _arrival(ancillary: list[tuple[int, int, bytes]]) -> tuple[float, float, float]:
    """(monotonic time of arrival, wall clock minus monotonic clock, monotonic time now)"""
    reading = instant()
    now, offset = reading.monotonic, reading.offset
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) in (8, 16):
            seconds, nanoseconds = (_TIMESPEC if len(data) == 16 else _TIMESPEC_32).unpack(data)
            arrived_at = seconds + nanoseconds * 1e-9 - offset
            # Outside of this the wall clock was set in between.
            if now - _MAX_STAMP_AGE_S <= arrived_at <= now:
                return arrived_at, offset, now
    return now, offset, now
