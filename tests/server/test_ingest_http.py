"""HTTP and HLS as sources: whom they may reach, encrypted segments, redirects, ranges, credentials, silence."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from test_ingest_libav import write_clip

from server.ingest.libav import LibavSource
from server.ingest.network import Networks
from server.ingest.playlist import absolute
from server.ingest.source import AccessUnit, Reason, SourceError
from server.settings import NO_SOURCES

pytestmark = pytest.mark.system
FRAMES = 20
NO_METADATA = Networks.parse(None, map(str, NO_SOURCES))
PLAYLIST = (
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n{key}#EXTINF:0.8,\n{name}\n"
    "#EXT-X-ENDLIST\n"
)


class Request(BaseHTTPRequestHandler):
    """`answer` is the test's; `asked` are paths with their Authorization headers."""

    answer: Callable[[Request], None]
    asked: list[tuple[str, str | None, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"], self.headers["Range"]))
        try:
            type(self).answer(self)
        except ConnectionError:
            pass  # a player that has seen enough

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, to: str) -> None:
        self.send(b"", 302, Location=to)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    answer: Callable[[Request], None], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[tuple[str, str | None, str | None]]]]:
    """(address, what is asked)"""
    handler = type("Handler", (Request,), {"answer": answer, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "clip.ts", frames=FRAMES)
    write_clip(folder / "clip.mp4", frames=FRAMES)
    return folder


def play(url: str, *, networks: Networks = NO_METADATA, **options: object) -> list[AccessUnit]:
    source = LibavSource(url, realtime=False, networks=networks, open_timeout_s=3, **options)  # type: ignore[arg-type]
    try:
        source.open()
        return [unit for unit in source.units() if unit is not None]
    finally:
        source.close()


def refusal(url: str, **options: object) -> SourceError:
    begun = time.monotonic()
    with pytest.raises(SourceError) as caught:
        play(url, **options)  # type: ignore[arg-type]
    assert time.monotonic() - begun < 3, "a refusal is no time-out"
    return caught.value


def files(contents: dict[str, bytes]) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        content = contents.get(request.path.partition("?")[0])
        request.send(content or b"", 404 if content is None else 200)

    return answer


# What a playlist must not lead to.


@pytest.mark.parametrize(
    "name",
    ["file:///etc/passwd", "/etc/passwd", "concat:/etc/passwd|clip.ts", "concat:http://127.0.0.1/a|/etc/passwd",
     "subfile,,start,0,end,9,,:/etc/passwd", "data:video/mp2t;base64,R0AA", "crypto:file:///etc/passwd",
     "crypto+file:///etc/passwd", "tcp://127.0.0.1:22", "httpproxy://127.0.0.1:22/x", "pipe:0", "ftp://127.0.0.1/x.ts",
     "http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/x.ts", "gopher://127.0.0.1/x.ts"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["segment", "variant", "key"])
def test_a_playlist_leads_to_http_on_permitted_addresses_and_nowhere_else(clips: Path, name: str, where: str) -> None:
    ts = (clips / "clip.ts").read_bytes()
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{name}"\n' if where == "key" else ""
    playlist = PLAYLIST.format(key=key, name="clip.ts" if where == "key" else name)
    if where == "variant":
        playlist = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000000\n{name}\n"
    with serving(files({"/x.m3u8": playlist.encode(), "/clip.ts": ts})) as (address, asked):
        error = refusal(f"{address}/x.m3u8")
    assert error.reason in (Reason.FORBIDDEN, Reason.NOT_FOUND, Reason.PROTOCOL, Reason.CODEC), error
    assert "/etc/passwd" not in [path for path, *_ in asked] or name == "/etc/passwd", "as a path of the server only"
    assert "169.254" not in str(asked)


def test_encrypted_hls_plays(clips: Path) -> None:
    key, vector = bytes(range(16)), bytes(range(16, 32))
    clear = (clips / "clip.ts").read_bytes()
    padding = 16 - len(clear) % 16
    encryptor = Cipher(algorithms.AES128(key), modes.CBC(vector)).encryptor()
    secret = encryptor.update(clear + bytes([padding]) * padding) + encryptor.finalize()
    line = f'#EXT-X-KEY:METHOD=AES-128,URI="keys/1",IV=0x{vector.hex()}\n'
    contents = {"/a/x.m3u8": PLAYLIST.format(key=line, name="seg.ts").encode(), "/a/keys/1": key, "/a/seg.ts": secret}
    with serving(files(contents)) as (address, _):
        units = play(f"{address}/a/x.m3u8")
        assert len(units) == FRAMES
        assert not any(unit.damaged for unit in units)


def test_a_playlist_that_comes_in_pieces_is_one(clips: Path) -> None:
    playlist = PLAYLIST.format(key="", name="clip.ts").encode()

    def answer(request: Request) -> None:
        if request.path != "/x":
            request.send((clips / "clip.ts").read_bytes())
            return
        request.send_response(200)
        request.end_headers()
        for piece in (playlist[:3], playlist[3:20], playlist[20:]):
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(0.05)

    with serving(answer) as (address, _):
        assert len(play(f"{address}/x")) == FRAMES


def test_names_in_a_redirected_playlist_count_from_where_it_lies(clips: Path) -> None:
    media = files({"/deep/x.m3u8": PLAYLIST.format(key="", name="clip.ts").encode(),
                   "/deep/clip.ts": (clips / "clip.ts").read_bytes()})  # fmt: skip

    def answer(request: Request) -> None:
        if request.path == "/x":
            request.redirect("/deep/x.m3u8")
        else:
            media(request)

    with serving(answer) as (address, _):
        assert len(play(f"{address}/x")) == FRAMES


def test_byte_ranges_of_one_file_are_segments(clips: Path) -> None:
    content = (clips / "clip.ts").read_bytes()
    half = len(content) // 2 // 188 * 188
    playlist = (
        "#EXTM3U\n#EXT-X-VERSION:4\n#EXT-X-TARGETDURATION:1\n"
        f"#EXTINF:0.4,\n#EXT-X-BYTERANGE:{half}@0\nclip.ts\n"
        f"#EXTINF:0.4,\n#EXT-X-BYTERANGE:{len(content) - half}@{half}\nclip.ts\n#EXT-X-ENDLIST\n"
    )

    def answer(request: Request) -> None:
        with_ranges(content)(request) if request.path == "/clip.ts" else request.send(playlist.encode())

    with serving(answer) as (address, asked):
        assert len(play(f"{address}/x.m3u8")) == FRAMES
        assert f"bytes={half}-{len(content) - 1}" in [range for _, _, range in asked]


def with_ranges(content: bytes) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["Range"] or "")
        if match is None:
            request.send(content)
            return
        begin, end = int(match[1]), int(match[2] or len(content) - 1) + 1
        request.send(content[begin:end], 206, Content_Range=f"bytes {begin}-{end - 1}/{len(content)}")

    return answer


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_whose_index_lies_at_its_end_plays(clips: Path, ranges: bool) -> None:
    content = (clips / "clip.mp4").read_bytes()
    assert content.rfind(b"moov") > content.find(b"mdat")
    with serving(with_ranges(content) if ranges else files({"/clip.mp4": content})) as (address, _):
        assert len(play(f"{address}/clip.mp4")) == FRAMES


def test_https_with_a_certificate_of_the_camera_s_own(clips: Path, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path / "cert.pem"))
    contents = {
        "/x.m3u8": PLAYLIST.format(key="", name="clip.ts").encode(),
        "/clip.ts": (clips / "clip.ts").read_bytes(),
    }
    with serving(files(contents), context) as (address, _):
        assert len(play(f"{address}/x.m3u8")) == FRAMES


