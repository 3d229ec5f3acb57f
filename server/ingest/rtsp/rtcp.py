"""RTCP (RFC 3550): sender reports and BYE in, receiver reports out, and from the former the time of capture.

Pure: times are passed in. The capture time is what the camera's own clock said; how far that clock is from ours
nobody can tell from here, so `CaptureClock` states an uncertainty of the mapping, not of the clock:

* 50 ms while a single report has come: cameras may pair the wall clock of sending with the last frame's time stamp;
* later the largest disagreement between what earlier reports predicted and what the next one said; after one of more
  than a second (the clock was set, or time stamps jumped, stand still or run at another rate) that much, up to ten
  seconds, until a report agrees with the one before;
* .01 % of the time since that report, for drift;
* and never less than what causality demands: a frame captured after it was received is wrong by at least so much, and
  by what the way took.

There is no capture time where there is no report, where time stamps went back or stood still since the last one, and
where the clock is more than ten seconds from ours: it would be nonsense for whoever takes it for a time. `wrong_by_s`
tells of that. Not seen before the next report: time stamps that run too slowly, which look like frames that come late.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from server.ingest.rtsp.rtp import RtpPacket, Sequencer, signed32

REPORT_INTERVAL_S = 5.0

_NTP_TO_UNIX_S = 2_208_988_800
_NTP_ERA_S = 1 << 32
_YEAR_S = 365 * 86_400.0
_SENDER_REPORT, _RECEIVER_REPORT, _DESCRIPTION, _BYE = 200, 201, 202, 203
_FIRST_UNCERTAINTY_S = 0.05
_LEAST_UNCERTAINTY_S = 0.001
_DRIFT = 1e-4
_STEP_S = 1.0
"""A report that disagrees by more than this has another clock: the ones before it say nothing any more."""
_BACK_S = 1.0
"""B frames take time stamps back by less than this."""
_HISTORY = 8
_MAX_REPORT_AGE_S = 600.0
_PLAUSIBLE_DELAY_S = 10.0


@dataclass(frozen=True, slots=True)
class SenderReport:
    ssrc: int
    ntp: int
    """64 bits: seconds since 1900 and their fraction; 0: the sender knows no time."""
    rtp_timestamp: int


@dataclass(frozen=True, slots=True)
class Bye:
    ssrcs: tuple[int, ...]


def parse_rtcp(data: memoryview | bytes) -> list[SenderReport | Bye]:
    """The reports and goodbyes of a compound packet. What is malformed ends the parsing in silence: RTCP is advice."""
    found: list[SenderReport | Bye] = []
    position = 0
    while len(data) - position >= 4:
        first, kind, words = struct.unpack_from("!BBH", data, position)
        end = position + 4 * (words + 1)
        if first >> 6 != 2 or end > len(data):
            break
        if kind == _SENDER_REPORT and words >= 6:
            found.append(SenderReport(*struct.unpack_from("!IQI", data, position + 4)))
        elif kind == _BYE and words >= first & 0x1F:
            found.append(Bye(struct.unpack_from(f"!{first & 0x1F}I", data, position + 4)))
        position = end
    return found


class CaptureClock:
    """Maps RTP time stamps to the camera's wall clock."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._unix: float | None = None
        self._timestamp = 0
        self._newest: int | None = None
        self._errors: deque[float] = deque(maxlen=_HISTORY)
        self.wrong_by_s: float | None = None
        """How far the camera's clock is ahead of ours, if that is too much for a capture time."""

    def restart(self) -> None:
        """Time stamps began anew: wait for the next report."""
        self._unix = self._newest = None
        self._errors.clear()

    def report(self, report: SenderReport, received_unix: float) -> None:
        unix = _unix_of(report.ntp, received_unix)
        if unix is None:
            self.restart()
            return
        if self._unix is not None:
            elapsed = signed32(report.rtp_timestamp - self._timestamp) / self._rate
            error = abs(unix - self._unix - elapsed)
            if error > _STEP_S or max(self._errors, default=0.0) > _STEP_S:
                self._errors.clear()
            self._errors.append(min(error, _PLAUSIBLE_DELAY_S))
        self._unix, self._timestamp = unix, report.rtp_timestamp

    def captured(self, timestamp: int, received_unix: float) -> tuple[float | None, float | None]:
        """(Unix seconds by the camera's clock, uncertainty in seconds) of the next frame in decoding order;
        (None, None) if there is nothing to go by."""
        before, self._newest = self._newest, timestamp
        if before is not None:
            step = signed32(timestamp - before)
            if step == 0 or step < -_BACK_S * self._rate:
                self._unix = None
        if self._unix is None:
            return None, None
        elapsed = signed32(timestamp - self._timestamp) / self._rate
        if abs(elapsed) > _MAX_REPORT_AGE_S:
            return None, None
        captured = self._unix + elapsed
        delay = received_unix - captured
        if abs(delay) > _PLAUSIBLE_DELAY_S:
            self.wrong_by_s = -delay
            return None, None
        self.wrong_by_s = None
        mapping = max(self._errors, default=_FIRST_UNCERTAINTY_S) + _LEAST_UNCERTAINTY_S + _DRIFT * abs(elapsed)
        return captured, mapping if -delay <= mapping else _FIRST_UNCERTAINTY_S - delay


