"""Our RTSP client against real servers: every access unit is held against the clip that the camera plays.

A matrix of codecs, transports and authentications, then the faults that cameras and networks have.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from cameras import CameraProcess

from server.ingest.rtsp.source import RtspSource
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo
from server.testing.camera import Camera, Mount, SentFrame
from server.testing.synthetic import make_clip, read_counter

pytestmark = pytest.mark.system

PASSWORD = 'p@:/"ß w'
FRAMES = 50


def padded(data: bytes) -> av.Packet[av.VideoStream]:
    """With the zeros behind it over which libavcodec may read; av.Packet(data) lacks them and decodes at random."""
    packet: av.Packet[av.VideoStream] = av.Packet(len(data))
    packet.update(data)
    return packet


def clip(codec: str = "h264", b_frames: int = 0, width: int = 320, height: int = 192) -> Path:
    return make_clip(width=width, height=height, frames=FRAMES, gop=10, codec=codec, b_frames=b_frames)  # type: ignore[arg-type]


def split(data: bytes) -> list[bytes]:
    nals = (nal.strip(b"\0") for nal in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1"))
    return [nal for nal in nals if nal]


def slices(data: bytes, codec: str) -> list[bytes]:
    """The NAL units that make the picture."""
    return [nal for nal in split(data) if (1 <= nal[0] & 0x1F <= 5 if codec == "h264" else nal[0] >> 1 & 0x3F < 32)]


def parameter_set_types(data: bytes, codec: str) -> set[int]:
    types = {nal[0] & 0x1F if codec == "h264" else nal[0] >> 1 & 0x3F for nal in split(data)}
    return types & ({7, 8} if codec == "h264" else {32, 33, 34})


def pictures(path: Path, codec: str) -> list[list[bytes]]:
    """The slices of each frame of a clip, in decoding order, read by libavformat."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        to_annexb = av.BitStreamFilterContext("h264_mp4toannexb" if codec == "h264" else "hevc_mp4toannexb", stream)
        packets = (out for packet in container.demux(stream) if packet.size for out in to_annexb.filter(packet))
        return [slices(bytes(packet), codec) for packet in packets]


@dataclass
class Taken:
    """A unit and when it was yielded (monotonic)."""

    unit: AccessUnit
    at: float


def take(source: RtspSource, count: int, after_third: Callable[[], object] = lambda: None) -> list[Taken]:
    """So many units; `after_third` is called in between."""
    taken: list[Taken] = []
    for unit in source.units():
        if unit is not None:
            taken.append(Taken(unit, time.monotonic()))
            if len(taken) == 3:
                after_third()
            if len(taken) == count:
                break
    return taken


def rest(units: Iterator[AccessUnit | None]) -> tuple[list[AccessUnit], SourceError | None]:
    """All further units, and the error that ended them."""
    found: list[AccessUnit] = []
    try:
        found += (unit for unit in units if unit is not None)
    except SourceError as error:
        return found, error
    return found, None


@dataclass
class Connected:
    """A source that plays, and the camera that it plays from."""

    camera: Camera
    source: RtspSource
    info: StreamInfo

    def sent(self) -> list[SentFrame]:
        """What was sent to us: the camera's log begins at PLAY, also where it holds back until a keyframe."""
        sent = self.camera.sent("/live")
        if self.camera.mounts["/live"].start_at_keyframe:
            return list(itertools.dropwhile(lambda frame: not frame.keyframe, sent))
        return sent

    def truth(self, taken: list[Taken]) -> Iterator[tuple[Taken, SentFrame]]:
        """Each unit with the frame that was sent for it, found by its time stamp. The first unit is the first frame."""
        sent = self.sent()
        by_ticks = {(frame.rtp_timestamp - sent[0].rtp_timestamp) & 0xFFFFFFFF: frame for frame in sent}
        for item in taken:
            assert item.unit.pts is not None
            yield item, by_ticks[round(item.unit.pts * 90_000) & 0xFFFFFFFF]


