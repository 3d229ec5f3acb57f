"""LibavSource on files and HTTP: time stamps, loops, pacing, refusals, and what must never be opened or told."""

from __future__ import annotations

import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from ingest_streams import FPS, encoded, picture
from PIL import Image

from server.ingest.libav import LibavSource
from server.ingest.nal import START_CODE
from server.ingest.pacing import Pacer
from server.ingest.source import AccessUnit, Reason, SourceError

SECRET = "geh@:/eim"


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip.mp4 and others of 20 frames, B frames included; stream.h264 without time stamps."""
    folder = tmp_path_factory.mktemp("media")
    for name, codec in (
        ("clip.mp4", "libx264"),
        ("clip.mkv", "libx264"),
        ("clip.ts", "libx264"),
        ("h265.mp4", "libx265"),
    ):
        write_clip(folder / name, codec)
    (folder / "stream.h264").write_bytes(b"".join(unit.data for unit in encoded("p", 20)))
    return folder


def write_clip(path: Path, codec: str = "libx264", frames: int = 20, rotation: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        name = "x265-params" if codec == "libx265" else "x264-params"
        stream.codec_context.options = {name: "keyint=10:bframes=2:log-level=none:threads=1" if name == "x264-params"
                                        else "keyint=10:bframes=2:log-level=none:pools=1"}  # fmt: skip
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 192, 128), "rgb24")))
        container.mux(stream.encode(None))
    return path


def read(source: LibavSource, count: int | None = None) -> list[AccessUnit]:
    units = [unit for unit in itertools.islice(source.units(), count) if unit is not None]
    source.close()
    return units


# Files.


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "h265.mp4", "stream.h264"])
def test_a_file_gives_annex_b_and_even_time_stamps(media: Path, name: str) -> None:
    source = LibavSource(str(media / name), realtime=False)
    info = source.open()
    units = read(source)
    assert (info.codec, info.width, info.height) == ("hevc" if name == "h265.mp4" else "h264", 192, 128)
    assert info.fps == pytest.approx(FPS)
    assert (info.live, info.client, info.transport) == (False, "libav", "file")
    assert len(units) == 20
    assert [n for n, unit in enumerate(units) if unit.keyframe] == [0, 10]
    assert all(START_CODE in unit.data[:4] for unit in units)
    times = sorted(unit.pts or 0.0 for unit in units)
    assert np.diff(times) == pytest.approx(np.full(19, 1 / FPS), abs=0.001)
    assert {unit.arrival_uncertainty_s for unit in units} == {0.0}


def test_a_loop_goes_on_without_a_gap_in_time(media: Path) -> None:
    for name in ("clip.mp4", "stream.h264"):
        source = LibavSource(str(media / name), loop=True, realtime=False)
        source.open()
        units = read(source, 60)
        assert [n for n, unit in enumerate(units) if unit.discontinuity] == [20, 40]
        times = sorted(unit.pts or 0.0 for unit in units)
        assert np.diff(times) == pytest.approx(np.full(59, 1 / FPS), abs=0.001), name


def test_a_file_is_paced_like_a_camera(media: Path) -> None:
    source = LibavSource(str(media / "clip.mp4"))
    source.open()
    units = read(source)
    assert units[-1].arrived_at - units[0].arrived_at == pytest.approx(19 / FPS, abs=0.15)


def test_rotation_is_told_where_only_the_container_knows(tmp_path: Path) -> None:
    for rotation in (0, 90, 180, 270):
        source = LibavSource(str(write_clip(tmp_path / f"{rotation}.mp4", frames=3, rotation=rotation)))
        assert source.open().rotation == rotation
        source.close()


def test_a_file_that_vanishes_between_rounds_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=3)
    source = LibavSource(str(path), loop=True, realtime=False)
    source.open()
    units = source.units()
    assert len(list(itertools.islice(units, 3))) == 3
    path.unlink()
    with pytest.raises(SourceError) as caught:
        next(units)
    assert caught.value.reason is Reason.NOT_FOUND


def test_pacing_goes_on_from_where_it_is_after_a_hold_up() -> None:
    pacer = Pacer()
    assert pacer.wait_s(5.0, now=100.0) == 0
    assert pacer.wait_s(5.04, now=100.0) == pytest.approx(0.04)
    assert pacer.wait_s(5.08, now=100.1) == 0, "a little late: catches up"
    assert pacer.wait_s(5.12, now=103.0) == 0
    assert pacer.wait_s(5.16, now=103.0) == pytest.approx(0.04), "the clock was set anew"
    assert pacer.wait_s(9000.0, now=103.1) == 0, "a broken time stamp does not stop it for hours"
    assert pacer.wait_s(9000.04, now=103.1) == pytest.approx(0.04)


# What is refused.


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.mp4", None, Reason.NOT_FOUND),
        ("text.mp4", b"hello" * 100, Reason.CODEC),
        ("empty.mp4", b"", Reason.CODEC),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n", Reason.CODEC),
        ("list.ffconcat", b"ffconcat version 1.0\nfile clip.mp4\n", Reason.CODEC),
        ("session.sdp", b"v=0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n", Reason.CODEC),
        ("image2.png", b"\x89PNG\r\n\x1a\n" + bytes(64), Reason.CODEC),
    ],
)
def test_files_that_are_no_video_are_refused(media: Path, name: str, content: bytes | None, reason: Reason) -> None:
    """Playlists and the like above all: they would lead to other files."""
    path = media / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        LibavSource(str(path)).open()
    assert caught.value.reason is reason
    assert str(media) not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "concat:/a|/b", "subfile,,start,0,end,9,,:/etc/passwd", "relative.mp4", "ftp://host/x", "",
     "data:video/mp4;base64,AAAA", "pipe:0", "udp://239.0.0.1", "rtsp:///x", "crypto:/x", "HTTP:/x", "tcp://h:1"],
)  # fmt: skip
def test_only_served_addresses_are_opened(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        LibavSource(url)
    assert caught.value.reason is Reason.ERROR


def test_audio_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError) as caught:
        LibavSource(str(path)).open()
    assert caught.value.reason is Reason.CODEC


# HTTP.


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(handler: object) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def web(media: Path) -> Iterator[str]:
    with serving(partial(_Quiet, directory=str(media))) as address:
        yield address


@pytest.mark.system
def test_a_file_over_http_plays_to_its_end(web: str) -> None:
    source = LibavSource(f"{web}/clip.mp4", realtime=False)
    info = source.open()
    assert (info.live, info.transport) == (False, "http")
    assert len(read(source)) == 20


@pytest.mark.system
def test_a_playlist_over_http_leads_to_http_only(web: str, media: Path) -> None:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-VERSION:3\n#EXTINF:0.8,\n{}\n#EXT-X-ENDLIST\n"
    (media / "good.m3u8").write_text(playlist.format("clip.ts"))
    (media / "bad.m3u8").write_text(playlist.format(f"file://{media}/clip.ts"))
    (media / "worse.m3u8").write_text(playlist.format(f"subfile,,start,0,end,100000,,:{media}/clip.ts"))
    source = LibavSource(f"{web}/good.m3u8")
    source.open()
    assert len(read(source)) == 20
    for name in ("bad", "worse"):
        source = LibavSource(f"{web}/{name}.m3u8", open_timeout_s=3)
        with pytest.raises(SourceError):
            source.open()


@pytest.mark.system
@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, Reason.AUTH), (403, Reason.AUTH), (404, Reason.NOT_FOUND), (410, Reason.PROTOCOL), (500, Reason.ERROR)],
)
def test_http_errors_become_reasons_and_keep_secrets(status: int, reason: Reason) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        source = LibavSource(f"{address}/x", "admin", SECRET, open_timeout_s=2)
        with pytest.raises(SourceError) as caught:
            source.open()
    assert caught.value.reason is reason
    told = f"{caught.value} {caught.value.detail} {source!r} {caught.value.__cause__} {caught.value.__context__!r}"
    assert "geh" not in caught.value.detail
    assert "geh" not in repr(source)
    assert caught.value.__context__ is None or caught.value.__suppress_context__, f"the traceback tells {told[:20]}"


@pytest.mark.system
def test_credentials_arrive_whatever_they_hold(media: Path) -> None:
    asked: list[str | None] = []

    class Handler(_Quiet):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            if asked[-1] is None:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
            else:
                super().do_GET()

    with serving(partial(Handler, directory=str(media))) as address:
        source = LibavSource(f"{address}/clip.mp4", "ad min", SECRET, realtime=False)
        source.open()
        source.close()
    import base64

    assert f"Basic {base64.b64encode(f'ad min:{SECRET}'.encode()).decode()}" in asked


@pytest.mark.system
def test_a_silent_peer_is_a_timeout_and_a_closed_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for scheme in ("http", "rtsp"):
            begun = time.monotonic()
            with pytest.raises(SourceError) as caught:
                LibavSource(f"{scheme}://127.0.0.1:{port}/x", open_timeout_s=0.5).open()
            assert caught.value.reason is Reason.TIMEOUT
            assert time.monotonic() - begun < 1.5
    for scheme in ("http", "rtsp"):
        with pytest.raises(SourceError) as caught:
            LibavSource(f"{scheme}://127.0.0.1:{port}/x", open_timeout_s=2).open()
        assert caught.value.reason is Reason.REFUSED


@pytest.mark.system
def test_a_series_of_jpegs_is_a_camera_without_a_clock() -> None:
    jpegs = []
    for number in range(8):
        output = io.BytesIO()
        Image.fromarray(picture(number, 192, 128)).save(output, "JPEG")
        jpegs.append(output.getvalue())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
            self.end_headers()
            for jpeg in jpegs:
                head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        source = LibavSource(f"{address}/video", read_timeout_s=2)
        info = source.open()
        assert (info.codec, info.live, info.fps) == ("mjpeg", True, 0)
        units = read(source)
    assert [unit.data[:4000] for unit in units] == [jpeg[:4000] for jpeg in jpegs]
    assert {unit.pts for unit in units} == {None}, "libav would make times up"
    assert all(0.02 < unit.arrival_uncertainty_s < 0.5 for unit in units[1:])


@pytest.mark.system
def test_a_live_http_stream_that_goes_silent_has_stalled(tmp_path: Path) -> None:
    """Late enough for libavformat to have found out what it is."""
    content = write_clip(tmp_path / "clip.ts", frames=50).read_bytes()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
            over.wait(20)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        source = LibavSource(f"{address}/live.ts", open_timeout_s=5, read_timeout_s=0.7)
        info = source.open()
        assert info.live
        units = source.units()
        got: list[AccessUnit | None] = []
        with pytest.raises(SourceError) as caught:
            got.extend(units)
        source.close()
        over.set()
    assert caught.value.reason is Reason.STALLED
    assert len([unit for unit in got if unit]) >= 48
    assert all(unit.arrival_uncertainty_s == pytest.approx(2 / FPS) for unit in got if unit), "held by the parser"
