"""Every kind of source against a real peer on loopback: what a dry run says, that pictures come out, and why not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from rtmp_server import rtmp_server
from test_ingest_http import files, serving
from test_ingest_libav import write_clip

from server.ingest.decoder import Decoder, Shown
from server.ingest.gst.process import PYTHON
from server.ingest.inputs import Opening
from server.ingest.libav import LibavSource
from server.ingest.mpegts import TransportStream
from server.ingest.probing import describe
from server.ingest.source import AccessUnit, Reason, Source, SourceError
from server.ingest.sources import sources_for
from server.ingest.spawn import nursery
from server.ingest.supervisor import Camera, probe
from server.ingest.wire import CameraSettings, EventKind, StateChange

pytestmark = pytest.mark.system
FPS = 25
TS_BYTES = 1316
GST_PACKAGES = "python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-{base,good,bad,ugly}"


@functools.cache
def missing_elements(*names: str) -> str | None:
    """Why a test with these elements of GStreamer cannot run here."""
    code = (
        "import sys, gi\ngi.require_version('Gst', '1.0')\ngi.require_version('GstApp', '1.0')\n"
        "from gi.repository import Gst, GstApp\nGst.init(None)\n"
        "raise SystemExit(any(Gst.ElementFactory.find(name) is None for name in sys.argv[1:]))"
    )
    try:
        found = subprocess.run([PYTHON, "-c", code, *names], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return f"{PYTHON} does not run; Debian packages needed: {GST_PACKAGES}"
    return (
        None if found.returncode == 0 else f"{names} of GStreamer are missing; Debian packages needed: {GST_PACKAGES}"
    )


def needs(*elements: str) -> None:
    if reason := missing_elements(*elements):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds as MP4; beside it the same as MPEG-TS."""
    folder = tmp_path_factory.mktemp("sources")
    write_clip(folder / "clip.ts", frames=4 * FPS)
    return write_clip(folder / "clip.mp4", frames=4 * FPS)


def settings(url: str, **options: Any) -> CameraSettings:
    return CameraSettings(stream="t", url=url, **({"open_timeout_s": 5.0, "read_timeout_s": 2.0} | options))


def opened(wanted: CameraSettings) -> Source:
    source = next(sources_for(wanted))
    source.open()
    return source


def failure(wanted: CameraSettings) -> SourceError:
    """Of a source that opens or does not, and then ends or fails."""
    source = next(sources_for(wanted))

    def play() -> None:
        source.open()
        for _ in source.units():
            pass

    with pytest.raises(SourceError) as caught:
        play()
    source.close()
    return caught.value


# Peers. Each gives the address to open.


@contextlib.contextmanager
def datagrams(clip: Path, scheme: str = "udp") -> Iterator[str]:
    """The clip as MPEG-TS, again and again, in real time."""
    content = clip.with_suffix(".ts").read_bytes()
    chunks = [content[i : i + TS_BYTES] for i in range(0, len(content), TS_BYTES)]
    pause_s = 4.0 / len(chunks)
    over = threading.Event()
    port = free_port()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            begun = time.monotonic()
            for number in itertools.count():
                if over.wait(max(begun + number * pause_s - time.monotonic(), 0)):
                    return
                header = b"\x80\x21" + (number & 0xFFFF).to_bytes(2, "big") + bytes(8) if scheme == "rtp" else b""
                with contextlib.suppress(OSError):
                    sock.sendto(header + chunks[number % len(chunks)], ("127.0.0.1", port))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield f"{scheme}://127.0.0.1:{port}"
    over.set()
    thread.join()


@contextlib.contextmanager
def rtmp(clip: Path) -> Iterator[str]:
    with rtmp_server(clip) as (port, _):
        yield f"rtmp://127.0.0.1:{port}/live/door"


@contextlib.contextmanager
def hls(clip: Path) -> Iterator[str]:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nclip.ts\n#EXT-X-ENDLIST\n"
    contents = {"/x.m3u8": playlist, "/clip.ts": clip.with_suffix(".ts").read_bytes()}
    with serving(files(contents)) as (address, _):
        yield f"{address}/x.m3u8"


@contextlib.contextmanager
def http(clip: Path) -> Iterator[str]:
    with serving(files({"/clip.mp4": clip.read_bytes()})) as (address, _):
        yield f"{address}/clip.mp4"


