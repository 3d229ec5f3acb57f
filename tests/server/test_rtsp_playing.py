"""A camera that plays, over TCP and UDP, against a scripted server on loopback."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest
from rtsp_script import KEY, Peer, Request, ScriptedServer, camera, next_unit, rtp

from server.ingest.rtsp.source import RtspSource
from server.ingest.source import AccessUnit, Reason, SourceError

pytestmark = pytest.mark.system


# While playing --------------------------------------------------------------------------------------------------------


def collect(source: RtspSource) -> tuple[list[AccessUnit], SourceError | None]:
    units = []
    try:
        for unit in source.units():
            if unit is not None:
                units.append(unit)
    except SourceError as error:
        return units, error
    return units, None


def reset(peer: Peer) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


@pytest.mark.parametrize(
    "ending",
    [
        lambda peer: peer.socket.shutdown(socket.SHUT_RDWR),
        lambda peer: peer.frame(
            1, struct.pack("!BBHIQIII", 0x80, 200, 6, 1, 1 << 63, 0, 1, 1) + b"\x81\xcb\0\1\0\0\0\1"
        ),
        lambda peer: peer.socket.sendall(b"TEARDOWN rtsp://c RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
    ],
    ids=["FIN", "BYE", "TEARDOWN"],
)
def test_an_orderly_end(ending: Callable[[Peer], None]) -> None:
    def playing(peer: Peer) -> None:
        peer.frame(0, rtp(1))
        peer.frame(0, rtp(2, b"\x41\x9acut off", marker=False))
        ending(peer)

    with ScriptedServer(camera(playing=playing)) as server:
        source = RtspSource(server.url)
        source.open()
        units, error = collect(source)
        assert error is None
        assert [unit.damaged for unit in units] == [False, True], "the frame that was cut off is told as damaged"
        source.close()


def test_a_reset_ends_too() -> None:
    go = threading.Event()

    def playing(peer: Peer) -> None:
        assert go.wait(5)
        reset(peer)

    def script(peer: Peer) -> None:
        try:
            camera(playing=playing)(peer)
        except OSError:
            pass  # the script itself has closed the socket

    with ScriptedServer(script) as server:
        source = RtspSource(server.url)
        source.open()
        go.set()
        assert collect(source) == ([], None)
        source.close()


def test_a_stall_is_told_in_time_with_ticks_before() -> None:
    def playing(peer: Peer) -> None:
        peer.frame(0, rtp(1))
        for _ in range(20):
            time.sleep(0.1)
            # Neither reports nor another payload type are signs of life.
            peer.frame(1, struct.pack("!BBHIQIII", 0x80, 200, 6, 1, 1 << 63, 0, 1, 1))
            peer.frame(0, rtp(9, payload_type=0))

    with ScriptedServer(camera(playing=playing)) as server:
        source = RtspSource(server.url, read_timeout_s=1.2)
        source.open()
        units = source.units()
        assert next(units) is not None
        started = time.monotonic()
        assert [next(units), next(units)] == [None, None]
        with pytest.raises(SourceError) as caught:
            next(units)
        assert caught.value.reason == Reason.STALLED
        assert 1.1 < time.monotonic() - started < 2.2
        source.close()


def test_garbage_while_playing_costs_a_frame_and_not_the_connection() -> None:
    def playing(peer: Peer) -> None:
        for sequence in range(1, 5):
            peer.frame(0, rtp(sequence))
            peer.socket.sendall(b"\xee" * 33)
        peer.socket.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(camera(playing=playing)) as server:
        source = RtspSource(server.url)
        source.open()
        units, error = collect(source)
        assert error is None
        assert [unit.damaged for unit in units] == [False] * 4
        source.close()


def test_unsupported_packets_are_a_matter_of_the_codec() -> None:
    def playing(peer: Peer) -> None:
        for sequence in range(20):
            peer.frame(0, rtp(sequence, b"\x7a\0\0\0"))

    with ScriptedServer(camera(playing=playing)) as server:
        source = RtspSource(server.url)
        source.open()
        _, error = collect(source)
        assert error is not None
        assert error.reason == Reason.CODEC
        assert "MTAP16" in error.detail
        source.close()


def test_keep_alive_survives_an_expired_nonce() -> None:
    """At half the session's time-out; 401 is answered with the new nonce, 501 with another method."""
    seen: list[tuple[str, str]] = []
    done = threading.Event()

    def playing(peer: Peer) -> None:
        answers = iter(["401 Unauthorized", "200 OK", "501 Not Implemented", "200 OK"])
        for answer in answers:
            request = peer.read()
            assert request is not None
            seen.append((request.method, request.headers.get("authorization", "")[-60:]))
            assert request.headers["session"] == "xyz"
            peer.answer(request, answer, WWW_Authenticate='Digest realm="r", nonce="new"')
        done.set()

    def setup(peer: Peer, request: Request) -> None:
        peer.answer(request, Transport="RTP/AVP/TCP;interleaved=4-5", Session="xyz ; timeout=2")

    with ScriptedServer(camera({"SETUP": setup}, playing)) as server:
        source = RtspSource(server.url, "u", "p", read_timeout_s=10)
        source.open()
        for _ in source.units():
            if done.is_set():
                break
        source.close()
    assert [method for method, _ in seen] == ["GET_PARAMETER", "GET_PARAMETER", "GET_PARAMETER", "OPTIONS"]
    assert seen[0][1] == ""
    assert seen[1][1] != ""


