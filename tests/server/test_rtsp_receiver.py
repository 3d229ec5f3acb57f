"""Packets in, access units with their times out."""

from __future__ import annotations

import struct

import pytest

from server.ingest.rtsp.receiver import RtpReceiver
from server.ingest.rtsp.sdp import VideoTrack
from server.ingest.source import AccessUnit

OFFSET = 1_767_000_000.0
SPS = bytes.fromhex("6742c01fda014016e840000003004000000c83c60ca8")
PPS = bytes.fromhex("68ce0fc8")
KEY = b"\x65\x88key"
INTER = b"\x41\x9ainter"


class Camera:
    """Makes packets; `receiver` takes them."""

    def __init__(self, in_order: bool = True) -> None:
        track = VideoTrack("h264", 96, 90_000, "rtsp://c/1", "rtsp://c", parameter_sets=(SPS, PPS))
        self.receiver = RtpReceiver(track, in_order)
        self.ssrc = 7
        self.sequence = 65_530

    def packet(self, payload: bytes, timestamp: int, marker: bool = True, payload_type: int = 96) -> bytes:
        self.sequence += 1
        return (
            struct.pack(
                "!BBHII", 0x80, marker << 7 | payload_type, self.sequence & 0xFFFF, timestamp & 0xFFFFFFFF, self.ssrc
            )
            + payload
        )

    def send(self, payload: bytes, timestamp: int, at: float, marker: bool = True) -> list[AccessUnit]:
        return self.receiver.rtp(memoryview(self.packet(payload, timestamp, marker)), at, OFFSET, 0.0)

    def report(self, unix: float, timestamp: int, at: float) -> None:
        ntp = int((unix + 2_208_988_800) * 2**32)
        data = struct.pack("!BBHIQIII", 0x80, 200, 6, self.ssrc, ntp, timestamp & 0xFFFFFFFF, 0, 0)
        self.receiver.rtcp(data, at, OFFSET)


def test_times_of_a_unit() -> None:
    camera = Camera()
    base = 2**32 - 4_000
    (first,) = camera.send(KEY, base, 100.0)
    assert (first.pts, first.arrived_at, first.received_unix) == (0.0, 100.0, OFFSET + 100)
    assert first.keyframe
    assert first.data == b"\0\0\0\1" + SPS + b"\0\0\0\1" + PPS + b"\0\0\0\1" + KEY
    assert (first.captured_unix, first.capture_uncertainty_s) == (None, None)
    camera.report(OFFSET + 100.0, base, 100.01)
    assert camera.send(b"\x41\x9apart", base + 9_000, 100.11, marker=False) == []
    (second,) = camera.send(b"\x41\x2arest", base + 9_000, 100.12)
    assert second.pts == pytest.approx(0.1)
    assert second.arrived_at == 100.12
    assert second.captured_unix == pytest.approx(OFFSET + 100.1, abs=1e-5)
    assert second.capture_uncertainty_s == pytest.approx(0.051, abs=1e-3)


def test_other_payload_types_and_noise_are_ignored() -> None:
    camera = Camera()
    assert camera.receiver.rtp(memoryview(camera.packet(KEY, 0, payload_type=97)), 0.0, OFFSET, 0.0) == []
    assert camera.receiver.rtp(memoryview(b"noise"), 0.0, OFFSET, 0.0) == []
    assert camera.receiver.packets == 0
    assert len(camera.send(KEY, 0, 0.0)) == 1
    assert camera.receiver.packets == 1


def test_a_restart_ends_the_old_time_and_goes_on() -> None:
    camera = Camera()
    camera.report(OFFSET, 0, 0.0)
    camera.send(KEY, 0, 10.0)
    camera.send(b"\x41\x9apart", 90_000, 11.0, marker=False)
    camera.ssrc, camera.sequence = 8, 1000
    assert camera.send(SPS, 5_000_000, 11.5, marker=False) == []
    (cut, key) = camera.send(KEY, 5_000_000, 11.5)
    assert (cut.pts, cut.damaged) == (1.0, True)
    assert (key.pts, key.damaged, key.keyframe) == (1.5, False, True)
    assert [unit.discontinuity for unit in (cut, key)] == [False, True]
    assert cut.captured_unix is not None
    assert key.captured_unix is None, "reports of the old stream say nothing of the new one"


def test_udp_waits_for_a_late_packet_and_then_gives_up() -> None:
    camera = Camera(in_order=False)
    camera.send(KEY, 0, 0.0)
    late = camera.packet(INTER, 9_000)
    assert camera.send(INTER, 18_000, 0.10) == []
    units = camera.receiver.rtp(memoryview(late), 0.12, OFFSET, 0.0)
    assert [(unit.pts, unit.arrived_at, unit.damaged) for unit in units] == [(0.1, 0.12, False), (0.2, 0.10, False)]
    camera.packet(INTER, 27_000)
    assert camera.send(INTER, 36_000, 0.30) == []
    deadline = camera.receiver.deadline
    assert deadline == pytest.approx(0.38)
    assert camera.receiver.expire(0.37) == []
    (unit,) = camera.receiver.expire(0.38)
    assert (unit.damaged, unit.lost_packets, unit.arrived_at) == (True, 1, 0.30)
    assert camera.receiver.deadline is None


@pytest.mark.parametrize(("ssrcs", "ends"), [((7,), True), ((), True), ((9,), False)])
def test_bye(ssrcs: tuple[int, ...], ends: bool) -> None:
    camera = Camera()
    camera.send(KEY, 0, 0.0)
    camera.receiver.rtcp(struct.pack(f"!BBH{len(ssrcs)}I", 0x80 | len(ssrcs), 203, len(ssrcs), *ssrcs), 0.0, OFFSET)
    assert camera.receiver.ended == ends


def test_flush() -> None:
    camera = Camera(in_order=False)
    camera.send(KEY, 0, 0.0)
    camera.packet(INTER, 9_000)
    assert camera.send(b"\x41\x9apart", 18_000, 0.1, marker=False) == []
    (unit,) = camera.receiver.flush()
    assert unit.damaged
    assert unit.lost_packets == 1
