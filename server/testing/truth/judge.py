"""Holds results against the sender's log: is each frame the one that it claims to be, and are its times true?

Pure. A result names its frame by `pts` and by `seq`; its picture, read by the model, says which one it is. Both have to
agree for every single result.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any

from server.ingest.rtsp.rtp import signed32
from server.testing.truth.model import stamp_of
from server.testing.truth.senders import Sent

_CLOCK_HZ = 90_000
INTERRUPTED = 0.1
"""Share of frames in which a busy machine may come between a frame and the clock, where the kernel does not read it."""
TOLERANCE_S = 0.02
"""What a stated latency may be off."""
_PTS_S = 0.001
_ROUNDING_S = 0.001
"""Wall-clock times of results have milliseconds, cut off."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the type `result`, and when the client had it."""

    result: dict[str, Any]
    at: float
    """CLOCK_MONOTONIC seconds."""


@dataclass(slots=True)
class Verdict:
    """Times in seconds. Everything about one stream."""

    results: int = 0
    torn: int = 0
    """The picture could not be read: damaged, or of more than one frame."""
    wrong: list[str] = field(default_factory=list)
    """Results that belong to another frame than they claim, with the reason."""
    latency_errors: list[float] = field(default_factory=list)
    """Stated total - true total, both up to `sent_at`. The truth lies between two readings of the clock, before the
    frame's first packet was sent and after its last one (so a machine that interrupts the sender makes no error), and
    an uncertain arrival is an interval, too: 0 where the two meet, else the distance between them."""
    outside: list[float] = field(default_factory=list)
    """From the frame's last packet to the message at the client: a latency without any of the server's clocks."""
    capture_errors: list[float] = field(default_factory=list)
    """Stated - true capture time."""
    capture_excess: list[float] = field(default_factory=list)
    """By how much that is more than the stated uncertainty; negative where it is not."""
    from_first_packet: list[float] = field(default_factory=list)
    """From the frame's first packet to `sent_at`."""
    inference: list[float] = field(default_factory=list)
    inexact: int = 0
    """Results of frames whose sending or arrival was not timed by the kernel, or by a clock on both sides of it."""
    frames: dict[int, Received] = field(default_factory=dict)
    """Place of the frame in the sender's log -> its result."""

    @property
    def allowed_late(self) -> float:
        """gst-rtsp-server's log is written before a frame is sent, libavformat's arrivals are read off the clock by a
        process that has to be scheduled first."""
        return INTERRUPTED * self.inexact

    def faults(self, tolerance_s: float = TOLERANCE_S) -> list[str]:
        """What is not as it should be, one sentence each; empty if all is well."""
        found = list(self.wrong)
        if self.torn:
            found.append(f"{self.torn} of {self.results} results are of torn pictures")
        late = [error for error in self.latency_errors if abs(error) > tolerance_s]
        if len(late) > self.allowed_late:
            found.append(f"{len(late)} latencies are wrong by more than {tolerance_s:g} s, up to {worst(late):+.4f} s")
        if beyond := [excess for excess in self.capture_excess if excess > 0]:
            found.append(f"{len(beyond)} capture times are off by up to {max(beyond):.4f} s more than stated")
        if not self.results:
            found.append("there is no result")
        return found


def judge(received: Sequence[Received], sent: Sequence[Sent], unix_offset: float, *, exact: bool = True) -> Verdict:
    """`sent`: the whole log, or at least all of it that results can be about. `unix_offset`: wall clock minus
    CLOCK_MONOTONIC. `exact`: arrivals are the kernel's."""
    verdict = Verdict()
    by_number: dict[int, list[int]] = {}
    for place, frame in enumerate(sent):
        by_number.setdefault(frame.number, []).append(place)
    base: int | None = None
    places: list[tuple[int, int]] = []
    for item in received:
        result = item.result
        if result["type"] != "result" or result["status"] != "ok":
            continue
        verdict.results += 1
        stamp = stamp_of(result["detections"], result["width"], result["height"])
        if stamp is None:
            verdict.torn += 1
            continue
        sent_at = _unix(result["time"]["sent_at"]) + _ROUNDING_S / 2 - unix_offset
        total = result["latency_ms"]["total"] / 1e3
        candidates = by_number.get(stamp.counter, [])
        if not candidates:
            verdict.wrong.append(f"seq {result['seq']}: frame {stamp.counter} was never sent")
            continue
        place = min(candidates, key=lambda place: abs(sent[place].sent_at - (sent_at - total)))
        frame = sent[place]
        claimed = round(result["pts"] * _CLOCK_HZ)
        if base is None:
            base = frame.rtp_timestamp - claimed
        off_s = signed32(base + claimed - frame.rtp_timestamp & 0xFFFFFFFF) / _CLOCK_HZ
        if abs(off_s) > _PTS_S:
            verdict.wrong.append(f"seq {result['seq']}: shows frame {stamp.counter}, its pts is off by {off_s:+.4f} s")
        if frame.harmed:
            verdict.wrong.append(f"seq {result['seq']}: packets of frame {stamp.counter} were lost")
        if place in verdict.frames:
            verdict.wrong.append(f"seq {result['seq']}: frame {stamp.counter} has a result already")
        verdict.frames[place] = item
        verdict.inexact += not (exact and frame.exact)
        places.append((result["seq"], place))
        earliest = sent_at - total
        latest = earliest + result["time"]["received_uncertainty_ms"] / 1e3
        verdict.latency_errors.append(_distance(earliest, latest, frame))
        verdict.outside.append(item.at - frame.sent_at)
        verdict.from_first_packet.append(sent_at - frame.began_at)
        verdict.inference.append(result["latency_ms"]["inference"] / 1e3)
        _judge_capture(verdict, result["time"], frame)
    places.sort()
    for (seq, before), (_, after) in itertools.pairwise(places):
        if after <= before:
            verdict.wrong.append(f"the frame after seq {seq} was sent before it")
    return verdict


def worst(errors: Sequence[float]) -> float:
    """The one furthest from zero."""
    return max(errors, key=abs, default=0.0)


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _distance(earliest: float, latest: float, frame: Sent) -> float:
    """From the stated arrival to the true one; positive if it was stated too early, so that the total is too long."""
    if latest < frame.began_at:
        return frame.began_at - latest
    return min(0.0, frame.sent_at - earliest)


def _judge_capture(verdict: Verdict, time: dict[str, Any], frame: Sent) -> None:
    if time["captured_at"] is None or frame.captured_unix is None:
        return
    error = _unix(time["captured_at"]) + _ROUNDING_S / 2 - frame.captured_unix
    verdict.capture_errors.append(error)
    verdict.capture_excess.append(abs(error) - time["capture_uncertainty_ms"] / 1e3 - _ROUNDING_S / 2)


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