Connect = Callable[..., Connected]
StartCamera = Callable[..., CameraProcess]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A function that starts a camera with one mount and opens a source on it."""
    opened: list[Connected] = []

    def start(mount: Mount, transport: str = "auto", read_timeout_s: float = 5.0, **options: object) -> Connected:
        camera = Camera({"/live": mount}, **options)  # type: ignore[arg-type]
        camera.__enter__()
        url = camera.url("/live", credentials=False)
        source = RtspSource(url, camera.username, camera.password, transport, read_timeout_s=read_timeout_s)
        connected = Connected(camera, source, StreamInfo("none"))
        opened.append(connected)
        connected.info = source.open()
        return connected

    yield start
    for connected in opened:
        connected.source.close()
        connected.camera.close()


def video_decoder(codec: str) -> av.VideoCodecContext:
    decoder = av.CodecContext.create(codec, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    return decoder


def decode(info: StreamInfo, units: list[AccessUnit], caplog: pytest.LogCaptureFixture) -> list[int | None]:
    """The numbers in the decoded pictures. Asserts that libav has nothing to complain about."""
    decoder = video_decoder(info.codec)
    if info.extradata:
        decoder.extradata = info.extradata
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with caplog.at_level(logging.WARNING):
            frames = [frame for unit in units for frame in decoder.decode(padded(unit.data))]
            frames += decoder.decode(None)
    finally:
        av.logging.set_level(level)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("libav")] == []
    return [read_counter(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)) for frame in frames]


# The matrix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "transport", "auth", "b_frames"),
    [
        ("h264", "tcp", None, 0),
        ("h264", "tcp", "basic", 2),
        ("h264", "tcp", "digest", 0),
        ("h264", "udp", "digest-qop", 2),
        ("h264", "udp", "digest-sha256", 0),
        ("hevc", "tcp", "any", 2),
        ("hevc", "tcp", "digest", 0),
        ("hevc", "udp", "basic", 0),
        ("hevc", "udp", "digest-sha256", 2),
    ],
)
def test_every_unit_is_the_clips(
    connect: Connect, codec: str, transport: str, auth: str | None, b_frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = clip(codec, b_frames)
    options = {} if auth is None else {"username": "admin", "password": PASSWORD, "auth": auth}
    near_the_wrap = Mount(
        path, audio=True, start_at_keyframe=True, first_sequence=65_530, first_timestamp=2**32 - 9_000
    )
    live = connect(near_the_wrap, transport, **options)
    assert (live.info.codec, live.info.transport, live.info.client) == (codec, transport, "native")
    assert (live.info.width, live.info.height) == (320, 192)
    taken = take(live.source, 30)
    expected = pictures(path, codec)
    pairs = list(live.truth(taken))
    for item, sent in pairs:
        unit = item.unit
        assert slices(unit.data, codec) == expected[sent.index]
        assert not unit.damaged
        assert unit.keyframe == sent.keyframe
        assert unit.lost_packets == 0
        if unit.keyframe:
            assert parameter_set_types(unit.data, codec) == ({7, 8} if codec == "h264" else {32, 33, 34})
        assert unit.captured_unix == pytest.approx(sent.captured_unix, abs=0.002)
    numbers = decode(live.info, [item.unit for item in taken], caplog)
    first = pairs[0][1].index
    assert numbers == [(first + place) % FRAMES for place in range(len(taken))]


@pytest.mark.parametrize(
    ("codec", "transport", "auth", "b_frames"),
    [
        ("h264", "tcp", None, 0),
        ("h264", "udp", "digest", 2),
        ("hevc", "tcp", "basic", 2),
        ("hevc", "udp", "digest", 0),
    ],
)
def test_every_unit_of_gstreamer_is_the_clips(
    start_camera: StartCamera,
    codec: str,
    transport: str,
    auth: str | None,
    b_frames: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Debian's gst-rtsp-server tells nothing of what it sends, but that the pictures follow each other."""
    path = clip(codec, b_frames)
    username, password = ("admin", PASSWORD) if auth else (None, None)
    camera = start_camera({"door": path}, kind="gst", username=username, password=password, auth=auth or "digest")
    source = RtspSource(camera.url("door", credentials=False), username, password, transport)
    info = source.open()
    taken = take(source, 70)
    source.close()
    assert (info.codec, info.transport, info.width, info.height) == (codec, transport, 320, 192)
    expected = pictures(path, codec)
    first = expected.index(slices(taken[0].unit.data, codec))
    for place, item in enumerate(taken, first):
        assert slices(item.unit.data, codec) == expected[place % FRAMES]
        assert not item.unit.damaged
    last = taken[-1].unit
    # Its first report may come as late as five seconds after PLAY.
    assert last.captured_unix is None or abs(last.captured_unix - last.received_unix) < 1
    start = next(place for place, item in enumerate(taken) if item.unit.keyframe)
    numbers = decode(info, [item.unit for item in taken[start:]], caplog)
    assert len(numbers) == len(taken) - start
    assert [number for number in numbers if number is not None][:5] == [(numbers[0] or 0) + place for place in range(5)]


