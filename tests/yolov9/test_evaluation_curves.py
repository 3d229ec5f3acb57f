"""Curves over the confidence and the confusion of classes, on cases whose answer is known or counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from test_evaluation_coco import brute_force, iou, random_pictures

from yolov9.evaluation.coco import coco_accuracy
from yolov9.evaluation.confusion import confusion
from yolov9.evaluation.curves import GRID, IGNORED, RIGHT, WRONG, curves, mark, mean_best
from yolov9.evaluation.plots import draw_all
from yolov9.evaluation.results import Picture


def picture(objects=(), found=(), crowd=()):
    """Objects: (x1, y1, x2, y2, class); found: the same with the score before the class."""
    truth = np.array(objects, np.float32).reshape(-1, 5)
    return Picture(
        1, "a.png", 500, 500, truth[:, :4], truth[:, 4].astype(np.int64),
        np.array(crowd or [False] * len(truth), bool), np.full(len(truth), 100, np.float32),
        np.array(found, np.float32).reshape(-1, 6),
    )  # fmt: skip


def test_each_object_is_found_once_by_the_best_box_of_its_class():
    p = picture(
        [(0, 0, 10, 10, 0), (100, 100, 110, 110, 1)],
        [(0, 0, 10, 9, 0.9, 0), (0, 0, 10, 10, 0.8, 0), (100, 100, 110, 110, 0.7, 0), (100, 100, 110, 111, 0.6, 1),
         (0, 0, 10, 4, 0.5, 0)],
    )  # fmt: skip
    assert mark(p).tolist() == [RIGHT, WRONG, WRONG, RIGHT, WRONG]


def test_a_crowd_takes_any_number_but_only_after_the_objects():
    p = picture(
        [(0, 0, 100, 100, 0), (10, 10, 20, 20, 0)],
        [(10, 10, 20, 20, 0.9, 0), (10, 10, 20, 20, 0.8, 0), (50, 50, 60, 60, 0.7, 0), (50, 50, 60, 60, 0.6, 1),
         (95, 50, 115, 60, 0.5, 0)],
        crowd=[True, False],
    )  # fmt: skip
    assert mark(p).tolist() == [RIGHT, IGNORED, IGNORED, WRONG, WRONG]


def test_precision_recall_and_f1_at_each_threshold_are_the_counts():
    pictures = random_pictures(1, images=10)
    (curve,) = curves(pictures, [1])
    objects = sum(int((p.classes[~p.crowd] == 1).sum()) for p in pictures)
    assert curve.objects == objects
    rows = [
        (score, flag)
        for p in pictures
        for (*_, score, kind), flag in zip(p.found.astype(float).tolist(), mark(p), strict=True)
        if kind == 1 and flag != IGNORED
    ]
    for place in range(0, 1001, 37):
        kept = [flag for score, flag in rows if score >= GRID[place]]
        right = kept.count(RIGHT)
        assert curve.precision[place] == pytest.approx(right / len(kept) if kept else 1)
        assert curve.recall[place] == pytest.approx(right / objects)
        assert curve.f1[place] == pytest.approx(2 * right / (len(kept) + objects))
    assert curve.f1[round(curve.confidence * 1000)] == curve.f1.max()


@pytest.mark.parametrize("seed", [0, 4])
def test_the_envelope_is_the_one_that_ap50_is_the_mean_of(seed):
    pictures = random_pictures(seed)
    accuracy = coco_accuracy(pictures, [0, 1, 2])
    for class_id, curve in enumerate(curves(pictures, [0, 1, 2])):
        assert curve.envelope.mean() == pytest.approx(accuracy.ap50(class_id), abs=1e-9)
        assert curve.envelope.mean() == pytest.approx(brute_force(pictures, [class_id], 0.5, "all", 100)[class_id][0])


def test_the_suggested_threshold_keeps_the_right_and_drops_the_wrong():
    objects = [(100 * i, 0, 100 * i + 50, 50, 0) for i in range(4)]
    right = [(*o[:4], 0.6 + 0.05 * i, 0) for i, o in enumerate(objects)]
    wrong = [(0, 200 + 60 * i, 50, 250 + 60 * i, 0.2 + 0.1 * i, 0) for i in range(4)]
    lines = curves([picture(objects, [*right[::-1], *wrong[::-1]])], [0, 5])
    assert lines[0].confidence == pytest.approx(0.501, abs=1e-9)  # just above the best wrong one, of .5
    assert lines[0].at(lines[0].confidence) == (1, 1, 1)
    assert mean_best(lines) == lines[0].confidence
    assert lines[1].objects == 0
    assert lines[1].confidence == 1
    assert mean_best(lines[1:]) == 1


def test_confusion_counts_pairs_whatever_their_class():
    p = picture(
        [(0, 0, 10, 10, 3), (100, 100, 110, 110, 5), (200, 200, 210, 210, 5), (300, 300, 400, 400, 3)],
        [(0, 0, 10, 10, 0.9, 3), (100, 100, 110, 110, 0.8, 3), (400, 0, 410, 10, 0.7, 5), (200, 200, 210, 210, 0.2, 5),
         (310, 310, 330, 330, 0.6, 3), (310, 310, 330, 330, 0.6, 5)],
        crowd=[False, False, False, True],
    )  # fmt: skip
    counts = confusion([p, p], [3, 5])
    assert counts.tolist() == [
        [2, 0, 0],  # class 3: found
        [2, 0, 2],  # class 5: taken for 3; too unsure, so missed
        [0, 4, 0],  # nothing there: one 5 in the open, one in a crowd of another class
    ]


def test_confusion_pairs_by_the_largest_overlap():
    pictures = random_pictures(9, images=6, noise=3)
    counts = confusion(pictures, [0, 1, 2])
    assert counts[:3].sum() == sum(int((~p.crowd).sum()) for p in pictures)
    expected = np.zeros((4, 4), np.int64)
    for p in pictures:
        found = [row for row in p.found.astype(float).tolist() if row[4] >= 0.25]
        truth = [(b, c) for b, c, crowd in zip(p.boxes.tolist(), p.classes, p.crowd, strict=True) if not crowd]
        while True:  # the largest overlap of all that are left, again and again
            pairs = [(iou(f, b, False), i, j) for i, f in enumerate(found) for j, (b, _) in enumerate(truth)]
            share, i, j = max(pairs, default=(0, 0, 0))
            if share < 0.5:
                break
            expected[truth.pop(j)[1], int(found.pop(i)[5])] += 1
        for _, c in truth:
            expected[c, 3] += 1
    assert counts[:3].tolist() == expected[:3].tolist()


def test_pictures_are_drawn_for_few_and_many_classes(tmp_path):
    for classes in (3, 120):
        pictures = random_pictures(0, classes=classes)
        lines = curves(pictures, range(classes))
        counts = confusion(pictures, range(classes))
        written = draw_all(tmp_path, [f"class {i}" for i in range(classes)], lines, counts)
        assert sorted(p.name for p in written) == [
            "confusion_matrix.png", "f1_curve.png", "pr_curve.png", "precision_curve.png", "recall_curve.png",
        ]  # fmt: skip
        for path in written:
            assert path.read_bytes().startswith(b"\x89PNG")
