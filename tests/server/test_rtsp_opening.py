"""Opening a camera: the RTSP conversation against a scripted server on loopback."""

from __future__ import annotations

import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rtsp_script import KEY, Answer, Peer, Request, ScriptedServer, camera, next_unit, rtp, status

from server.ingest import network
from server.ingest.rtsp.source import RtspSource
from server.ingest.source import Reason, SourceError

pytestmark = pytest.mark.system


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

    def lookup(host: str, port: int, kind: object, flags: int = 0) -> list[tuple[int, object]]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        released.wait(10)
        return []

    monkeypatch.setattr(network, "_lookup", lookup)
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
