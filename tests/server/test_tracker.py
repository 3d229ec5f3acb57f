"""Numbers that stay with objects: each rule alone, in frames that are written down."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.analytics.tracker import NOBODY, Tracker, TrackerSettings, iou

PERSON, CAR = 0, 2


def box(x: float, y: float = 100.0, width: float = 40.0, height: float = 100.0) -> list[float]:
    return [x, y, x + width, y + height]


class Scene:
    """A tracker and the time."""

    def __init__(self, settings: TrackerSettings | None = None) -> None:
        self.tracker = Tracker(settings)
        self.now = 0.0
        self.ended: list[int] = []

    def frame(
        self, *boxes: list[float], after: float = 0.1, confidence: float = 0.8, classes: list[int] | None = None
    ) -> list[int]:
        self.now += after
        update = self.tracker.update(
            np.array(boxes, float).reshape(-1, 4),
            np.full(len(boxes), confidence),
            np.array(classes if classes is not None else [PERSON] * len(boxes), np.int64),
            self.now,
        )
        self.ended += update.ended
        return update.ids.tolist()


def test_a_track_is_confirmed_by_its_second_frame_and_keeps_its_number() -> None:
    scene = Scene()
    assert scene.frame(box(0), box(300)) == [NOBODY, NOBODY]
    assert scene.frame(box(4), box(300)) == [1, 2]
    assert scene.frame(box(300), box(8)) == [2, 1], "whatever the order of the detections"
    assert len(scene.tracker) == 2


@pytest.mark.parametrize(("confidence", "frames"), [(0.8, 2), (0.36, 2), (0.31, 3)])
def test_the_less_sure_the_more_often_it_must_be_seen(confidence: float, frames: int) -> None:
    scene = Scene()
    ids = [scene.frame(box(0), confidence=confidence)[0] for _ in range(6)]
    assert ids == [NOBODY] * (frames - 1) + [1] * (7 - frames)


def test_too_unsure_a_detection_begins_no_track_but_carries_one_on() -> None:
    scene = Scene()
    assert [scene.frame(box(0), confidence=0.2)[0] for _ in range(9)] == [NOBODY] * 9
    scene.frame(box(200))
    scene.frame(box(200))
    assert scene.frame(box(201), confidence=0.15) == [1], "a half hidden object keeps its number"


def test_sure_detections_choose_first() -> None:
    scene = Scene()
    scene.frame(box(0))
    scene.frame(box(0))
    scene.now += 0.1
    update = scene.tracker.update(
        np.array([box(0), box(9)]), np.array([0.2, 0.9]), np.array([PERSON, PERSON]), scene.now
    )
    assert update.ids.tolist() == [NOBODY, 1]


def test_classes_do_not_mix() -> None:
    scene = Scene()
    scene.frame(box(0), box(0), classes=[PERSON, CAR])
    assert scene.frame(box(0), box(0), classes=[PERSON, CAR]) == [1, 2]
    assert scene.frame(box(0), classes=[CAR]) == [2]
    assert scene.frame(box(0), classes=[PERSON]) == [1]


@pytest.mark.parametrize("interval", [0.04, 0.1, 0.2, 0.4])
def test_who_walks_keeps_the_number_at_any_frame_rate(interval: float) -> None:
    """Three people, 1.3 heights a second and opposite ways: at .4 s the boxes of one person do not overlap."""
    scene = Scene()
    seen = set()
    for index in range(int(3 / interval)):
        way = 130 * interval * index
        ids = scene.frame(box(way), box(600 - way, 260), box(way, 420), after=interval)
        if index:
            seen.add(tuple(ids))
    assert seen == {(1, 2, 3)}


@pytest.mark.parametrize("interval", [0.125, 0.25])
def test_a_car_that_comes_closer_keeps_its_number(interval: float) -> None:
    """In perspective: at 12 m/s from 45 m to 6 m its box grows sevenfold, most of it in the last second."""
    tracker, ids = Tracker(), []
    for index in range(int(39 / 12 / interval)):
        depth = 45 - 12 * interval * index
        width, height, x, y = 1700 / depth, 1400 / depth, 640 - 3000 / depth, 300 + 1500 / depth
        boxes = np.array([box(x, y, width, height)])
        quick = np.array([True])
        ids += tracker.update(boxes, np.array([0.8]), np.array([CAR]), index * interval, quick).ids.tolist()
    assert ids == [NOBODY] + [1] * (len(ids) - 1)


def test_two_who_cross_do_not_change_numbers() -> None:
    scene = Scene()
    for index in range(40):
        ids = scene.frame(box(8 * index), box(320 - 8 * index, 112, 38, 96))
    assert ids == [1, 2]


def test_hidden_for_a_while_the_number_stays() -> None:
    scene = Scene()
    for index in range(10):
        scene.frame(box(5 * index))
    assert scene.frame(box(5 * 24), after=1.5) == [1]
    assert scene.ended == []


def test_unseen_too_long_the_track_ends() -> None:
    scene = Scene()
    for _ in range(3):
        scene.frame(box(0))
    assert scene.tracker.seen_at(1) == pytest.approx(0.3)
    scene.frame(after=TrackerSettings().lost_s + 0.1)
    assert scene.ended == [1]
    assert scene.tracker.seen_at(1) is None
    scene.frame(box(0))
    assert scene.frame(box(0)) == [2], "a number is not used again"


def test_without_frames_tracks_end_too() -> None:
    scene = Scene()
    scene.frame(box(0))
    scene.frame(box(0))
    assert scene.tracker.expire(scene.now + 1) == []
    assert scene.tracker.expire(scene.now - 1) == [], "the time of the past"
    assert scene.tracker.expire(scene.now + 60) == [1]
    assert len(scene.tracker) == 0


def test_a_scene_that_was_empty_is_like_a_new_one() -> None:
    scene = Scene()
    assert [scene.frame() for _ in range(3)] == [[], [], []]
    scene.frame(box(0))
    assert scene.frame(box(0)) == [1]


def test_a_flash_is_forgotten() -> None:
    scene = Scene()
    scene.frame(box(0))
    for _ in range(4):
        scene.frame()
    assert scene.frame(box(0)) == [NOBODY]
    assert scene.ended == [], "it was no track yet"


def test_a_slow_camera_confirms_as_well() -> None:
    scene = Scene()
    scene.frame(box(0), after=2.0)
    assert scene.frame(box(0), after=2.0) == [1]


def test_a_second_box_of_the_same_object_begins_no_track() -> None:
    scene = Scene()
    for _ in range(5):
        ids = scene.frame(box(0), box(3, 103))
    assert ids == [1, NOBODY]


def test_an_answer_that_was_overtaken_gets_numbers_and_changes_nothing() -> None:
    scene = Scene()
    for index in range(5):
        scene.frame(box(4 * index))
    motion = scene.tracker._motion
    late = scene.tracker.update(np.array([box(14), box(500)]), np.array([0.8, 0.8]), np.zeros(2, np.int64), 0.45)
    assert late.ids.tolist() == [1, NOBODY]
    assert scene.tracker._motion is motion
    assert scene.frame(box(20), box(500)) == [1, NOBODY], "and began none"


@given(
    st.lists(
        st.tuples(
            st.floats(-0.2, 3.0),
            st.lists(
                st.tuples(*[st.floats(-1e4, 1e4)] * 2, *[st.floats(0, 1e4)] * 2, st.floats(0, 1), st.integers(0, 3)),
                max_size=6,
            ),
        ),
        max_size=12,
    )
)
def test_whatever_comes_numbers_are_unique_and_rising(frames: list) -> None:
    tracker, now, highest, ended = Tracker(), 0.0, 0, set()
    for passed, found in frames:
        now += passed
        rows = np.array(found, float).reshape(-1, 6)
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        before = boxes.copy()
        update = tracker.update(boxes, rows[:, 4], rows[:, 5].astype(np.int64), now)
        ids = [i for i in update.ids.tolist() if i != NOBODY]
        assert boxes.tolist() == before.tolist()
        assert len(update.ids) == len(found), "none is withheld"
        assert len(set(ids)) == len(ids)
        assert not set(ids) & ended
        ended.update(update.ended)
        assert all(i <= highest + len(found) for i in ids)
        highest = max([highest, *ids])


def test_the_same_frames_give_the_same_numbers() -> None:
    rng = np.random.default_rng(5)
    frames = [rng.uniform(0, 500, (6, 2)) for _ in range(20)]
    runs = []
    for _ in range(2):
        scene = Scene()
        runs.append([scene.frame(*(box(x, y) for x, y in corners)) for corners in frames])
    assert runs[0] == runs[1]


def test_iou() -> None:
    a = np.array([[0.0, 0, 2, 2], [5, 5, 5, 5]])
    assert iou(a, np.array([[1.0, 0, 3, 2], [0, 0, 2, 2], [9, 9, 10, 10]])) == pytest.approx(
        np.array([[1 / 3, 1, 0], [0, 0, 0]])
    )
    assert iou(a[:0], a).shape == (0, 2)


def test_thirty_objects_cost_little() -> None:
    """Below 1 ms on a machine of its own; the bound has room for a busy one."""
    rng = np.random.default_rng(1)
    tracker = Tracker()
    corners, speeds = rng.uniform(0, 1000, (30, 2)), rng.normal(0, 5, (30, 2))
    spent = []
    for index in range(60):
        at = corners + speeds * index
        boxes = np.concatenate([at, at + np.array([40, 100])], axis=1) + rng.normal(0, 2, (30, 4))
        began = time.process_time()
        tracker.update(boxes, np.full(30, 0.7), np.zeros(30, np.int64), index / 10)
        spent.append(time.process_time() - began)
    assert min(spent[10:]) < 3e-3