def test_requests_of_the_server_are_answered() -> None:
    answers: list[bytes] = []

    def playing(peer: Peer) -> None:
        peer.socket.sendall(b"OPTIONS * RTSP/1.0\r\nCSeq: 77\r\n\r\n")
        answers.append(peer.socket.recv(1000))
        peer.socket.sendall(b"PLAY_NOTIFY * RTSP/1.0\r\nCSeq: 78\r\n\r\n")
        answers.append(peer.socket.recv(1000))
        peer.socket.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(camera(playing=playing)) as server:
        source = RtspSource(server.url)
        source.open()
        assert collect(source) == ([], None)
        source.close()
    assert answers[0].startswith(b"RTSP/1.0 200 OK\r\nCSeq: 77\r\n")
    assert answers[1].startswith(b"RTSP/1.0 501 ")


def test_close_is_quick_even_if_the_camera_ignores_it() -> None:
    with ScriptedServer(camera({"TEARDOWN": lambda peer, request: None})) as server:
        source = RtspSource(server.url)
        source.open()
        started = time.monotonic()
        source.close()
        source.close()
        assert time.monotonic() - started < 1


def test_nothing_secret_in_repr() -> None:
    source = RtspSource("rtsp://user:hidden@cam/x", "user", "hidden")
    assert "hidden" not in repr(source)


# UDP ------------------------------------------------------------------------------------------------------------------


class UdpCamera:
    """Answers to SETUP with UDP ports of its own, and sends to the client's."""

    def __init__(self, refuse_tcp: str | None = "461 Unsupported Transport") -> None:
        self.refuse_tcp = refuse_tcp
        self.rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.rtp.bind(("127.0.0.1", 0))
        self.rtp.settimeout(5)
        self.client = ("127.0.0.1", 0)

    def setup(self, peer: Peer, request: Request) -> None:
        transport = request.headers["transport"]
        if "TCP" in transport and self.refuse_tcp:
            peer.answer(request, self.refuse_tcp)
        elif "TCP" in transport:
            peer.answer(request, Transport="RTP/AVP;unicast;client_port=1-2", Session="s")
        else:
            self.client = ("127.0.0.1", int(transport.split("client_port=")[1].split("-")[0]))
            port = self.rtp.getsockname()[1]
            peer.answer(request, Transport=f"{transport};server_port={port}-{port + 1}", Session="s")

    def send(self, data: bytes) -> None:
        self.rtp.sendto(data, self.client)


@pytest.mark.parametrize("refusal", ["461 Unsupported Transport", "400 Bad Request", None])
def test_udp_where_tcp_is_refused(refusal: str | None) -> None:
    udp = UdpCamera(refusal)
    punched: list[bytes] = []

    def playing(peer: Peer) -> None:
        punched.append(udp.rtp.recv(100))
        udp.send(rtp(65_535))
        udp.send(rtp(1, b"\x41\x9athird"))
        udp.send(rtp(0, b"\x41\x9asecond"))

    with ScriptedServer(camera({"SETUP": udp.setup}, playing)) as server:
        source = RtspSource(server.url)
        assert source.open().transport == "udp"
        units = [unit for unit in itertools.islice((u for u in source.units() if u is not None), 3)]
        assert [unit.data[6:] for unit in units] == [b"key", b"second", b"third"]
        assert not any(unit.damaged for unit in units)
        assert all(0 <= time.monotonic() - unit.arrived_at < 1 for unit in units)
        source.close()
    assert punched[0][0] == 0x80
    udp.rtp.close()


def test_udp_takes_packets_of_the_server_only() -> None:
    udp = UdpCamera()

    def playing(peer: Peer) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            stranger.sendto(rtp(1, b"\x65\x88evil"), udp.client)
        udp.send(rtp(2))

    with ScriptedServer(camera({"SETUP": udp.setup}, playing)) as server:
        source = RtspSource(server.url, transport="udp")
        source.open()
        assert next_unit(source).data.endswith(KEY)
        source.close()
        assert server.methods.count("SETUP") == 1
    udp.rtp.close()


def test_udp_gives_up_a_missing_packet_soon() -> None:
    udp = UdpCamera()

    def playing(peer: Peer) -> None:
        udp.send(rtp(1))
        udp.send(rtp(3, b"\x41\x9athird"))

    with ScriptedServer(camera({"SETUP": udp.setup}, playing)) as server:
        source = RtspSource(server.url, transport="udp")
        source.open()
        units = list(itertools.islice((u for u in source.units() if u is not None), 2))
        held = time.monotonic() - units[1].arrived_at
        assert (units[1].damaged, units[1].lost_packets) == (True, 1)
        assert 0.07 < held < 0.4
        source.close()
    udp.rtp.close()


def test_frames_that_a_late_reader_finds_together_came_at_different_times() -> None:
    """The kernel has one time stamp for all that lies in the socket: that of the last packet."""
    sent: list[float] = []
    first_is_read, all_are_sent = threading.Event(), threading.Event()

    def playing(peer: Peer) -> None:
        for number in range(1, 6):
            sent.append(time.monotonic())
            peer.frame(0, rtp(number))
            if number == 1:
                assert first_is_read.wait(5)
            time.sleep(0.06)
        all_are_sent.set()
        peer.read()

    with ScriptedServer(camera(playing=playing)) as server:
        source = RtspSource(server.url)
        source.open()
        units = source.units()
        taken = [next(unit for unit in units if unit is not None)]
        first_is_read.set()
        assert all_are_sent.wait(5)
        taken += [next(unit for unit in units if unit is not None) for _ in range(4)]
        source.close()
    for unit, at in zip(taken, sent, strict=True):
        assert unit.arrived_at - unit.arrival_uncertainty_s - 0.005 <= at <= unit.arrived_at + 0.005
    assert [unit.arrival_uncertainty_s == 0 for unit in taken] == [True, False, False, False, True]
