"""Continuity of MPEG-TS, and datagrams that carry it: who is listened to, what RTP tells, what is no TS."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.datagrams import Datagrams
from server.ingest.mpegts import PACKET, Continuity
from server.ingest.network import ANYWHERE, Networks
from server.ingest.source import Reason, SourceError


def packet(pid: int, counter: int, *, payload: bool = True, jump: bool = False) -> bytes:
    control = (0x10 if payload else 0) | (0x20 if jump or not payload else 0)
    head = bytes([0x47, pid >> 8, pid & 0xFF, control | counter & 0x0F])
    field = bytes([1, 0x80 if jump else 0]) if control & 0x20 else b""
    return (head + field).ljust(PACKET, b"\xff")


@given(st.lists(st.sampled_from([0x100, 0x101, 0]), min_size=40, max_size=80), st.integers(5, 20), st.integers(1, 15))
def test_packets_that_are_missing_are_counted(pids: list[int], first: int, run: int) -> None:
    """Up to fifteen in a row, those of a stream that comes again."""
    packets = [packet(pid, pids[:index].count(pid)) for index, pid in enumerate(pids)]
    seen = Continuity()
    assert seen.missing(b"".join(packets)) == 0
    lossy = Continuity()
    missing = lossy.missing(b"".join(packets[:first])) + lossy.missing(b"".join(packets[first + run :]))
    around = set(pids[:first]) & set(pids[first + run :])
    assert missing == sum(pid in around for pid in pids[first : first + run])


def test_sixteen_lost_packets_of_one_stream_are_told_by_another() -> None:
    lossy = Continuity()
    assert lossy.missing(packet(0x100, 3) + packet(0, 0)) == 0
    assert lossy.missing(packet(0x100, 4)) == 0, "sixteen of them and a table are gone, and nothing shows"
    assert lossy.missing(packet(0, 2)) == 1


def test_what_looks_like_a_loss_and_is_none() -> None:
    steady = Continuity()
    stream = [packet(0x100, 1), packet(0x100, 1), packet(0x100, 2), packet(0x100, 2, payload=False),
              packet(0x100, 9, jump=True), packet(0x100, 10), packet(0x1FFF, 0), packet(0x1FFF, 7), bytes(PACKET),
              packet(0x100, 11)]  # fmt: skip
    assert steady.missing(b"".join(stream)) == 0


# Datagrams.

on_sockets = pytest.mark.system


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def listening(*, rtp: bool = False, networks: Networks = ANYWHERE, patience_s: float = 5.0) -> tuple[Datagrams, int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    file = Datagrams("127.0.0.1", port, rtp, networks)
    file.open()
    file.allow_until(time.monotonic() + patience_s, SourceError(Reason.TIMEOUT, "nothing"))
    return file, port


def rtp_packet(sequence: int, payload: bytes, kind: int = 33, flags: int = 0, extra: bytes = b"") -> bytes:
    return bytes([0x80 | flags, kind]) + (sequence & 0xFFFF).to_bytes(2, "big") + bytes(8) + extra + payload


@on_sockets
def test_the_first_sender_is_the_camera(sender: socket.socket) -> None:
    file, port = listening()
    sender.sendto(b"hello", ("127.0.0.1", port))
    sender.sendto(packet(0x100, 0) + packet(0x100, 1) + b"tail", ("127.0.0.1", port))
    assert file.read(4096) == packet(0x100, 0) + packet(0x100, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(packet(0x100, 7), ("127.0.0.1", port))
    sender.sendto(packet(0x100, 2), ("127.0.0.1", port))
    assert (file.read(100), file.read(4096)) == (packet(0x100, 2)[:100], packet(0x100, 2)[100:])
    assert file.take_lost() == 0
    file.close()


@on_sockets
def test_rtp_tells_of_losses_and_of_what_comes_twice(sender: socket.socket) -> None:
    file, port = listening(rtp=True)
    ts = packet(0x100, 0)
    padding = bytes([0, 0, 3])
    for datagram in (
        rtp_packet(65534, ts),
        rtp_packet(65535, ts, flags=0x10, extra=b"\xbe\xde\x00\x01" + bytes(4)),
        rtp_packet(0, ts + padding, flags=0x20),
        rtp_packet(4, ts, flags=0x01, extra=bytes(4)),
        rtp_packet(4, ts),
        rtp_packet(2, ts),
        b"\x80\x21",
        rtp_packet(5, ts),
    ):
        sender.sendto(datagram, ("127.0.0.1", port))
    assert [file.read(4096) for _ in range(5)] == [ts] * 5
    assert file.take_lost() == 3
    file.close()


@on_sockets
def test_rtp_of_anything_but_ts_needs_a_description(sender: socket.socket) -> None:
    file, port = listening(rtp=True)
    sender.sendto(rtp_packet(1, b"\x65" * 400, kind=96), ("127.0.0.1", port))
    with pytest.raises(SourceError, match="MPEG-TS") as caught:
        file.read(4096)
    assert caught.value.reason is Reason.CODEC
    assert file.read(4096) == b"", "libavformat asks again, and the first error is the one that counts"
    file.close()


@on_sockets
def test_senders_elsewhere_are_not_heard(sender: socket.socket) -> None:
    file, port = listening(networks=Networks.parse(["192.0.2.0/24"], []), patience_s=0.1)
    sender.sendto(packet(0x100, 0), ("127.0.0.1", port))
    with pytest.raises(SourceError) as caught:
        file.read(4096)
    assert caught.value.reason is Reason.FORBIDDEN
    file.close()


@on_sockets
def test_a_port_that_is_taken_is_said() -> None:
    file, port = listening()
    second = Datagrams("127.0.0.1", port, False, ANYWHERE)
    with pytest.raises(SourceError, match=f"port {port}"):
        second.open()
    file.close()
    second.open()
    second.close()


@on_sockets
def test_a_group_is_joined() -> None:
    """On a machine with a route for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.255.7.7") + bytes(4))
        except OSError:
            pytest.skip("no route for multicast here")
        _, port = listening()
        file = Datagrams("239.255.7.7", port + 1, False, ANYWHERE)
        file.open()
        file.allow_until(time.monotonic() + 5, SourceError(Reason.TIMEOUT, "nothing"))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sock.sendto(packet(0x100, 0), ("239.255.7.7", port + 1))
        assert file.read(4096) == packet(0x100, 0)
        file.close()
