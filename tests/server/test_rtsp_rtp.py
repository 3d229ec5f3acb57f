"""RTP headers, order and time; RTCP reports and the capture clock."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.rtsp.rtcp import Bye, CaptureClock, Reception, SenderReport, parse_rtcp
from server.ingest.rtsp.rtp import Delivery, MediaClock, RtpPacket, Sequencer, parse_rtp, signed32

NTP_2026 = 3_976_000_000  # seconds since 1900
UNIX_2026 = NTP_2026 - 2_208_988_800


def packet(sequence: int, arrived_at: float = 0.0, ssrc: int = 1, timestamp: int = 0) -> RtpPacket:
    return RtpPacket(False, 96, sequence & 0xFFFF, timestamp, ssrc, memoryview(b"x"), arrived_at)


def put(sequencer: Sequencer, packet: RtpPacket) -> list[Delivery]:
    """As the receiver does it."""
    return [Delivery(packet, 0, False)] if sequencer.follows(packet) else sequencer.push(packet)


def flat(deliveries: list[Delivery]) -> list[tuple[int, int, bool]]:
    return [(delivery.packet.sequence, delivery.lost, delivery.restarted) for delivery in deliveries]


# RTP headers ----------------------------------------------------------------------------------------------------------


def test_header_with_everything() -> None:
    data = struct.pack("!BBHII", 0x80 | 0x20 | 0x10 | 2, 0x80 | 96, 65_535, 0xFFFFFFFF, 7)
    data += bytes(8) + struct.pack("!HH", 0xBEDE, 1) + bytes(4) + b"payload" + bytes(2) + b"\x03"
    parsed = parse_rtp(memoryview(data), 1.5)
    assert parsed is not None
    assert parsed[:5] == (True, 96, 65_535, 0xFFFFFFFF, 7)
    assert bytes(parsed.payload) == b"payload"
    assert parsed.arrived_at == 1.5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        bytes(12),  # version 0
        b"\x8f" + bytes(11),  # 15 contributing sources that are not there
        b"\x90" + bytes(11),  # an extension that is not there
        b"\x90" + bytes(11) + b"\0\0\0\x09",  # a longer extension than the packet
        b"\xa0" + bytes(11),  # padding of nothing
        b"\xa0" + bytes(11) + b"\xff",  # more padding than packet
    ],
)
def test_no_rtp(data: bytes) -> None:
    assert parse_rtp(memoryview(data), 0.0) is None


@given(st.binary(max_size=64).map(lambda data: b"\xbf" + data))
def test_arbitrary_headers(data: bytes) -> None:
    parsed = parse_rtp(memoryview(data), 0.0)
    assert parsed is None or len(parsed.payload) < len(data)


# Order ----------------------------------------------------------------------------------------------------------------


def test_tcp_never_waits() -> None:
    sequencer = Sequencer(in_order=True)
    assert flat(put(sequencer, packet(65_534))) == [(65_534, 0, False)]
    assert flat(put(sequencer, packet(65_535))) == [(65_535, 0, False)]
    assert flat(put(sequencer, packet(2))) == [(2, 2, False)], "0 and 1 are missing, over the wrap"
    assert put(sequencer, packet(2)) == [], "a duplicate"
    assert sequencer.deadline is None
    assert (sequencer.lost_total, sequencer.dropped_total) == (2, 1)


def test_udp_reorders_and_then_gives_up() -> None:
    sequencer = Sequencer(in_order=False, reorder_s=0.08)
    assert flat(put(sequencer, packet(10, 0.0))) == [(10, 0, False)]
    assert put(sequencer, packet(12, 0.010)) == []
    assert put(sequencer, packet(13, 0.020)) == []
    assert sequencer.deadline == pytest.approx(0.090)
    assert flat(put(sequencer, packet(11, 0.030))) == [(11, 0, False), (12, 0, False), (13, 0, False)]
    assert sequencer.deadline is None
    assert put(sequencer, packet(16, 0.040)) == []
    assert put(sequencer, packet(18, 0.050)) == []
    assert sequencer.expire(0.119) == []
    assert flat(sequencer.expire(0.120)) == [(16, 2, False)], "the second gap was seen later and waits longer"
    assert flat(sequencer.expire(0.130)) == [(18, 1, False)]
    assert put(sequencer, packet(17, 0.140)) == [], "too late"
    assert sequencer.lost_total == 3


def test_held_packets_are_bounded() -> None:
    sequencer = Sequencer(in_order=False, max_held=16)
    put(sequencer, packet(0))
    out = [flat(put(sequencer, packet(number))) for number in range(2, 19)]
    assert out[:16] == [[]] * 16
    assert out[16][0] == (2, 1, False)
    assert len(out[16]) == 17


@pytest.mark.parametrize("in_order", [True, False])
def test_a_restart_needs_two_packets(in_order: bool) -> None:
    sequencer = Sequencer(in_order)
    put(sequencer, packet(5))
    assert put(sequencer, packet(40_000, ssrc=9)) == [], "a single stray packet is none"
    assert flat(put(sequencer, packet(6))) == [(6, 0, False)]
    assert put(sequencer, packet(40_001, ssrc=9)) == []
    assert flat(put(sequencer, packet(40_002, ssrc=9))) == [(40_001, 0, True), (40_002, 0, False)]
    assert flat(put(sequencer, packet(40_003, ssrc=9))) == [(40_003, 0, False)]
    assert put(sequencer, packet(100, ssrc=9)) == [], "the same SSRC with another numbering"
    assert flat(put(sequencer, packet(101, ssrc=9))) == [(100, 0, True), (101, 0, False)]


@given(st.integers(0, 65_535), st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=200))
def test_everything_that_comes_in_time_comes_out_in_order(first: int, fates: list[tuple[bool, int]]) -> None:
    """Random loss, duplicates and displacement by a few places: out come rising numbers, and gaps are told exactly."""
    sequencer = Sequencer(in_order=False)
    arrivals = [(0, 0)] + [(index + delay, index) for index, (_, delay) in enumerate(fates, 1)]
    arrivals = [(at, index) for at, index in arrivals if index == 0 or not fates[index - 1][0]]
    arrivals += [(at + 3, index) for at, index in arrivals if index % 7 == 3]
    out: list[Delivery] = []
    for at, index in sorted(arrivals):
        now = at * 0.001
        out += sequencer.expire(now)
        out += put(sequencer, packet(first + index, now))
    out += sequencer.flush()
    position = -1
    for delivery in out:
        position += 1 + delivery.lost
        assert delivery.packet.sequence == (first + position) & 0xFFFF
        assert not delivery.restarted
    assert len(out) == len({index for _, index in arrivals}), "nothing that came is missing"
    assert sequencer.lost_total == position + 1 - len(out)


# Time -----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(-90_000, 2**31 - 1), max_size=30))
def test_media_clock_unwraps(first: int, steps: list[int]) -> None:
    clock = MediaClock(90_000)
    assert clock.seconds(first, 0.0) == 0.0
    total = 0
    for step in steps:
        total += step
        assert clock.seconds((first + total) & 0xFFFFFFFF, 0.0) == total / 90_000


def test_media_clock_goes_on_by_arrival_after_a_restart() -> None:
    clock = MediaClock(1000)
    clock.seconds(5_000, 10.0)
    assert clock.seconds(6_000, 11.0) == 1.0
    clock.restart()
    assert clock.seconds(123_456_789, 13.5) == 3.5
    assert clock.seconds(123_457_789, 14.5) == 4.5


def test_signed32() -> None:
    assert [signed32(value) for value in (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 5, -(2**32) + 5)] == [
        0, 1, -1, 2**31 - 1, -(2**31), -5, 5,
    ]  # fmt: skip


# RTCP -----------------------------------------------------------------------------------------------------------------


def sender_report(seconds: float, timestamp: int, ssrc: int = 1) -> bytes:
    ntp = int((seconds + 2_208_988_800) * 2**32)
    return struct.pack("!BBHIQIII", 0x80, 200, 6, ssrc, ntp & (2**64 - 1), timestamp, 10, 1000)


def test_compound_packet() -> None:
    data = sender_report(UNIX_2026, 42) + struct.pack("!BBHI4s", 0x81, 202, 2, 1, b"\1\2ab")
    data += struct.pack("!BBHII", 0x82, 203, 2, 1, 2)
    report, bye = parse_rtcp(data)
    assert isinstance(report, SenderReport)
    assert (report.ssrc, report.ntp >> 32, report.rtp_timestamp) == (1, NTP_2026, 42)
    assert bye == Bye((1, 2))
    assert parse_rtcp(data[:-1]) == [report], "a truncated packet ends the parsing"


@given(st.binary(max_size=80).map(lambda data: b"\x81" + data))
def test_arbitrary_rtcp(data: bytes) -> None:
    assert all(isinstance(item, SenderReport | Bye) for item in parse_rtcp(memoryview(data)))


def report(unix: float, timestamp: int) -> SenderReport:
    (parsed,) = parse_rtcp(sender_report(unix, timestamp))
    assert isinstance(parsed, SenderReport)
    return parsed


def test_capture_time() -> None:
    clock = CaptureClock(90_000)
    assert clock.captured(0, UNIX_2026) == (None, None), "no report yet"
    clock.report(report(UNIX_2026, 90_000), UNIX_2026 + 0.01)
    captured, uncertainty = clock.captured(90_000 + 45_000, UNIX_2026 + 0.55)
    assert captured == pytest.approx(UNIX_2026 + 0.5, abs=1e-6)
    assert uncertainty == pytest.approx(0.051, abs=0.001), "a single report has nothing that confirms it"
    clock.report(report(UNIX_2026 + 5.004, 90_000 * 6), UNIX_2026 + 5.02)
    captured, uncertainty = clock.captured(90_000 * 6 - 9_000, UNIX_2026 + 5)
    assert captured == pytest.approx(UNIX_2026 + 4.904, abs=1e-6), "also before the report"
    assert uncertainty == pytest.approx(0.005, abs=0.0005), "the two reports disagree by 4 ms"


def test_capture_time_over_the_wrap() -> None:
    clock = CaptureClock(90_000)
    clock.report(report(UNIX_2026, 2**32 - 9_000), UNIX_2026)
    captured, _ = clock.captured(9_000, UNIX_2026 + 0.2)
    assert captured == pytest.approx(UNIX_2026 + 0.2, abs=1e-6)


def test_a_frame_from_the_future_is_stated_as_uncertain() -> None:
    clock = CaptureClock(90_000)
    clock.report(report(UNIX_2026 + 3, 0), UNIX_2026)
    captured, uncertainty = clock.captured(0, UNIX_2026)
    assert captured == pytest.approx(UNIX_2026 + 3, abs=1e-6)
    assert uncertainty is not None
    assert 3 < uncertainty < 3.1
    assert clock.wrong_by_s is None


@pytest.mark.parametrize("camera", [86_400.0, UNIX_2026 - 7200, UNIX_2026 + 7200, UNIX_2026 - 10.1])
def test_a_clock_that_is_far_off_gives_no_capture_time(camera: float) -> None:
    clock = CaptureClock(90_000)
    clock.report(report(camera, 0), UNIX_2026)
    assert clock.captured(0, UNIX_2026) == (None, None)
    assert clock.wrong_by_s == pytest.approx(camera - UNIX_2026, abs=1e-3)


def test_time_stamps_that_went_back_need_another_report() -> None:
    clock = CaptureClock(90_000)
    clock.report(report(UNIX_2026, 900_000), UNIX_2026)
    assert clock.captured(900_000, UNIX_2026)[0] is not None
    assert clock.captured(900_000 - 18_000, UNIX_2026)[0] is not None, "a B frame"
    assert clock.captured(90_000, UNIX_2026 + 0.1) == (None, None)
    clock.report(report(UNIX_2026 + 1, 171_000), UNIX_2026 + 1)
    assert clock.captured(180_000, UNIX_2026 + 1.1)[0] == pytest.approx(UNIX_2026 + 1.1, abs=1e-6)


TICK_S = 0.1
TRANSIT_S = 0.04


@given(
    course=st.lists(
        st.sampled_from([*["frame"] * 6, "report", "forward", "back", "stand still", "run twice as fast", "run on"]),
        max_size=60,
    ),
    by=st.floats(1.2, 100.0),
)
def test_whatever_time_stamps_do_a_capture_time_is_within_its_uncertainty(course: list[str], by: float) -> None:
    """The camera's clock is right; its time stamps jump, stand still and run away. A frame each tenth of a second, a
    report at the latest every five seconds."""
    clock = CaptureClock(90_000)
    now, ticks, speed, reported_at = UNIX_2026, 0.0, 1.0, 0.0
    for event in course:
        if event == "forward":
            ticks += by * 90_000
        elif event == "back":
            ticks -= by * 90_000
        speed = {"stand still": 0.0, "run twice as fast": 2.0, "run on": 1.0}.get(event, speed)
        now += TICK_S
        ticks += speed * TICK_S * 90_000
        timestamp = round(ticks) & 0xFFFFFFFF
        if event == "report" or now - reported_at > 5:
            reported_at = now
            clock.report(report(now, timestamp), now + TRANSIT_S)
        captured, uncertainty = clock.captured(timestamp, now + TRANSIT_S)
        if captured is not None:
            assert uncertainty is not None
            assert abs(captured - now) <= uncertainty + 1e-4


def test_no_wall_clock_is_no_capture_time() -> None:
    clock = CaptureClock(90_000)
    clock.report(SenderReport(1, 0, 0), UNIX_2026)
    assert clock.captured(0, UNIX_2026) == (None, None)
    clock.report(SenderReport(1, 3600 << 32, 0), UNIX_2026)
    assert clock.captured(0, UNIX_2026) == (None, None), "time since the camera's start"


def test_second_ntp_era() -> None:
    unix_2040 = 2_208_988_800.0
    clock = CaptureClock(90_000)
    clock.report(report(unix_2040, 0), unix_2040 + 1)
    assert clock.captured(0, unix_2040 + 1)[0] == pytest.approx(unix_2040, abs=1e-6)


def test_a_clock_that_was_set_starts_anew() -> None:
    clock = CaptureClock(90_000)
    clock.report(report(UNIX_2026 - 1000, 0), UNIX_2026)
    clock.report(report(UNIX_2026, 90_000), UNIX_2026 + 1)
    captured, uncertainty = clock.captured(90_000, UNIX_2026 + 1)
    assert captured == pytest.approx(UNIX_2026, abs=1e-6)
    assert uncertainty == pytest.approx(10, abs=0.01), "the two reports contradict each other"
    clock.report(report(UNIX_2026 + 5, 90_000 * 6), UNIX_2026 + 5)
    assert clock.captured(90_000 * 6, UNIX_2026 + 5)[1] == pytest.approx(0.001, abs=1e-4), "a third one confirms"
    assert clock.captured(90_000 * 700, UNIX_2026 + 700) == (None, None), "too long without a report"


def test_receiver_report() -> None:
    sequencer, reception = Sequencer(in_order=True), Reception(90_000, ssrc=0xABCD)
    first = reception.report(sequencer, 0.0)
    assert first[:8] == b"\x80\xc9\x00\x01\x00\x00\xab\xcd", "no block before the first packet"
    for index, sequence in enumerate((65_530, 65_531, 65_535, 0)):
        received = packet(sequence, index * 0.04 + (0.01 if index == 2 else 0), timestamp=index * 3600)
        put(sequencer, received)
        reception.received(received)
    reception.sender_report(SenderReport(1, 0x0000_1111_2222_3333, 0), 10.0)
    data = reception.report(sequencer, 10.5)
    assert data[:4] == b"\x81\xc9\x00\x07"
    ssrc, lost, highest, jitter, last, delay = struct.unpack_from("!IIIIII", data, 8)
    assert (ssrc, lost & 0xFFFFFF, highest) == (1, 3, 65_536)
    assert lost >> 24 == 256 * 3 // 7
    assert jitter == pytest.approx(900 / 16 * 15 / 16 + 900 / 16, abs=1)
    assert (last, delay) == (0x1111_2222, 32_768)
    description = data[32:]
    assert description[1] == 202
    assert len(description) == 4 * (int.from_bytes(description[2:4], "big") + 1)
    assert struct.unpack_from("!I", reception.report(sequencer, 11.0), 12)[0] >> 24 == 0, "nothing new was lost"
