"""The window in virtual time: the engine is fed just before it runs dry, and never further ahead."""

from __future__ import annotations

import math

import pytest

from server.batching.window import LEAD_S, Window


def test_an_idle_engine_takes_a_batch_at_once_and_a_busy_one_of_unknown_speed_none() -> None:
    window = Window()
    assert window.opens_at() == -math.inf
    window.sent(1, "a", 10.0)
    assert window.opens_at() == math.inf


def test_the_next_batch_goes_out_shortly_before_the_running_one_is_expected_to_end() -> None:
    window = Window()
    window.sent(1, "a", 0.0)
    window.ended(1, 0.0, 0.020)
    window.sent(2, "a", 1.0)
    assert window.opens_at() == pytest.approx(1.020 - LEAD_S)


def test_one_batch_ahead_and_no_more_and_its_end_is_counted_from_the_end_of_its_predecessor() -> None:
    window = Window()
    window.sent(1, "a", 0.0)
    window.ended(1, 0.0, 0.020)
    window.sent(2, "a", 1.0)
    window.sent(3, "a", 1.018)
    assert window.opens_at() == math.inf
    window.ended(2, 1.0, 1.030)  # later than expected
    assert window.opens_at() == pytest.approx(1.030 + window.usual_s("a") - LEAD_S)


def test_two_at_once_open_again_when_the_first_of_them_is_about_to_end() -> None:
    window = Window(parallel=2)
    for batch in (1, 2):
        window.sent(batch, "a", 0.0)
        window.ended(batch, 0.0, 0.040)
    window.sent(3, "a", 1.0)
    assert window.opens_at() == -math.inf
    window.sent(4, "a", 1.010)
    assert window.opens_at() == pytest.approx(1.040 - LEAD_S)


def test_each_shape_has_its_own_usual_time_and_failures_teach_nothing() -> None:
    window = Window()
    window.sent(1, "small", 0.0)
    window.ended(1, 0.0, 0.010)
    window.sent(2, "large", 0.0)
    window.ended(2, 0.0, 0.030)
    window.sent(3, "small", 0.0)
    window.ended(3, 0.0, 5.0, ok=False)
    assert window.usual_s("small") == pytest.approx(0.010)
    assert window.usual_s("large") == pytest.approx(0.030)


def test_a_lost_worker_empties_the_window() -> None:
    window = Window()
    window.sent(1, "a", 0.0)
    window.clear()
    assert window.outstanding == 0
    assert window.opens_at() == -math.inf
    with pytest.raises(KeyError):
        window.ended(1, 0.0, 1.0)
