"""What a stream's results mean over time: numbers and zones in the message itself, the clock, and the end of tracks."""

import math

import pytest
from fake_runtime import detection
from hypothesis import given
from hypothesis import strategies as st

from server.analytics.analyst import Analyst, Observation
from server.analytics.clock import FrameClock
from server.results import Result
from server.streams import StreamDefinition

DOOR = {"name": "door", "points": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
GATE = {"name": "gate", "points": [[0.5, 1], [0.5, 0]]}


def definition(**fields: object) -> StreamDefinition:
    return StreamDefinition.model_validate({"id": "a", "url": "rtsp://h/x"} | fields)


def analyst(**fields: object) -> Analyst:
    made = Analyst()
    made.define(definition(**fields))
    return made


def result(x: float, pts: float, *, confidence: float = 0.8) -> Result:
    """A person who stands at `x` of 1000 pixels."""
    found = detection(confidence=confidence) | {"box": [x - 20, 400.0, x + 20, 500.0], "track_id": None, "zones": []}
    return {"pts": pts, "width": 1000, "height": 500, "detections": [found]}  # type: ignore[typeddict-item]


def walk(one: Analyst, *positions: float, begin: float = 0.0) -> list[tuple[Result, Observation]]:
    """At 10 frames a second."""
    frames = []
    for index, x in enumerate(positions):
        message = result(x, begin + index / 10)
        frames.append((message, one.observe(message, 100 + begin + index / 10)))
    return frames


def test_numbers_and_zones_stand_in_the_message() -> None:
    frames = walk(analyst(zones=[DOOR]), 450, 470, 490, 510)
    assert [message["detections"][0]["track_id"] for message, _ in frames] == [None, 1, 1, 1]
    assert [message["detections"][0]["zones"] for message, _ in frames] == [["door"], ["door"], ["door"], []]


def test_tracking_is_on_unless_it_is_turned_off() -> None:
    for fields, expected in (
        ({}, 1), ({"track": True}, 1), ({"track": False}, None), ({"track": False, "zones": [DOOR]}, 1),
        ({"track": False, "lines": [GATE]}, 1),
    ):  # fmt: skip
        message, _ = walk(analyst(**fields), 100, 100, 100)[-1]
        assert message["detections"][0]["track_id"] == expected, fields


def test_who_walks_through_enters_crosses_and_leaves() -> None:
    one = analyst(zones=[DOOR], lines=[GATE])
    frames = walk(one, *([400] * 6), *range(400, 640, 12), *([640] * 6))
    happened = [(h.kind, h.track_id) for _, seen in frames for h in seen.happened]
    assert happened == [("zone_enter", 1), ("zone_leave", 1), ("line_cross", 1)]
    assert one.areas.crossings == {("gate", "in", "person"): 1}


def test_a_track_outlives_a_short_break_of_the_camera_and_ends_in_a_long_one() -> None:
    one = analyst(zones=[DOOR])
    walk(one, *([100] * 8))
    assert one.idle(101.5) is None
    (message, _), *_ = walk(one, 100, begin=2.0)
    assert message["detections"][0]["track_id"] == 1
    observation = one.idle(110.0)
    assert observation is not None
    (ended,) = observation.ended
    assert (ended.track_id, ended.seen_at) == (1, pytest.approx(102.0))
    assert [h.kind for h in ended.happened] == ["zone_leave"]
    assert one.tracks == 0


def test_turned_off_or_closed_all_tracks_end() -> None:
    one = analyst()
    walk(one, 100, 100, 100)
    one.define(definition(track=False))
    ((_, observation),) = walk(one, 100, begin=1.0)
    assert [ended.track_id for ended in observation.ended] == [1]
    other = analyst()
    walk(other, 100, 100, 100)
    assert [ended.track_id for ended in other.close()] == [1]
    assert other.close() == []


def test_changed_settings_leave_tracks_alone() -> None:
    one = analyst()
    walk(one, 100, 100, 100)
    one.define(definition(zones=[DOOR]))
    (message, _), *_ = walk(one, 100, begin=0.3)
    assert message["detections"][0]["track_id"] == 1


def test_an_overtaken_result_has_numbers_and_tells_nothing() -> None:
    one = analyst(zones=[DOOR])
    walk(one, *([100] * 5))
    late = result(100, 0.35)
    assert one.observe(late, 100.36) == Observation(pytest.approx(100.35), [], [], [])
    assert late["detections"][0]["track_id"] == 1


def test_time_stamps_count_while_they_agree_with_arrival() -> None:
    clock = FrameClock()
    times = [clock.at(7 + i / 10, 50 + i / 10 + (0.4 if i % 3 else 0.0)) for i in range(10)]
    assert times == pytest.approx([50 + i / 10 for i in range(10)]), "bursts of arrival do not matter"


@pytest.mark.parametrize("pts", [None, 5000.0, 0.0, math.nan])
def test_time_stamps_that_jump_are_not_believed(pts: float | None) -> None:
    clock = FrameClock()
    for i in range(20):
        clock.at(100 + i / 10, 50 + i / 10)
    assert clock.at(pts, 52.0) == 52.0
    assert clock.at(None if pts is None else pts + 0.1, 52.13) == pytest.approx(
        52.13 if pts in (None, math.nan) else 52.1, abs=0.04
    )


def test_a_clock_that_runs_too_fast_never_goes_back() -> None:
    clock = FrameClock()
    times = [clock.at(i / 10, 50 + i / 20) for i in range(100)]
    assert times == sorted(times)
    assert times[-1] - (50 + 99 / 20) <= 1.0


def test_a_file_that_is_read_as_fast_as_it_goes_has_its_own_time() -> None:
    clock = FrameClock(paced=False)
    times = [clock.at(i / 10, 50 + i / 1000) for i in range(100)]
    assert times[-1] - times[0] == pytest.approx(9.9)
    assert clock.at(9.8, 50.2) - times[-1] == pytest.approx(-0.1), "overtaken"
    assert clock.at(0.0, 50.2) - times[-1] == pytest.approx(0.04), "from the beginning"
    assert clock.at(500.0, 50.3) - times[-1] == pytest.approx(0.08), "a jump"


@given(st.lists(st.tuples(st.none() | st.floats(-50, 50), st.floats(0, 3)), min_size=1, max_size=30), st.booleans())
def test_without_frames_time_goes_on(frames: list[tuple[float | None, float]], paced: bool) -> None:
    clock, arrived_at, newest = FrameClock(paced=paced), 100.0, -math.inf
    for pts, passed in frames:
        arrived_at += passed
        newest = max(newest, clock.at(pts, arrived_at))
        assert clock.without_frames(arrived_at + 1) >= newest
        if paced:
            assert abs(newest - arrived_at) <= 1 + sum(p for _, p in frames)
