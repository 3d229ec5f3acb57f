"""The RTSP conversation and the source's life against a scripted server on loopback."""

from __future__ import annotations

import itertools
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rtsp_script import Peer, Request, ScriptedServer

from server.ingest.rtsp import sockets
from server.ingest.rtsp.source import RtspSource
from server.ingest.source import AccessUnit, Reason, SourceError

pytestmark = pytest.mark.system

KEY = b"\x65\x88key"
Answer = Callable[[Peer, Request], None]


def rtp(sequence: int, payload: bytes = KEY, marker: bool = True, payload_type: int = 96) -> bytes:
    return struct.pack("!BBHII", 0x80, marker << 7 | payload_type, sequence, 3000 * sequence, 1) + payload


def camera(
    special: dict[str, Answer] | None = None, playing: Callable[[Peer], None] | None = None
) -> Callable[[Peer], None]:
    """An ordinary camera, with answers of its own to some methods; `playing` begins after PLAY."""

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            (special or {}).get(request.method, Peer.play)(peer, request)
            if request.method == "PLAY" and playing is not None:
                playing(peer)

    return script


def status(line: str, **headers: str) -> Answer:
    return lambda peer, request: peer.answer(request, line, **headers)


def next_unit(source: RtspSource) -> AccessUnit:
    return next(unit for unit in source.units() if unit is not None)


def open_error(server: ScriptedServer, **options: object) -> SourceError:
    source = RtspSource(server.url, open_timeout_s=1.0, **options)  # type: ignore[arg-type]
    with pytest.raises(SourceError) as caught:
        source.open()
    source.close()
    return caught.value


# Opening --------------------------------------------------------------------------------------------------------------


def test_an_ordinary_camera() -> None:
    with ScriptedServer(camera(playing=lambda peer: peer.frame(0, rtp(1)))) as server:
        source = RtspSource(server.url)
        info = source.open()
        assert (info.codec, info.transport, info.client, info.live) == ("h264", "tcp", "native", True)
        before = time.monotonic()
        unit = next_unit(source)
        assert unit.data == b"\0\0\0\1" + KEY
        assert unit.keyframe
        assert before - 1 < unit.arrived_at <= time.monotonic()
        assert abs(unit.received_unix - time.time()) < 1
        source.close()
        assert server.methods == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY", "TEARDOWN"]
        (peer,) = server.peers
        options, _, setup, play, teardown = peer.requests
        assert options.url == server.url
        assert setup.url == server.url + "/track1"
        assert play.url == teardown.url == server.url
        assert play.headers["range"] == "npt=0.000-"
        assert play.headers["session"] == teardown.headers["session"] == "abc"


def test_video_before_the_answer_to_play_is_kept() -> None:
    def play(peer: Peer, request: Request) -> None:
        peer.frame(0, rtp(1))
        peer.answer(request)

    with ScriptedServer(camera({"PLAY": play})) as server:
        source = RtspSource(server.url)
        source.open()
        assert next_unit(source).keyframe
        source.close()