def self_signed(path: Path) -> Path:
    """Key and certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "camera")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


# Redirects and credentials.


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "ftp://127.0.0.1/x", "concat:a|b",
     "http://[fe80::1]/x", "data:video/mp4;base64,AAAA", "http://2852039166/x"],
)  # fmt: skip
def test_a_redirect_leads_to_http_on_permitted_addresses_and_nowhere_else(target: str) -> None:
    with serving(lambda request: request.redirect(target)) as (address, _):
        assert refusal(f"{address}/x").reason is Reason.FORBIDDEN


def test_redirects_without_end_do_end() -> None:
    with serving(lambda request: request.redirect("/again")) as (address, asked):
        assert refusal(f"{address}/x").reason is Reason.PROTOCOL
        assert len(asked) < 10


def test_credentials_go_to_the_host_that_they_are_for(clips: Path) -> None:
    def challenge(request: Request) -> None:
        request.send(b"", 401, WWW_Authenticate='Basic realm="other"')

    with serving(challenge) as (other, others_asked):
        elsewhere = other.replace("127.0.0.1", "localhost")
        with serving(lambda request: request.redirect(f"{elsewhere}/x")) as (address, _):
            assert refusal(f"{address}/x", username="u", password="secret").reason is Reason.AUTH
    assert {authorization for _, authorization, _ in others_asked} == {None}


def test_digest_credentials_serve_every_request(clips: Path) -> None:
    """Digest with a wrong password is asked once more and not for ever."""

    def digest(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    def answer(request: Request) -> None:
        authorization = request.headers["Authorization"] or ""
        fields = dict(re.findall(r'(\w+)="([^"]*)"', authorization))
        secret, asked = digest("admin:cam:geheim"), digest(f"GET:{request.path}")
        if fields.get("response") == digest(f"{secret}:abc:{asked}"):
            with_ranges((clips / "clip.mp4").read_bytes())(request)
        else:
            request.send(b"", 401, WWW_Authenticate='Digest realm="cam", nonce="abc"')

    with serving(answer) as (address, asked):
        assert len(play(f"{address}/clip.mp4?ch=1", username="admin", password="geheim")) == FRAMES
        asked.clear()
        assert refusal(f"{address}/clip.mp4", username="admin", password="falsch").reason is Reason.AUTH
        assert len(asked) == 2


# Silence.


def test_a_trickle_is_no_video(clips: Path) -> None:
    """A byte now and then keeps a socket's time-out away, but no frame comes."""
    content = write_clip(clips / "long.ts", frames=50).read_bytes()
    over = threading.Event()

    def answer(request: Request) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(content)
        while not over.wait(0.05):
            request.wfile.write(b"\x47")

    with serving(answer) as (address, _):
        source = LibavSource(f"{address}/live", read_timeout_s=0.6)
        source.open()
        arrivals: list[float] = []
        with pytest.raises(SourceError) as caught:
            arrivals.extend(unit.arrived_at for unit in source.units() if unit)
        silent_s = time.monotonic() - arrivals[-1]
        source.close()
        over.set()
    assert caught.value.reason is Reason.STALLED
    assert 0.5 < silent_s < 1.6