def test_units_come_at_once(connect: Connect) -> None:
    """At 10 frames/s: libavformat would give each of them 100 ms late. Median, as this machine may be busy."""
    live = connect(Mount(clip(), fps=10.0))
    pairs = list(live.truth(take(live.source, 20)))
    assert statistics.median(item.at - sent.sent_at for item, sent in pairs) < 0.005
    assert statistics.median(abs(item.unit.arrived_at - sent.sent_at) for item, sent in pairs) < 0.005
    for item, _ in pairs:
        assert item.unit.arrived_at <= item.at
        assert item.unit.received_unix - item.unit.arrived_at == pytest.approx(time.time() - time.monotonic(), abs=0.1)


def test_auto_falls_back_to_udp(connect: Connect) -> None:
    live = connect(Mount(clip(), transports=("udp",)))
    assert live.info.transport == "udp"
    assert len(take(live.source, 3)) == 3


# Faults ---------------------------------------------------------------------------------------------------------------


def harm(live: Connected, **rates: float) -> Callable[[], None]:
    def act() -> None:
        for name, value in rates.items():
            setattr(live.camera.faults("/live"), name, value)

    return act


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_with_losses_a_unit_is_right_or_damaged(connect: Connect, codec: str, transport: str) -> None:
    path = clip(codec, width=640, height=384)
    live = connect(Mount(path, fps=50.0, start_at_keyframe=True), transport, seed=3)
    taken = take(live.source, 120, harm(live, loss=0.08, duplicate=0.05))
    expected = pictures(path, codec)
    pairs = list(live.truth(taken))
    harmed = [sent for _, sent in pairs if sent.harmed]
    assert len(harmed) > 5, "a test without losses shows nothing"
    last_index = -1
    for item, sent in pairs:
        place = live.sent().index(sent)
        skipped = place != last_index + 1
        last_index = place
        if not item.unit.damaged:
            assert not sent.harmed
            assert slices(item.unit.data, codec) == expected[sent.index]
            assert not skipped or sent.keyframe, "a frame vanished in silence"
    lost = sum(item.unit.lost_packets for item, _ in pairs)
    upto = live.sent().index(pairs[-1][1])
    assert lost == sum(sent.harmed for sent in live.sent()[: upto + 1])


def test_reordering_and_duplicates_cost_nothing(connect: Connect) -> None:
    path = clip(width=640, height=384)
    live = connect(Mount(path, fps=50.0, start_at_keyframe=True), "udp")
    taken = take(live.source, 80, harm(live, reorder=0.3, duplicate=0.2))
    expected = pictures(path, "h264")
    for item, sent in live.truth(taken):
        assert not item.unit.damaged
        assert slices(item.unit.data, "h264") == expected[sent.index]


@pytest.mark.parametrize(
    ("transport", "ending"),
    [
        ("tcp", lambda camera: camera.kill("/live")),
        ("tcp", lambda camera: camera.kill("/live", reset=True)),
        ("tcp", lambda camera: camera.bye("/live")),
        ("udp", lambda camera: camera.bye("/live")),
        ("udp", lambda camera: camera.kill("/live")),
    ],
    ids=["FIN", "RST", "BYE", "BYE over UDP", "FIN with UDP"],
)
def test_ends(connect: Connect, transport: str, ending: Callable[[Camera], object]) -> None:
    live = connect(Mount(clip()), transport)
    units = live.source.units()
    assert next(unit for unit in units if unit is not None)
    ending(live.camera)
    started = time.monotonic()
    _, error = rest(units)
    assert error is None
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_stall(connect: Connect, transport: str) -> None:
    live = connect(Mount(clip(), sender_report_interval_s=0.1), transport, read_timeout_s=1.0)
    units = live.source.units()
    assert next(unit for unit in units if unit is not None)
    live.camera.faults("/live").stalled = True
    started = time.monotonic()
    _, error = rest(units)
    assert error is not None
    assert error.reason == Reason.STALLED
    assert 0.9 < time.monotonic() - started < 2.5


def test_a_switch_of_the_picture_size(connect: Connect) -> None:
    other = clip(width=640, height=384)
    live = connect(Mount(clip(), start_at_keyframe=True))
    taken = take(live.source, 25, lambda: live.camera.switch("/live", other))
    assert not any(item.unit.damaged for item in taken)
    decoder = video_decoder("h264")
    frames = [frame for item in taken for frame in decoder.decode(padded(item.unit.data))]
    sizes = [(frame.width, frame.height) for frame in frames]
    assert [size for size, _ in itertools.groupby(sizes)] == [(320, 192), (640, 384)]