@pytest.mark.parametrize(
    ("special", "reason", "words"),
    [
        ({"DESCRIBE": status("404 Not Found")}, Reason.NOT_FOUND, "404 Not Found"),
        ({"DESCRIBE": status("403 Forbidden")}, Reason.AUTH, "403"),
        ({"DESCRIBE": status("503 Service Unavailable")}, Reason.REFUSED, "503"),
        ({"DESCRIBE": status("200 OK")}, Reason.PROTOCOL, "no session description"),
        ({"DESCRIBE": lambda p, r: p.play(r, b"m=video 0 RTP/AVP 31\r\n")}, Reason.CODEC, "H261"),
        ({"DESCRIBE": lambda p, r: None}, Reason.TIMEOUT, "DESCRIBE"),
        ({"DESCRIBE": lambda p, r: p.socket.close()}, Reason.REFUSED, "closed the connection"),
        ({"OPTIONS": lambda p, r: p.socket.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")}, Reason.PROTOCOL, "HTTP"),
        ({"SETUP": status("453 Not Enough Bandwidth")}, Reason.REFUSED, "453 Not Enough Bandwidth"),
        ({"PLAY": status("500 Oops")}, Reason.REFUSED, "PLAY"),
        ({"DESCRIBE": status("302 Moved")}, Reason.PROTOCOL, "where to"),
        ({"DESCRIBE": status("302 Moved", Location="http://x/")}, Reason.ERROR, "rtsp://"),
        ({"DESCRIBE": status("302 Moved", Location="rtsps://x/")}, Reason.PROTOCOL, "another scheme"),
    ],
)
def test_refusals(special: dict[str, Answer], reason: Reason, words: str) -> None:
    def script(peer: Peer) -> None:
        try:
            camera(special)(peer)
        except OSError:
            pass  # the script itself has closed the socket

    with ScriptedServer(script) as server:
        error = open_error(server)
        assert error.reason == reason
        assert words in error.detail


def test_a_camera_without_options_and_with_an_odd_play() -> None:
    def play(peer: Peer, request: Request) -> None:
        peer.answer(request, "457 Invalid Range" if "range" in request.headers else "200 OK")

    with ScriptedServer(camera({"OPTIONS": status("501 Not Implemented"), "PLAY": play})) as server:
        source = RtspSource(server.url)
        source.open()
        source.close()
        assert server.methods == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY", "PLAY", "TEARDOWN"]


def test_play_on_the_track_where_there_is_no_aggregate() -> None:
    def play(peer: Peer, request: Request) -> None:
        peer.answer(request, "200 OK" if request.url.endswith("track1") else "460 Only Aggregate Operation Allowed")

    with ScriptedServer(camera({"PLAY": play})) as server:
        source = RtspSource(server.url)
        source.open()
        source.close()
        assert server.methods.count("PLAY") == 2


def test_redirect() -> None:
    with ScriptedServer(camera()) as target:
        moved = status("302 Moved Temporarily", Location=target.url)
        with ScriptedServer(camera({"DESCRIBE": moved})) as server:
            source = RtspSource(server.url)
            source.open()
            source.close()
        assert target.methods == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY", "TEARDOWN"]


def test_redirects_are_bounded() -> None:
    def moved(peer: Peer, request: Request) -> None:
        peer.answer(request, "301 Moved Permanently", Location=request.url + "x")

    with ScriptedServer(camera({"DESCRIBE": moved})) as server:
        assert "redirects more than" in open_error(server).detail


def test_no_password_for_another_host() -> None:
    denied = status("401 Unauthorized", WWW_Authenticate='Basic realm="x"')
    with ScriptedServer(camera({"OPTIONS": denied})) as other:
        moved = status("302 Moved", Location=other.url.replace("127.0.0.1", "localhost"))
        with ScriptedServer(camera({"DESCRIBE": moved})) as server:
            assert open_error(server, username="u", password="secret").reason == Reason.AUTH
        assert all("authorization" not in request.headers for peer in other.peers for request in peer.requests)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceError) as caught:
        RtspSource(f"rtsp://127.0.0.1:{port}/x").open()
    assert caught.value.reason == Reason.REFUSED


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(SourceError) as caught:
        RtspSource("rtsp://no-such-camera.invalid/x", open_timeout_s=3).open()
    assert caught.value.reason == Reason.UNREACHABLE


def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def lookup(address: object, flags: int = 0) -> list[tuple[int, object]]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        released.wait(10)
        return []

    monkeypatch.setattr(sockets, "_lookup", lookup)
    started = time.monotonic()
    with pytest.raises(SourceError) as caught:
        RtspSource("rtsp://slow.example/x", open_timeout_s=0.3).open()
    released.set()
    assert caught.value.reason == Reason.UNREACHABLE
    assert time.monotonic() - started < 2


def test_a_peer_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(SourceError) as caught:
            RtspSource(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x", open_timeout_s=0.4).open()
        assert caught.value.reason == Reason.TIMEOUT
        assert 0.3 < time.monotonic() - started < 2


@pytest.mark.parametrize("url", ["http://cam/x", "rtsp:///x", "rtsp://cam:99999/x", "rtsp://u:secret@:5/x", "cam"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        RtspSource(url).open()
    assert caught.value.reason == Reason.ERROR
    assert "secret" not in str(caught.value)


# Authentication -------------------------------------------------------------------------------------------------------


def guarded(challenge: str, accepted: Callable[[Request], bool]) -> dict[str, Answer]:
    """Answers that demand an Authorization header which `accepted` approves of."""

    def answer(peer: Peer, request: Request) -> None:
        if "authorization" in request.headers and accepted(request):
            peer.play(request)
        else:
            peer.answer(request, "401 Unauthorized", WWW_Authenticate=challenge)

    return dict.fromkeys(("OPTIONS", "DESCRIBE", "SETUP", "PLAY", "GET_PARAMETER"), answer)


def test_every_request_is_authorized_after_the_first_challenge() -> None:
    accept = guarded(
        'Digest realm="cam, door", nonce="n"',
        lambda request: f'uri="{request.url}"' in request.headers["authorization"],
    )
    with ScriptedServer(camera(accept)) as server:
        source = RtspSource(server.url, "admin", "p@:/ß w")
        source.open()
        source.close()
        assert server.methods == ["OPTIONS", "OPTIONS", "DESCRIBE", "SETUP", "PLAY", "TEARDOWN"]


@pytest.mark.parametrize(("username", "words"), [(None, "asks for a user name"), ("u", "does not accept")])
def test_wrong_or_no_password(username: str | None, words: str) -> None:
    with ScriptedServer(camera(guarded('Digest realm="r", nonce="n"', lambda request: False))) as server:
        error = open_error(server, username=username, password="secret")
        assert error.reason == Reason.AUTH
        assert words in error.detail
        assert "secret" not in str(error)


def test_a_stale_nonce_is_not_a_wrong_password() -> None:
    nonces = itertools.count()

    def answer(peer: Peer, request: Request) -> None:
        authorization = request.headers.get("authorization", "")
        if 'nonce="1"' in authorization:
            peer.play(request)
        else:
            stale = "true" if authorization else "false"
            challenge = f'Digest realm="r", nonce="{next(nonces)}", stale={stale}'
            peer.answer(request, "401 Unauthorized", WWW_Authenticate=challenge)

    with ScriptedServer(camera({"OPTIONS": answer, "DESCRIBE": answer})) as server:
        source = RtspSource(server.url, "u", "p")
        source.open()
        source.close()
        assert server.methods.count("OPTIONS") == 3


def test_unsupported_authentication() -> None:
    with ScriptedServer(camera(guarded("Negotiate", lambda request: False))) as server:
        assert "not supported" in open_error(server, username="u", password="p").detail


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

    def script(peer: Peer) -> None:
        try:
            camera(playing=lambda peer: (go.wait(5), reset(peer)))(peer)  # type: ignore[arg-type, return-value]
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


@pytest.mark.parametrize(("transport", "words"), [("tcp", "461"), ("udp", "461")])
def test_a_transport_that_was_demanded_and_is_not_there(transport: str, words: str) -> None:
    with ScriptedServer(camera({"SETUP": status("461 Unsupported Transport")})) as server:
        error = open_error(server, transport=transport)
        assert error.reason == Reason.REFUSED
        assert words in error.detail
        assert server.methods.count("SETUP") == 1


# TLS ------------------------------------------------------------------------------------------------------------------


def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the package openssl makes the certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=camera"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def script(peer: Peer) -> None:
        try:
            peer.socket = context.wrap_socket(peer.socket, server_side=True)
        except OSError:
            return  # a client that does not trust us
        camera(playing=lambda peer: peer.frame(0, rtp(1)))(peer)

    with ScriptedServer(script) as server:
        url = server.url.replace("rtsp://", "rtsps://")
        source = RtspSource(url)
        source.open()
        assert next_unit(source).keyframe
        source.close()
        with pytest.raises(SourceError, match="certificate") as caught:
            RtspSource(url, tls_verify=True).open()
        assert caught.value.reason == Reason.PROTOCOL
