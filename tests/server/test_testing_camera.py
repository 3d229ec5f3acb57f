"""The camera of our own. Its packets are looked at by a client of forty lines, its pictures by libavformat's."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator

import av.error
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.testing import footage
from server.testing.auth import Guard
from server.testing.camera import Camera, ClipError, Faults, Mount
from server.testing.clip import load_clip
from server.testing.rtp import Track
from server.testing.synthetic import draw, make_clip, read_counter, reencode
from server.testing.timeline import Timeline
from server.testing.viewer import watch

FPS = 50
HZ = 90_000
NTP_OFFSET = 2_208_988_800


def clip(**changes):
    return make_clip(**({"width": 320, "height": 192, "fps": FPS, "frames": 50, "gop": 5} | changes))


class Client:
    """Speaks RTSP over one connection and hands out what comes, packet by packet."""

    def __init__(self, camera: Camera, path: str) -> None:
        self.url = camera.url(path, credentials=False)
        self.socket = socket.create_connection((camera.host, camera.port), timeout=5)
        self._file = self.socket.makefile("rb")
        self._number = 0
        self.session = ""

    def ask(self, method: str, suffix: str = "", **headers: str) -> tuple[int, dict[str, str], str]:
        self._number += 1
        lines = [f"{method} {self.url}{suffix} RTSP/1.0", f"CSeq: {self._number}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if self.session:
            lines.append(f"Session: {self.session}")
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while (first := self._file.read(1)) == b"$":  # media between: not wanted here
            self._file.read(int.from_bytes(self._file.read(3)[1:], "big"))
        assert first, "the camera closed the connection"
        status = int(self._file.readline().split()[1])
        answer = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            answer[name.lower()] = value.strip()
        assert answer["cseq"] == str(self._number)
        return status, answer, self._file.read(int(answer.get("content-length", 0))).decode()

    def play(self, transport: str = "RTP/AVP/TCP;unicast;interleaved=0-1") -> dict[str, str]:
        status, answer, _ = self.ask("SETUP", "/trackID=0", Transport=transport)
        assert status == 200
        self.session = answer["session"].split(";")[0]
        self.transport = answer["transport"]
        status, answer, _ = self.ask("PLAY")
        assert status == 200
        return answer

    def packet(self) -> tuple[int, bytes] | None:
        """(channel, packet), None at the end of the connection."""
        head = self._file.read(4)
        if len(head) < 4:
            return None
        assert head[:1] == b"$"
        return head[1], self._file.read(int.from_bytes(head[2:], "big"))

    def frames(self, count: int) -> list[list[bytes]]:
        """RTP packets grouped by time stamp: so many whole frames."""
        out: list[list[bytes]] = []
        while len(out) < count or not out[-1][-1][1] & 0x80:
            item = self.packet()
            assert item is not None, "the camera closed the connection"
            if item[0] == 0:
                if not out or stamp(out[-1][0]) != stamp(item[1]):
                    out.append([])
                out[-1].append(item[1])
        return out

    def until_silent(self, silence_s: float) -> list[tuple[int, bytes]]:
        """All packets until none comes for so long; the connection must stay open. It cannot be used afterwards."""
        self.socket.settimeout(silence_s)
        received = []
        try:
            while item := self.packet():
                received.append(item)
        except TimeoutError:
            return received
        raise AssertionError("the camera closed the connection")

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def stamp(packet: bytes) -> int:
    return int.from_bytes(packet[4:8], "big")


def sequence(packet: bytes) -> int:
    return int.from_bytes(packet[2:4], "big")


def has_sets(frame: list[bytes]) -> bool:
    """Whether a frame of H.264 begins with SPS and PPS: libavformat packs them together (STAP-A)."""
    return frame[0][12] & 0x1F in (7, 24)


@contextlib.contextmanager
def connected(camera: Camera, path: str = "/door") -> Iterator[Client]:
    client = Client(camera, path)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def door(mount: Mount | None = None, **options) -> Iterator[Camera]:
    with Camera({"/door": mount or Mount(clip())}, **options) as camera:
        yield camera


# Pictures, clips and clocks, without a socket.


@pytest.mark.parametrize("size", [(640, 352), (322, 178), (1280, 720)])
@pytest.mark.parametrize("number", [0, 1, 12345, 65535])
def test_picture_bears_its_number(size, number):
    assert read_counter(draw(*size, number)) == number


def test_grey_or_torn_picture_bears_none():
    picture = draw(320, 192, 7)
    assert read_counter(np.full_like(picture, 128)) is None
    picture[:20] = 128
    assert read_counter(picture) is None


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_clip_keeps_order_times_and_parameter_sets(codec, b_frames):
    loaded = load_clip(clip(codec=codec, b_frames=b_frames))
    assert (loaded.codec, loaded.width, loaded.height, loaded.fps) == (codec, 320, 192, FPS)
    assert sorted(frame.rank for frame in loaded.frames) == list(range(50))
    assert loaded.duration == 50 * HZ // FPS + (0 if b_frames == 0 else max(0, loaded.duration - 50 * HZ // FPS))
    assert [index for index, frame in enumerate(loaded.frames) if frame.keyframe] == list(range(0, 50, 5))
    for frame in loaded.frames:
        assert [payload.marker for payload in frame.payloads] == [False] * (len(frame.payloads) - 1) + [True]
        assert max(len(payload.data) for payload in frame.payloads) <= 1388
        if not frame.keyframe:
            assert frame.without_sets is frame.payloads
    text = loaded.sdp_format()
    assert ("sprop-parameter-sets=" in text) == (codec == "h264")
    assert ("sprop-vps=" in text) == (codec == "hevc")
    assert "sprop" not in loaded.sdp_format(with_sets=False)


def test_clip_that_cannot_be_played_is_named(tmp_path):
    with pytest.raises(ClipError, match=r"nothing\.mp4: No such file"):
        Camera({"/door": Mount(tmp_path / "nothing.mp4")})
    (tmp_path / "text.mp4").write_text("no clip")
    with pytest.raises(ClipError, match=r"text\.mp4: Invalid data"):
        load_clip(tmp_path / "text.mp4")


def test_reencoded_clip_has_the_same_pictures_in_another_size():
    small = reencode(clip(), width=160, height=96, frames=20)
    loaded = load_clip(small)
    assert (loaded.width, loaded.height, loaded.fps, len(loaded.frames)) == (160, 96, FPS, 20)
    with av.open(str(small)) as container:
        numbers = [read_counter(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert numbers == list(range(20))


@given(
    b_frames=st.sampled_from([0, 2]),
    fps=st.sampled_from([None, 10.0, 29.97]),
    skips=st.lists(st.integers(0, 5 * HZ), max_size=4),
    phase=st.floats(0, 5),
    switch_at=st.integers(0, 120),
)
def test_timeline_never_goes_back(b_frames, fps, skips, phase, switch_at):
    timeline = Timeline(load_clip(clip(b_frames=b_frames)), fps, phase)
    assert timeline.peek().dts >= 0
    now, shown = 0, []
    for step in range(150):
        if step == switch_at:
            timeline.switch(load_clip(clip(frames=25)), None)
        item = timeline.peek()
        assert item.dts >= now
        assert item.pts - timeline.delay <= item.dts, "a frame is captured before it is sent"
        now = item.dts
        shown.append(item.pts)
        timeline.advance()
        if skips and step % 40 == 39:
            now += skips.pop()
            timeline.skip_to(now)
    assert len(set(shown)) == len(shown)
    assert all(after > before - timeline_reach(b_frames, fps) for before, after in itertools.pairwise(shown))


def timeline_reach(b_frames: int, fps: float | None) -> float:
    """How far presentation times may step back between frames that follow each other in decoding order."""
    return (b_frames + 1) * HZ / (fps or FPS) + 1


def test_faults_are_seeded_and_counted():
    packets = [bytes(12) + bytes([index] * 100) for index in range(200)]
    faults = Faults(loss=0.1, corrupt=0.1, duplicate=0.1)
    sent, harmed = faults.damage(packets, random.Random(3))
    assert (sent, harmed) == faults.damage(packets, random.Random(3))
    lost = set(packets) - set(sent)
    changed = [packet for packet in sent if packet not in packets]
    assert len(lost) == harmed
    assert all(packet[:15] in {original[:15] for original in packets} for packet in changed)
    assert 20 <= harmed <= 60
    assert len(sent) > len(set(sent)), "some came twice"
    shuffled = Faults(reorder=0.5).shuffled(packets, random.Random(3))
    assert shuffled != packets
    assert sorted(shuffled) == sorted(packets)


def test_exact_faults_hit_the_next_packets_and_no_other():
    packets = [bytes([0] * 12 + [index] * 100) for index in range(10)]
    faults = Faults(lose_next=2, corrupt_next=1)
    sent, harmed = faults.damage(packets, random.Random(0))
    assert harmed == 3
    assert sent[0] != packets[2]
    assert sent[1:] == packets[3:]
    assert not faults.harms_packets()


def test_sender_report_says_which_time_a_timestamp_means():
    track = Track(ssrc=7, sequence=0xFFFF, timestamp=2**32 - 10)
    first, second = (track.packets(load_clip(clip()).frames[1].payloads[:1], ticks)[0] for ticks in (0, 20))
    assert [sequence(first), sequence(second)] == [0xFFFF, 0]
    assert [stamp(first), stamp(second)] == [2**32 - 10, 10]
    report = track.sender_report(1_000_000.25, 20)
    kind, seconds, fraction, timestamp, count = struct.unpack_from(">xBxxxxxxIIII", report)
    assert (kind, seconds - NTP_OFFSET, fraction / 2**32, timestamp, count) == (200, 1_000_000, 0.25, 10, 2)
    assert track.bye(0, 0)[len(report) + 1] == 203


@pytest.mark.parametrize("scheme", ["digest", "digest-qop", "digest-sha256", "any"])
@pytest.mark.parametrize("password", ["p@:/w", "wrong"])
def test_digest_agrees_with_another_implementation(scheme, password):
    """httpx computes the answers; RTSP's differ from HTTP's in nothing but method and URI."""
    guard = Guard("us@er", "p@:/w", scheme, random.Random(0))
    flow = httpx.DigestAuth("us@er", password).auth_flow(request := httpx.Request("GET", "http://camera/door"))
    next(flow)
    with contextlib.suppress(StopIteration):
        flow.send(httpx.Response(401, headers=[("WWW-Authenticate", guard.challenges()[0])], request=request))
    header = request.headers["Authorization"]
    assert guard.check("GET", header) == ("ok" if password == "p@:/w" else "wrong")
    assert guard.check("PUT", header) == "wrong"
    if password == "p@:/w":
        guard.renew_nonce()
        assert guard.check("GET", header) == "stale"


def test_footage_is_found_or_says_how_to_get_it(monkeypatch):
    assert load_clip(footage.bikes()).fps == 25
    monkeypatch.setattr(footage, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(footage.FootageMissing, match=r"pip install 'yolov9-server\[demo\]'"):
        footage.bikes()


# On the wire.


@pytest.mark.system
def test_packets_are_numbered_marked_and_paced():
    with door() as camera, connected(camera) as client:
        info = client.play()["rtp-info"]
        frames = client.frames(FPS)
        packets = [packet for frame in frames for packet in frame]
        first = dict(part.split("=", 1) for part in info.split(";"))
        assert (int(first["seq"]), int(first["rtptime"])) == (sequence(packets[0]), stamp(packets[0]))
        numbers = [sequence(packet) for packet in packets]
        assert all(after == (before + 1) % 65536 for before, after in itertools.pairwise(numbers))
        assert all(frame[-1][1] & 0x80 and not any(p[1] & 0x80 for p in frame[:-1]) for frame in frames)
        stamps = [stamp(frame[0]) for frame in frames]
        assert all((after - before) % 2**32 == HZ // FPS for before, after in itertools.pairwise(stamps))
        log = {item.rtp_timestamp: item for item in camera.sent("/door")}
    assert set(stamps) <= set(log)
    times = [log[item].sent_at for item in stamps]
    assert times[-1] - times[0] == pytest.approx((FPS - 1) / FPS, abs=0.25)
    assert statistics.median(b - a for a, b in itertools.pairwise(times)) == pytest.approx(1 / FPS, abs=0.005)
    assert all(log[item].packets == len(frame) for item, frame in zip(stamps, frames, strict=True))


@pytest.mark.system
@pytest.mark.parametrize("b_frames", [0, 2])
def test_sender_reports_and_log_agree_on_capture_times(b_frames):
    with door(Mount(clip(b_frames=b_frames), clock_offset_s=100.0)) as camera, connected(camera) as client:
        client.play()
        item = client.packet()
        while item is not None and item[0] != 1:
            item = client.packet()
        client.frames(10)
        log = camera.sent("/door")
        offset = time.time() - time.monotonic()
    assert item is not None
    seconds, fraction, timestamp = struct.unpack_from(">III", item[1], 8)
    reported = seconds - NTP_OFFSET + fraction / 2**32
    for frame in log:
        ticks = (frame.rtp_timestamp - timestamp + 2**31) % 2**32 - 2**31
        assert reported + ticks / HZ == pytest.approx(frame.captured_unix, abs=0.002)
        assert frame.captured_unix - 100.0 <= frame.sent_at + offset + 0.002


@pytest.mark.system
def test_own_rate_and_numbers_over_the_wrap():
    mount = Mount(clip(), fps=100, first_sequence=65530, first_timestamp=2**32 - 1000)
    with door(mount) as camera, connected(camera) as client:
        client.play()
        frames = client.frames(12)
    numbers = [sequence(packet) for frame in frames for packet in frame]
    assert numbers[0] == 65530
    assert 0 in numbers
    stamps = [stamp(frame[0]) for frame in frames]
    assert all((after - before) % 2**32 == HZ // 100 for before, after in itertools.pairwise(stamps))


@pytest.mark.system
def test_clients_join_at_the_live_point_and_share_packets():
    with door(Mount(clip(gop=10), start_at_keyframe=True)) as camera:
        with connected(camera) as early, connected(camera) as late:
            early.play()
            assert has_sets(early.frames(3)[0])
            late.play()
            camera.wait_for_clients("/door", 2)
            packets = late.frames(2)
            assert has_sets(packets[0])
            wanted = stamp(packets[0][0])
            assert packets[0] == next(frame for frame in early.frames(60) if stamp(frame[0]) == wanted)
        camera.wait_for_clients("/door", 0)
        before = camera.sent("/door")[-1]
        time.sleep(0.2)  # nobody watches: the clock goes on all the same
        with connected(camera) as again:
            again.play()
            again.frames(1)
        after = camera.sent("/door")
    newest = next(item for item in after if item.sent_at > before.sent_at + 0.15)
    passed = (newest.rtp_timestamp - before.rtp_timestamp) % 2**32 / HZ
    assert passed == pytest.approx(newest.sent_at - before.sent_at, abs=0.05)


@pytest.mark.system
def test_udp_packets_duplicates_and_order():
    with door(Mount(clip(frames=51))) as camera, connected(camera) as client, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
            item.settimeout(5)
        ports = [item.getsockname()[1] for item in sockets]
        client.play(f"RTP/AVP;unicast;client_port={ports[0]}-{ports[1]}")
        assert "server_port=" in client.transport
        assert sockets[1].recv(2048)[1] == 200
        numbers = [sequence(sockets[0].recv(2048)) for _ in range(30)]
        assert all(after == (before + 1) % 65536 for before, after in itertools.pairwise(numbers))
        camera.faults("/door").reorder = 0.3
        camera.faults("/door").duplicate = 0.2
        numbers = [sequence(sockets[0].recv(2048)) for _ in range(100)]
        steps = {(after - before + 32768) % 65536 - 32768 for before, after in itertools.pairwise(numbers)}
        assert 0 in steps
        assert min(steps) < 0
        assert camera.kill("/door") == 1
        assert client.packet() is None


@pytest.mark.system
def test_lost_packets_leave_gaps_and_are_logged():
    with door(Mount(clip(), first_sequence=0)) as camera, connected(camera) as client:
        client.play()
        frames = client.frames(2)
        camera.faults("/door").lose_next = 3
        numbers = [sequence(packet) for frame in frames + client.frames(30) for packet in frame]
        missing = set(range(numbers[0], numbers[-1])) - set(numbers)
        assert len(missing) == 3
        assert max(missing) - min(missing) == 2
        assert sum(item.harmed for item in camera.sent("/door")) == 3


@pytest.mark.system
def test_parameter_sets_withheld_until_the_third_keyframe():
    with door() as camera:
        camera.faults("/door").withhold_sets = 2
        with connected(camera) as client:
            assert "sprop" not in client.ask("DESCRIBE")[2]
            client.play()
            frames = client.frames(16)
        assert sum(has_sets(frame) for frame in frames) == 1
        camera.faults("/door").withhold_sets = 0
        with connected(camera) as client:
            assert "sprop" in client.ask("DESCRIBE")[2]
            client.play()
            assert sum(has_sets(frame) for frame in client.frames(16)) >= 3


@pytest.mark.system
def test_jump_of_time_stamps_keeps_capture_times():
    with door(Mount(clip(), first_timestamp=0)) as camera, connected(camera) as client:
        client.play()
        frames = client.frames(2)
        camera.jump("/door", 1000)
        stamps = [stamp(frame[0]) for frame in frames + client.frames(10)]
        log = camera.sent("/door")
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert sorted(steps)[-1] == 1000 * HZ + HZ // FPS
    captured = [item.captured_unix for item in log]
    assert all(b - a == pytest.approx(1 / FPS, abs=0.002) for a, b in itertools.pairwise(captured))


@pytest.mark.system
@pytest.mark.parametrize("reset", [False, True])
def test_kill_ends_the_connections_of_one_mount(reset):
    mounts = {"/door": Mount(clip()), "/yard": Mount(clip())}
    with Camera(mounts) as camera, connected(camera) as client, connected(camera, "/yard") as other:
        client.play()
        other.play()
        client.frames(1)
        assert camera.kill("/door", reset=reset) == 1
        with pytest.raises(ConnectionResetError) if reset else contextlib.nullcontext():
            while client.packet() is not None:
                pass
        assert other.frames(5)
        assert camera.clients("/door") == 0


@pytest.mark.system
def test_bye_then_silence_on_an_open_connection():
    with door() as camera, connected(camera) as client:
        client.play()
        client.frames(1)
        camera.bye("/door")
        received = client.until_silent(0.3)
        assert received[-1][0] == 1
        assert received[-1][1][-8:-4] == bytes((0x81, 203, 0, 1))


@pytest.mark.system
def test_stall_sends_nothing_but_answers_and_goes_on_at_the_live_point():
    with door(Mount(clip(), first_sequence=0, first_timestamp=0)) as camera, connected(camera) as client:
        client.play()
        client.frames(3)
        camera.faults("/door").stalled = True
        time.sleep(0.05)  # the frame that is on its way
        before = len(camera.sent("/door"))
        assert client.ask("GET_PARAMETER")[0] == 200
        time.sleep(0.2)
        assert len(camera.sent("/door")) == before
        camera.faults("/door").stalled = False
        camera.wait_for_frames("/door", 3)
        log = camera.sent("/door")[-(len(camera.sent("/door")) - before) - 1 :]
    gap = (log[1].rtp_timestamp - log[0].rtp_timestamp) / HZ
    assert 0.2 < gap == pytest.approx(log[1].sent_at - log[0].sent_at, abs=0.05)


@pytest.mark.system
def test_muted_camera_accepts_and_never_answers():
    with door() as camera:
        camera.muted = True
        with connected(camera) as client:
            client.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.ask("OPTIONS")


@pytest.mark.system
def test_refusals():
    mounts = {"/door": Mount(clip(), transports=("tcp",)), "/yard": Mount(clip(), transports=("udp",), audio=True)}
    with Camera(mounts) as camera:
        with connected(camera, "/nowhere") as client:
            assert client.ask("DESCRIBE")[0] == 404
        with connected(camera) as client:
            assert client.ask("SETUP", "/trackID=0", Transport="RTP/AVP;unicast;client_port=5000-5001")[0] == 461
            assert client.ask("SETUP", "/trackID=0", Transport="RTP/AVP;multicast")[0] == 461
            assert client.ask("SETUP", "/trackID=7", Transport="RTP/AVP/TCP;interleaved=0-1")[0] == 404
            assert client.ask("SETUP", "/trackID=0", Transport="RTP/AVP/TCP;interleaved=x")[0] == 400
            assert client.ask("SETUP", "/trackID=0", Transport="RTP/AVP/TCP;interleaved=255-256")[0] == 400
            assert client.ask("PLAY")[0] == 454
            assert client.ask("RECORD")[0] == 501
        with connected(camera, "/yard") as client:
            assert client.ask("SETUP", "/trackID=0", Transport="RTP/AVP/TCP;unicast;interleaved=0-1")[0] == 461
            text = client.ask("DESCRIBE")[2]
            assert text.index("m=audio") < text.index("m=video")
        with connected(camera) as client:
            client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.socket.recv(100).startswith(b"RTSP/1.0 400")


@pytest.mark.system
def test_wrong_password_and_stale_nonce():
    with door(username="u", password="p", auth="basic") as camera, connected(camera) as client:
        status, headers, _ = client.ask("DESCRIBE")
        assert (status, headers["www-authenticate"]) == (401, 'Basic realm="camera"')
        assert client.ask("DESCRIBE", Authorization="Basic dTpw")[0] == 200
        assert client.ask("DESCRIBE", Authorization="Basic eDp4")[0] == 401
        assert client.ask("DESCRIBE", Authorization="Basic !")[0] == 401
        camera.on_wrong_password = "403"
        assert client.ask("DESCRIBE", Authorization="Basic eDp4")[0] == 403
        camera.on_wrong_password = "close"
        with pytest.raises(AssertionError, match="closed the connection"):
            client.ask("DESCRIBE", Authorization="Basic eDp4")


@pytest.mark.system
def test_silent_client_is_thrown_out_and_a_talking_one_is_not():
    with door(session_timeout_s=0.4) as camera, connected(camera) as silent, connected(camera) as talking:
        silent.play()
        talking.play()
        deadline = time.monotonic() + 5
        while camera.clients("/door") == 2 and time.monotonic() < deadline:
            talking.ask("GET_PARAMETER")
            time.sleep(0.05)
        assert camera.clients("/door") == 1
        assert talking.frames(1)


@pytest.mark.system
def test_switched_off_it_refuses_and_comes_back_on_its_port():
    with door() as camera:
        port = camera.port
        camera.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        with pytest.raises(RuntimeError, match="switched off"):
            camera.clients("/door")
        camera.start()
        assert camera.port == port
        with connected(camera) as client:
            client.play()
            assert client.frames(1)


# In libavformat's eyes.


@pytest.mark.system
def test_resolution_switch_goes_on_without_a_word():
    with door(Mount(clip())) as camera:
        timer = threading.Timer(0.6, camera.switch, ("/door", clip(width=160, height=96, first_number=1000)))
        timer.start()
        seen = watch(camera.url("/door"), frames=60)
        timer.join()
    sizes = [size for size, _ in itertools.groupby((item.width, item.height) for item in seen)]
    assert sizes == [(320, 192), (160, 96)]
    assert [item.number for item in seen if item.width == 160][:5] == [1000, 1001, 1002, 1003, 1004]
    times = [item.pts_s for item in seen if item.pts_s is not None]
    assert all(after > before for before, after in itertools.pairwise(times))


@pytest.mark.system
def test_corrupt_packets_spoil_pictures():
    with door(Mount(clip(quality=12), start_at_keyframe=True)) as camera:
        camera.faults("/door").corrupt = 0.3
        watch(camera.url("/door"), frames=20, limit_s=3)
        assert sum(item.harmed for item in camera.sent("/door")) > 10
        camera.faults("/door").corrupt = 0.0
        numbers = [item.number for item in watch(camera.url("/door"), frames=20)]
    assert None not in numbers


@pytest.mark.system
def test_many_cameras_in_one_process_cost_little():
    """Eight mounts at 25 fps with a client each: their senders must leave the processor to those who are tested."""
    mounts = {f"/{number}": Mount(clip(width=640, height=352, fps=25), phase_s=number / 8) for number in range(8)}
    with Camera(mounts) as camera, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(camera, path)) for path in mounts]
        for client in clients:
            client.play()
        thread = camera._thread
        assert thread is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        before = time.clock_gettime(clock), sum(len(camera.sent(path)) for path in mounts)
        time.sleep(1.0)  # the kernel's buffers take the packets
        spent = time.clock_gettime(clock) - before[0]
        sent = sum(len(camera.sent(path)) for path in mounts) - before[1]
    assert sent >= 150
    assert spent / sent < 0.001, f"{spent / sent * 1e6:.0f} us of CPU for each frame sent"