@contextlib.contextmanager
def srt(clip: Path, passphrase: str | None = None) -> Iterator[str]:
    needs("srtsink", "srtsrc", "tsparse")
    port = free_port()
    secret = f" passphrase={passphrase}" if passphrase else ""
    pipeline = (
        f"filesrc location={clip.with_suffix('.ts')} ! tsparse set-timestamps=true alignment=7 ! "
        f'srtsink name=s uri="srt://127.0.0.1:{port}?mode=listener" wait-for-connection=true sync=true{secret}'
    )
    code = (
        "import sys, gi\ngi.require_version('Gst', '1.0')\nfrom gi.repository import Gst\nGst.init(None)\n"
        "p = Gst.parse_launch(sys.argv[1])\np.set_state(Gst.State.PLAYING)\nprint(flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen([PYTHON, "-c", code, pipeline], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"srt://127.0.0.1:{port}?latency=60"
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def pipeline(clip: Path) -> Iterator[str]:
    needs("videotestsrc", "x264enc")
    yield (
        "gst: videotestsrc is-live=true ! video/x-raw,width=192,height=128,framerate=25/1 "
        "! x264enc tune=zerolatency key-int-max=10 ! appsink sync=false"
    )


@contextlib.contextmanager
def raw_pipeline(clip: Path) -> Iterator[str]:
    needs("videotestsrc")
    yield "gst: videotestsrc is-live=true ! video/x-raw,format=I420,width=192,height=128,framerate=25/1 ! appsink"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


Peer = Callable[[Path], AbstractContextManager[str]]
SOURCES: dict[str, tuple[Peer, str, str, str]] = {
    # kind: (peer, codec, transport, client)
    "udp": (datagrams, "h264", "udp", "libav"),
    "rtp": (functools.partial(datagrams, scheme="rtp"), "h264", "rtp", "libav"),
    "rtmp": (rtmp, "h264", "rtmp", "libav"),
    "http": (http, "h264", "http", "libav"),
    "hls": (hls, "h264", "hls", "libav"),
    "srt": (srt, "h264", "srt", "libav"),
    "gst": (pipeline, "h264", "gstreamer", "gstreamer"),
    "gst raw": (raw_pipeline, "rawvideo", "gstreamer", "gstreamer"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_dry_run_says_what_it_is(clip: Path, kind: str) -> None:
    """It decodes a first picture: that is where the size comes from."""
    peer, codec, transport, client = SOURCES[kind]
    with peer(clip) as url:
        found = describe(settings(url))
    assert (found.state, found.codec, found.width, found.height) == ("running", codec, 192, 128)
    assert (found.transport, found.client) == (transport, client)
    assert found.fps == pytest.approx(FPS)


# Why not.


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"rtmp://127.0.0.1:{port}/live/x", f"http://127.0.0.1:{port}/x"):
        assert failure(settings(url)).reason is Reason.REFUSED
    for url in (f"udp://127.0.0.1:{free_port()}", f"rtp://127.0.0.1:{free_port()}"):
        error = failure(settings(url, open_timeout_s=0.3))
        assert error.reason is Reason.TIMEOUT
        assert "port" in error.detail


def test_nobody_listens_to_srt() -> None:
    """SRT cannot be refused: nothing answers."""
    needs("srtsrc")
    error = failure(settings(f"srt://127.0.0.1:{free_port()}", open_timeout_s=0.8))
    assert error.reason is Reason.TIMEOUT


def test_names_that_do_not_resolve() -> None:
    for url in (
        "rtmp://no-such-camera.invalid/live/x",
        "http://no-such-camera.invalid/x",
        "srt://no-such.invalid:9000",
    ):
        assert failure(settings(url)).reason is Reason.UNREACHABLE


@pytest.mark.parametrize(
    "url", ["rtmp://localhost:1/live/x", "srt://localhost:9000", "http://localhost:1/x", "rtsp://localhost:1/x"]
)
def test_every_kind_keeps_to_the_networks(url: str) -> None:
    """The name is permitted by its form, and its address is not."""
    error = failure(settings(url, deny_networks=["127.0.0.0/8", "::1/128"]))
    assert error.reason is Reason.FORBIDDEN


def test_datagrams_of_senders_elsewhere_are_not_taken(clip: Path) -> None:
    with datagrams(clip) as url:
        error = failure(settings(url, allow_networks=["192.0.2.0/24"], open_timeout_s=0.5))
    assert error.reason is Reason.FORBIDDEN


def test_the_fall_back_for_rtsp_is_not_used_where_networks_are_named() -> None:
    """libavformat would follow a redirect by itself."""
    error = failure(settings("rtsp://127.0.0.1:1/x", rtsp_client="libav", allow_networks=["127.0.0.0/8"]))
    assert error.reason is Reason.FORBIDDEN


def test_a_device_that_is_not_there() -> None:
    assert failure(settings("v4l2:/dev/video123?size=640x480&fps=30")).reason is Reason.NOT_FOUND


def test_a_device_that_is_no_camera() -> None:
    error = failure(settings("v4l2:/dev/null"))
    assert error.reason in (Reason.ERROR, Reason.CODEC)


def test_an_rtmp_server_that_goes_silent_has_stalled(clip: Path) -> None:
    with rtmp_server(clip, stall_after=45) as (port, asked):
        source = opened(settings(f"rtmp://localhost:{port}/live/door", read_timeout_s=0.8))
        units, silent_s, error = until_failure(source)
    assert error.reason is Reason.STALLED
    assert 0.7 < silent_s < 1.8
    assert [unit.keyframe for unit in units[:1]] == [True]
    assert len(units) >= 43, "each frame when it is there, not when the next one is"
    assert set(asked) == {f"rtmp://localhost:{port}/live"}, "the name, though the address was connected to"


def until_failure(source: Source) -> tuple[list[AccessUnit], float, SourceError]:
    """(units, seconds of silence before the error, the error)"""
    units: list[AccessUnit] = []
    with pytest.raises(SourceError) as caught:
        units.extend(unit for unit in source.units() if unit is not None)
    silent_s = time.monotonic() - units[-1].arrived_at
    source.close()
    return units, silent_s, caught.value


def test_a_wrong_passphrase_is_no_stream(clip: Path) -> None:
    with srt(clip, passphrase="0123456789abc") as url:
        error = failure(settings(url, password="not the passphrase", open_timeout_s=2.0))
        assert error.reason is Reason.AUTH
        assert "not the passphrase" not in error.detail
        assert describe(settings(f"{url}&pbkeylen=16", password="0123456789abc")).codec == "h264"


# Loss.


class Lossy(TransportStream):
    """A clip as MPEG-TS in datagrams, some of which are lost. As an `Input`, too."""

    network = True
    live: bool | None = True
    survives_silence = False

    def __init__(self, clip: Path, lost: range) -> None:
        super().__init__("lossy")
        content = clip.read_bytes()
        chunks = [content[i : i + TS_BYTES] for i in range(0, len(content), TS_BYTES)]
        self._chunks = iter([chunk for number, chunk in enumerate(chunks) if number not in lost])

    def _datagram(self) -> bytes:
        return next(self._chunks, b"")

    def openings(self, deadline: float) -> Iterator[Opening]:
        yield Opening(self, "lossy", {"protocol_whitelist": "none"}, "mpegts")

    def allow_until(self, deadline: float, late: SourceError) -> None:
        pass


@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_damaged_by_loss_are_not_shown(tmp_path: Path, codec: str, run: int) -> None:
    """One loss of `run` datagrams, anywhere: fewer than the sixteen packets that no counter tells of. What is
    shown is what was sent, to the last pixel. libavcodec itself does not see every cut in H.265."""
    clip = write_clip(tmp_path / "clip.ts", codec, frames=4 * FPS)
    expected = {picture.to_ndarray().tobytes() for picture in whole_pictures(clip)}
    chunks = clip.stat().st_size // TS_BYTES
    for first in range(chunks // 3, 2 * chunks // 3, 6):
        source = LibavSource("", reads=Lossy(clip, range(first, first + run)), realtime=False)
        decoder = Decoder(source.open())
        verdicts = [v for seq, unit in enumerate(source.units()) if unit for v in decoder.decode(seq, unit)]
        verdicts += decoder.drain()
        source.close()
        shown = [verdict.frame for verdict in verdicts if isinstance(verdict, Shown)]
        assert 50 < len(shown) < 4 * FPS, "to the next keyframe nothing is shown, and from there on everything"
        assert all(frame.to_ndarray().tobytes() in expected for frame in shown), first


def whole_pictures(clip: Path) -> list[av.VideoFrame]:
    with av.open(str(clip)) as container:
        return list(container.decode(video=0))


# Pipelines: errors of theirs, and our watchdog.


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        ("videotestsrc ! nosuchelement ! appsink", Reason.ERROR, "nosuchelement"),
        ("filesrc location=/nosuch/clip.mp4 ! decodebin ! appsink", Reason.NOT_FOUND, "filesrc"),
        ("filesrc location=/etc/hostname ! decodebin ! appsink", Reason.CODEC, ""),
        ("rtspsrc location=rtsp://127.0.0.1:1/x ! decodebin ! appsink", Reason.REFUSED, "rtspsrc"),
        ("videotestsrc num-buffers=3 ! fakesink videotestsrc ! fakesink name=appsink", Reason.ERROR, "appsink"),
        ("audiotestsrc ! appsink", Reason.CODEC, "videoconvert"),
        ("videotestsrc ! video/x-raw,format=ARGB64 ! appsink", Reason.CODEC, "videoconvert"),
        ("videotestsrc num-buffers=0 ! appsink", Reason.ENDED, ""),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_said(text: str, reason: Reason, told: str) -> None:
    needs("videotestsrc", "audiotestsrc", "rtspsrc", "decodebin")
    error = failure(settings(f"gst: {text}"))
    assert error.reason is reason, error
    assert told in error.detail


def test_errors_of_elements_tell_no_password() -> None:
    needs("videotestsrc")
    error = failure(settings("gst: videotestsrc pattern=rtsp://u:s3cret@h/x user-pw=s3cret ! appsink"))
    assert "s3cret" not in error.detail


def test_a_pipeline_that_ends_ends(clip: Path) -> None:
    needs("videotestsrc", "jpegenc")
    source = opened(settings("gst: videotestsrc num-buffers=5 ! jpegenc ! appsink sync=false"))
    units = [unit for unit in source.units() if unit is not None]
    source.close()
    assert [(unit.keyframe, unit.data[:2]) for unit in units] == [(True, b"\xff\xd8")] * 5


def test_a_pipeline_that_hangs_is_killed_with_its_process(clip: Path) -> None:
    with pipeline(clip) as url:
        source = opened(settings(url, read_timeout_s=0.6))
        helper = helpers_of_this_process()[0]
        units = source.units()
        while not isinstance(next(units), AccessUnit):
            pass
        helper.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(SourceError) as caught:
            list(units)
        assert caught.value.reason is Reason.STALLED
        assert 0.5 < time.monotonic() - begun < 1.6
        source.close()
    assert not helper.is_running()


def test_no_helper_is_left_behind(clip: Path) -> None:
    with pipeline(clip) as url:
        source = opened(settings(url))
        (helper,) = helpers_of_this_process()
        assert "videotestsrc" not in " ".join(helper.cmdline()), "a pipeline may hold passwords"
        os.kill(helper.pid, signal.SIGKILL)
        with pytest.raises(SourceError) as caught:
            list(source.units())
        assert caught.value.reason is Reason.PROCESS_LOST
        source.close()
        source.open()
        source.close()
    assert helpers_of_this_process() == []


def helpers_of_this_process() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("gst/helper" in part for part in child.cmdline())]


async def test_a_camera_process_takes_its_pipeline_with_it(clip: Path) -> None:
    """Killed, so that nothing can be tidied up."""
    with pipeline(clip) as url:
        ready = asyncio.Event()
        states: list[StateChange] = []
        camera = Camera(
            settings(url, backoff_initial_s=30.0), slots=4, on_state=states.append, on_lost=lambda: None,
            on_events=lambda events: ready.set() if any(e.kind is EventKind.READY for e in events) else None,
        )  # fmt: skip
        camera.start(1)
        await asyncio.wait_for(ready.wait(), 20)
        assert camera.pid is not None
        (helper,) = psutil.Process(camera.pid).children()
        os.kill(camera.pid, signal.SIGKILL)
        await asyncio.to_thread(helper.wait, 5)
        assert states[1].client == "gstreamer"
        found = await probe(settings(url), 10)
        assert (found.ok, found.codec, found.width) == (True, "h264", 192)
        await camera.stop(2.0)
        camera.arena.close()
        nursery().close()