def test_an_answer_that_stops_in_its_head_is_a_timeout() -> None:
    over = threading.Event()

    def answer(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-")
        over.wait(5)

    with serving(answer) as (address, _):
        with pytest.raises(SourceError) as caught:
            LibavSource(f"{address}/x", open_timeout_s=0.4).open()
        over.set()
    assert caught.value.reason is Reason.TIMEOUT


def test_what_is_no_http_is_a_protocol_error() -> None:
    def answer(request: Request) -> None:
        request.wfile.write(b"SSH-2.0-x\r\n")

    with serving(answer) as (address, _):
        assert refusal(f"{address}/x").reason is Reason.PROTOCOL


def test_names_are_made_absolute() -> None:
    playlist = (
        '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="k?a=1"\n#EXT-X-MAP:URI="/m.mp4"\n\nseg 1.ts\nhttps://c.example/2.ts\n'
    )
    assert absolute(playlist, "http://h.example/a/b.m3u8").splitlines() == [
        "#EXTM3U",
        '#EXT-X-KEY:METHOD=AES-128,URI="http://h.example/a/k?a=1"',
        '#EXT-X-MAP:URI="http://h.example/m.mp4"',
        "",
        "http://h.example/a/seg 1.ts",
        "https://c.example/2.ts",
    ]
    assert absolute("http://[broken", "http://h/") == "http://[broken\n"