class Reception:
    """What a receiver tells its sender (RFC 3550 6.4.2). Cameras over UDP stop sending to who never reports."""

    def __init__(self, rate: int, ssrc: int, cname: str = "yolov9-server") -> None:
        self._rate = rate
        self._ssrc = ssrc
        self._cname = cname.encode()
        self._jitter = 0.0
        self._transit: float | None = None
        self._last_report = 0
        self._last_report_at = 0.0
        self._expected_before = 0
        self._received_before = 0

    def received(self, packet: RtpPacket) -> None:
        """Interarrival jitter (RFC 3550 A.8), modulo 2**32."""
        transit = packet.arrived_at * self._rate - packet.timestamp
        if self._transit is not None:
            difference = abs((transit - self._transit + 0x80000000) % 0x100000000 - 0x80000000)
            self._jitter += (difference - self._jitter) / 16
        self._transit = transit

    def sender_report(self, report: SenderReport, arrived_at: float) -> None:
        self._last_report = report.ntp >> 16 & 0xFFFFFFFF
        self._last_report_at = arrived_at

    def restart(self) -> None:
        self._transit = None
        self._jitter = 0.0
        self._last_report = 0
        self._expected_before = self._received_before = 0

    def report(self, sequencer: Sequencer, now: float) -> bytes:
        """A compound packet: receiver report (without a block before the first packet) and source description."""
        blocks = b""
        if sequencer.ssrc is not None:
            expected = sequencer.highest - sequencer.first + 1
            lost = min(max(expected - sequencer.received, -0x800000), 0x7FFFFF)
            interval = expected - self._expected_before
            missing = interval - (sequencer.received - self._received_before)
            fraction = min(255, 256 * missing // interval) if interval > 0 and missing > 0 else 0
            self._expected_before, self._received_before = expected, sequencer.received
            delay = min(0xFFFFFFFF, int(max(0.0, now - self._last_report_at) * 65536)) if self._last_report else 0
            blocks = struct.pack(
                "!IIIIII",
                sequencer.ssrc,
                fraction << 24 | lost & 0xFFFFFF,
                sequencer.highest & 0xFFFFFFFF,
                min(0xFFFFFFFF, int(self._jitter)),
                self._last_report,
                delay,
            )
        report = struct.pack("!BBHI", 0x80 | bool(blocks), _RECEIVER_REPORT, 1 + len(blocks) // 4, self._ssrc) + blocks
        item = b"\x01" + bytes([len(self._cname)]) + self._cname
        item += bytes(4 - len(item) % 4)
        return report + struct.pack("!BBHI", 0x81, _DESCRIPTION, 1 + len(item) // 4, self._ssrc) + item


def _unix_of(ntp: int, near: float) -> float | None:
    """Unix seconds of a 64-bit NTP time, in the era next to our own clock.

    None if the sender has no wall clock: zero, or (RFC 3550 6.4.1) the time since its start, which has the high bit
    clear. From 2036 on real times have it clear as well; they are told apart by being within a year of ours.
    """
    seconds = ntp / _NTP_ERA_S
    if ntp == 0:
        return None
    if ntp >> 63:
        return seconds - _NTP_TO_UNIX_S
    unix = seconds + _NTP_ERA_S - _NTP_TO_UNIX_S
    return unix if abs(unix - near) < _YEAR_S else None
