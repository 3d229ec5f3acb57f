"""The filter must not care how often it is asked: only how much time has passed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.analytics.motion import Floats, Motion, begin, boxes_to_state, join, predict, select, state_to_boxes, update

BOX = np.array([[100.0, 50.0, 140.0, 150.0]])


def one(box: Floats, quick: bool = False) -> Motion:
    return begin(boxes_to_state(box), np.array([quick]))


def test_boxes_and_states_are_the_same_thing() -> None:
    state = boxes_to_state(BOX)
    assert state.tolist() == [[120, 50, 40, 100]], "centre x, top y, width, height"
    assert state_to_boxes(state).tolist() == BOX.tolist()


def test_a_state_of_no_size_is_a_box_of_one_pixel() -> None:
    assert state_to_boxes(np.array([[10.0, 20.0, -3.0, 0.0]])).tolist() == [[9.5, 20, 10.5, 21]]


@given(st.lists(st.floats(0.01, 0.6), min_size=1, max_size=8))
def test_many_small_steps_are_one_large_one(steps: list[float]) -> None:
    moving = one(BOX)
    update(moving, np.array([0]), boxes_to_state(BOX + np.array([9, 4, 9, 4])), np.ones((1, 1)))
    moving.velocity[:] = [[30.0, 5.0, 0.0, 0.0]]
    at_once, in_steps = predict(moving, sum(steps)), moving
    for step in steps:
        in_steps = predict(in_steps, step)
    assert in_steps.value == pytest.approx(at_once.value, rel=1e-9)
    assert in_steps.velocity == pytest.approx(at_once.velocity, rel=1e-9)
    for name in ("variance", "covariance", "velocity_variance"):
        assert getattr(in_steps, name) == pytest.approx(getattr(at_once, name), rel=1e-6), name


def test_no_time_changes_nothing() -> None:
    moving = one(BOX)
    for before, after in zip(moving, predict(moving, 0.0), strict=True):
        assert after.tolist() == before.tolist()


@pytest.mark.parametrize("interval", [0.04, 0.1, 0.4])
def test_learns_a_velocity_at_any_frame_rate(interval: float) -> None:
    motion = one(BOX)
    for frame in range(1, int(2.4 / interval) + 1):
        motion = predict(motion, interval)
        way = 30.0 * interval * frame
        update(motion, np.array([0]), boxes_to_state(BOX + np.array([way, 0, way, 0])), np.ones((1, 1)))
    assert motion.velocity[0, 0] == pytest.approx(30.0, abs=3)
    assert abs(motion.velocity[0, 1:]).max() < 0.5


def test_uncertainty_grows_unseen_and_shrinks_seen() -> None:
    motion = one(BOX)
    unseen = predict(motion, 1.0)
    assert (unseen.variance > motion.variance).all()
    update(unseen, np.array([0]), boxes_to_state(BOX), np.ones((1, 1)))
    assert (unseen.variance < motion.variance).all()


def test_near_objects_may_move_more_pixels() -> None:
    small, large = (predict(one(BOX * scale), 0.5).variance for scale in (1.0, 3.0))
    assert large == pytest.approx(small * 9)


def test_a_noisy_box_counts_less() -> None:
    sure, unsure = one(BOX), one(BOX)
    for motion, noise in ((sure, 1.0), (unsure, 3.0)):
        update(motion, np.array([0]), boxes_to_state(BOX + 8), np.full((1, 1), noise))
    assert BOX[0, 1] < unsure.value[0, 1] < sure.value[0, 1] < BOX[0, 1] + 8


def test_rows_come_and_go() -> None:
    first, second = one(BOX), one(BOX + 1)
    both = join(first, second)
    assert select(both, np.array([False, True])).value.tolist() == second.value.tolist()
    update(both, np.array([1]), boxes_to_state(BOX + 5), np.ones((1, 1)))
    assert both.value[0].tolist() == first.value[0].tolist(), "others are not touched"


def test_what_is_quick_may_be_further_away() -> None:
    person, car = (predict(one(BOX, quick), 1.0).variance for quick in (False, True))
    assert (car > 1.5 * person).all()
