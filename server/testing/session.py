"""One client playing one mount: where its packets go, over the RTSP connection or over UDP sockets of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from server.testing.mount import LiveMount, Transport


class Link(Protocol):
    """What a session needs of its RTSP connection."""

    local_host: str
    peer_host: str
    last_heard_at: float

    def send_media(self, data: bytes) -> None: ...


class Session:
    """One client playing one mount (implements `mount.Client`)."""

    def __init__(self, mount: LiveMount, link: Link, transport: Transport, channel: int) -> None:
        self.mount = mount
        self.transport: Transport = transport
        self.channel = channel
        self._link = link
        self._udp: tuple[socket.socket, socket.socket] | None = None

    @classmethod
    def over_udp(cls, mount: LiveMount, link: Link, ports: tuple[int, int]) -> Session:
        """Sends to these ports (RTP, RTCP) of the host that the connection comes from."""
        session = cls(mount, link, "udp", 0)
        host, peer = link.local_host, link.peer_host
        rtp, rtcp = udp_pair(host)
        rtp.connect((peer, ports[0]))
        rtcp.connect((peer, ports[1]))
        session._udp = rtp, rtcp
        asyncio.get_running_loop().add_reader(rtcp, session._read_rtcp)
        return session

    @property
    def server_ports(self) -> tuple[int, int]:
        assert self._udp is not None
        return self._udp[0].getsockname()[1], self._udp[1].getsockname()[1]

    def send_tcp(self, data: bytes) -> None:
        self._link.send_media(data)

    def send_udp(self, packets: Sequence[bytes]) -> None:
        if self._udp is None:
            return  # closed while the packets of a frame were on their way
        for packet in packets:
            send_datagram(self._udp[0], packet)

    def send_rtcp(self, packet: bytes) -> None:
        if self._udp is not None:
            send_datagram(self._udp[1], packet)
        elif self.transport == "tcp":
            self._link.send_media(b"$" + struct.pack(">BH", self.channel + 1, len(packet)) + packet)

    def _read_rtcp(self) -> None:
        assert self._udp is not None
        try:
            while self._udp[1].recv(2048):
                self._link.last_heard_at = time.monotonic()
        except OSError:
            pass  # nothing more to read, or the client's port is closed: both are the client's affair

    def close(self) -> None:
        self.mount.leave(self)
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp[1])
            for sock in self._udp:
                sock.close()
            self._udp = None


def udp_pair(host: str) -> tuple[socket.socket, socket.socket]:
    """Two sockets on neighbouring ports, the first one even, as RFC 3550 asks."""
    for _ in range(100):
        rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        rtcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        rtp.setblocking(False)
        rtcp.setblocking(False)
        try:
            rtp.bind((host, 0))
            port = rtp.getsockname()[1]
            if port % 2 == 0:
                rtcp.bind((host, port + 1))
                return rtp, rtcp
        except OSError:
            pass  # the neighbour is taken: another pair
        rtp.close()
        rtcp.close()
    raise OSError("no pair of neighbouring UDP ports is free")


def send_datagram(sock: socket.socket, packet: bytes) -> None:
    try:
        sock.send(packet)
    except OSError:
        pass  # the client's port is closed or the buffer is full: a lost datagram, as on any network
