"""The judge of the truth rig finds every kind of lie, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from server.testing.truth.cases import matrix
from server.testing.truth.judge import Received, Verdict, judge
from server.testing.truth.pattern import COLUMNS, DIGIT_BITS, ROWS, to_digits
from server.testing.truth.senders import Sent

OFFSET = 1.8e9
FPS, CLIP, WIDTH, HEIGHT = 25, 50, 640, 360
FIRST_TIMESTAMP = 2**32 - 90_000 * 3
"""Time stamps wrap within the log."""


def sent(place: int) -> Sent:
    at = 100 + place / FPS
    return Sent(place % CLIP, (FIRST_TIMESTAMP + place * 3600) & 0xFFFFFFFF, at - 0.001, at, OFFSET + at - 0.01)


SENT = [sent(place) for place in range(4 * CLIP)]


def stamp(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")


def result(
    place: int, *, shows: int | None = None, total: float = 0.02, true_total: float = 0.02, **changes: Any
) -> Received:
    frame = SENT[place]
    left = COLUMNS // DIGIT_BITS
    digits = to_digits(frame.number if shows is None else shows, 1.0)
    boxes = [(x * WIDTH / left, y * HEIGHT / ROWS) for y in range(4) for x in range(left)]
    message = {
        "type": "result", "status": "ok", "seq": place, "pts": place / FPS, "width": WIDTH, "height": HEIGHT,
        "time": {
            "captured_at": stamp(frame.captured_unix or 0), "capture_uncertainty_ms": 1.0,
            "received_uncertainty_ms": 0.0, "sent_at": stamp(OFFSET + frame.sent_at + true_total),
        },
        "latency_ms": {"total": total * 1e3, "inference": 1.0},
        "detections": [
            {"box": [x, y, x + WIDTH / left, y + HEIGHT / ROWS], "class_id": digit, "confidence": 0.9}
            for (x, y), digit in zip(boxes, digits, strict=True)
        ],
    }  # fmt: skip
    message["time"] |= changes.pop("time", {})
    return Received(message | changes, frame.sent_at + true_total)


def verdict(*lies: Received) -> Verdict:
    """Of a stream of true results, those of the lies' frames replaced by them."""
    by_seq = {lie.result["seq"]: lie for lie in lies}
    return judge([by_seq.get(place, result(place)) for place in range(10, 190)], SENT, OFFSET)


def test_true_results_are_true_over_loops_and_the_wrap_of_time_stamps() -> None:
    found = verdict()
    assert found.faults() == []
    assert (found.results, len(found.frames)) == (180, 180)
    assert max(map(abs, found.latency_errors)) < 0.001


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (result(20, shows=21), "its pts is off by -0.04"),
        (result(20, shows=49), "its pts is off"),
        (result(20, shows=1000), "never sent"),
        (result(20, pts=20 / FPS + 0.04), "its pts is off by +0.04"),
        (result(20, detections=[]), "torn"),
        (result(20, detections=result(20).result["detections"][1:]), "torn"),
        (result(20, detections=result(21).result["detections"][:10] + result(20).result["detections"][10:]), "torn"),
        (result(20, total=0.045), "latencies are wrong by more than 0.02 s, up to +0.02"),
        (result(20, true_total=0.045), "latencies are wrong"),
        (result(20, time={"captured_at": stamp(OFFSET + SENT[20].sent_at)}), "capture times are off"),
    ],
)
def test_a_single_lie_among_many_results_is_found(lie: Received, words: str) -> None:
    assert any(words in fault for fault in verdict(lie).faults())


def test_numbers_follow_the_order_in_which_frames_were_sent() -> None:
    found = judge([result(19), result(20, seq=30_000), result(21)], SENT, OFFSET)
    assert found.faults() == ["the frame after seq 21 was sent before it"]


def test_a_frame_has_one_result() -> None:
    assert "has a result already" in judge([result(20), result(20, seq=21)], SENT, OFFSET).faults()[0]


def test_an_uncertain_arrival_may_be_anywhere_within() -> None:
    held = {"received_uncertainty_ms": 40.0}
    assert verdict(result(20, total=0.06, time=held)).faults() == []
    assert verdict(result(20, total=0.03, time=held)).faults() == []
    assert verdict(result(20, total=0.1, time=held)).faults() != []


def test_a_frame_of_which_packets_were_lost_has_no_result() -> None:
    log = [replace(frame, harmed=place == 20) for place, frame in enumerate(SENT)]
    assert "packets of frame 20 were lost" in judge([result(20)], log, OFFSET).faults()[0]


def test_where_no_kernel_reads_the_clock_a_busy_machine_may_be_late_for_some_frames() -> None:
    for late, faults in ((8, 0), (30, 1)):
        received = [result(place, true_total=0.06 if place < 10 + late else 0.02) for place in range(10, 110)]
        assert len(judge(received, SENT, OFFSET, exact=False).faults()) == faults
        assert len(judge(received, SENT, OFFSET).faults()) == 1


def test_no_result_is_a_fault_and_errors_and_other_messages_are_none() -> None:
    assert judge([], SENT, OFFSET).faults() == ["there is no result"]
    assert judge([Received({"type": "state"}, 0.0)], SENT, OFFSET).results == 0


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in matrix()]
    assert len(names) == len(set(names))
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)