def test_withheld_sets_are_not_made_up(connect: Connect) -> None:
    mount = Mount(clip(), start_at_keyframe=True, sdp_parameter_sets=False)
    mount.faults.withhold_sets = 1
    live = connect(mount)
    assert live.info.extradata == b""
    keyframes = [item.unit for item in take(live.source, 22) if item.unit.keyframe]
    assert [parameter_set_types(unit.data, "h264") for unit in keyframes] == [set(), {7, 8}, {7, 8}]


def test_time_stamps_that_jump(connect: Connect) -> None:
    live = connect(Mount(clip()))
    taken = take(live.source, 10, lambda: live.camera.jump("/live", 100.0))
    times = [item.unit.pts for item in taken if item.unit.pts is not None]
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert max(steps) == pytest.approx(100.04, abs=0.01)
    for item, sent in live.truth(taken):
        assert item.unit.captured_unix == pytest.approx(sent.captured_unix, abs=0.002)


@pytest.mark.parametrize("offset", [-3600.0, 3600.0])
def test_a_camera_whose_clock_is_hours_off(
    connect: Connect, offset: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTS and arrival are what they are; there is no capture time, and one line says why."""
    monkeypatch.setattr("server.ingest.rtsp.source.REPORT_INTERVAL_S", 0.1)
    live = connect(Mount(clip(), clock_offset_s=offset))
    with caplog.at_level(logging.WARNING, "yolov9.ingest"):
        for item, sent in live.truth(take(live.source, 12)):
            assert item.unit.captured_unix is None
            assert item.unit.capture_uncertainty_s is None
            assert item.unit.arrived_at == pytest.approx(sent.sent_at, abs=0.02)
    (line,) = [record.getMessage() for record in caplog.records if "clock_ahead_s" in record.getMessage()]
    assert f"clock_ahead_s={offset:.0f}" in line


def test_a_camera_whose_clock_is_some_seconds_ahead(connect: Connect) -> None:
    live = connect(Mount(clip(), clock_offset_s=5.0))
    for item, sent in live.truth(take(live.source, 3)):
        assert item.unit.captured_unix == pytest.approx(sent.captured_unix, abs=0.002), "as it says"
        assert 4.9 < (item.unit.capture_uncertainty_s or 0) < 5.1


def test_time_stamps_that_go_back_and_no_report(connect: Connect) -> None:
    live = connect(Mount(clip()))

    def go_back() -> None:
        live.camera.mounts["/live"].sender_report_interval_s = None
        live.camera.jump("/live", -20.0)

    taken = take(live.source, 20, go_back)
    steps = [(b.unit.pts or 0) - (a.unit.pts or 0) for a, b in itertools.pairwise(taken)]
    back = steps.index(min(steps)) + 1
    assert min(steps) == pytest.approx(-19.96, abs=0.01), "stated as it comes"
    assert [item.unit.captured_unix is None for item in taken] == [place >= back for place in range(20)]


def test_no_sender_reports_no_capture_time(connect: Connect) -> None:
    live = connect(Mount(clip(), sender_report_interval_s=None))
    assert all(item.unit.captured_unix is None for item in take(live.source, 3))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_session_is_kept_alive_with_a_new_nonce(connect: Connect, transport: str) -> None:
    """The camera forgets sessions after 2 s without a request; its nonce expires on the way."""
    options = {"username": "u", "password": PASSWORD, "auth": "digest-qop", "session_timeout_s": 2.0}
    live = connect(Mount(clip()), transport, **options)
    taken = take(live.source, 85, live.camera.renew_nonce)
    assert len(taken) == 85
    assert not any(item.unit.damaged for item in taken)


def test_wrong_password_and_unknown_path(connect: Connect) -> None:
    live = connect(Mount(clip()), username="u", password="right")
    url = live.camera.url("/live", credentials=False)
    for source, reason in (
        (RtspSource(url, "u", "wrong"), Reason.AUTH),
        (RtspSource(url), Reason.AUTH),
        (RtspSource(url + "/nothing", "u", "right"), Reason.NOT_FOUND),
    ):
        with pytest.raises(SourceError) as caught:
            source.open()
        assert caught.value.reason == reason


def test_a_muted_camera_times_out(connect: Connect) -> None:
    live = connect(Mount(clip()))
    live.camera.muted = True
    started = time.monotonic()
    with pytest.raises(SourceError) as caught:
        RtspSource(live.camera.url("/live"), open_timeout_s=0.5).open()
    assert caught.value.reason == Reason.TIMEOUT
    assert time.monotonic() - started < 2
    live.camera.muted = False
