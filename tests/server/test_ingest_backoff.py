"""Pauses between attempts: they grow, stay within their bounds, and differ from camera to camera."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.backoff import STABLE_S, Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(1, 30, lambda: 0.0)
    assert [backoff.next_s() for _ in range(7)] == [1, 2, 4, 8, 16, 24, 24]


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.lists(st.booleans(), max_size=60), st.integers())
def test_pauses_stay_within_their_bounds(first: float, longest: float, slow: list[bool], seed: int) -> None:
    longest = max(first, longest)
    backoff = Backoff(first, longest, random.Random(seed).random)
    for each in slow:
        assert first <= backoff.next_s(slow=each) <= longest * (1 + 1e-9)


def test_a_wrong_password_is_tried_slowly_from_the_first() -> None:
    assert Backoff(1, 30, lambda: 0.99).next_s(slow=True) == pytest.approx(30, rel=0.01)


def test_cameras_do_not_come_back_in_step() -> None:
    cameras = [Backoff(1, 30, random.Random(seed).random) for seed in range(64)]
    for _ in range(8):
        pauses = sorted(camera.next_s() for camera in cameras)
        assert pauses[-1] - pauses[0] > 0.15 * pauses[0]


@pytest.mark.parametrize(("delivered_s", "expected"), [(0.0, 8), (STABLE_S - 0.1, 8), (STABLE_S, 1)])
def test_only_a_stable_time_starts_it_anew(delivered_s: float, expected: float) -> None:
    backoff = Backoff(1, 30, lambda: 0.0)
    for _ in range(3):
        backoff.next_s()
    backoff.delivered(delivered_s)
    assert backoff.next_s() == expected


def test_years_of_failures_do_not_overflow() -> None:
    backoff = Backoff(1, 30, lambda: 0.5)
    assert all(1 <= backoff.next_s() <= 30 for _ in range(5000))
