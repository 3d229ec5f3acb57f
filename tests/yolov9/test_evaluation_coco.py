"""COCO's figures against an implementation that was written from their definition, slow and plain."""

from __future__ import annotations

import numpy as np
import pytest

from yolov9.evaluation import coco
from yolov9.evaluation.coco import METRICS, UNDEFINED, coco_accuracy
from yolov9.evaluation.results import Picture, overlaps

SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
RECALLS = np.linspace(0, 1, 101).tolist()
THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]


def iou(a, b, crowd):
    """Of two boxes in plain numbers; of a crowd b, the share of a that lies in it."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter, own = width * height, (a[2] - a[0]) * (a[3] - a[1])
    return inter / (own if crowd else own + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def brute_force(pictures, classes, threshold, size, most):
    """{class: (AP at one threshold, recall)} of objects of one size, with `most` boxes a picture; None without any."""
    low, high = SIZES[size]
    result = {}
    for class_id in classes:
        scored, objects = [], 0
        for picture in pictures:
            truths = [
                {"box": box.tolist(), "crowd": bool(crowd), "ignored": bool(crowd) or not low <= area <= high}
                for box, c, crowd, area in zip(
                    picture.boxes, picture.classes, picture.crowd, picture.areas, strict=True
                )
                if c == class_id
            ]
            objects += sum(not t["ignored"] for t in truths)
            found = [row.tolist() for row in picture.found if row[5] == class_id]
            for x1, y1, x2, y2, score, _ in sorted(found, key=lambda row: -row[4])[:most]:
                best, share = None, min(threshold, 1 - 1e-10)
                # Objects that count are taken before those that do not.
                for ignored in (False, True):
                    for truth in truths:
                        if truth["ignored"] != ignored or (truth.get("taken") and not truth["crowd"]):
                            continue
                        overlap = iou((x1, y1, x2, y2), truth["box"], truth["crowd"])
                        if overlap >= share:
                            best, share = truth, overlap
                    if best is not None:
                        break
                if best is not None:
                    best["taken"] = True
                    scored.append((score, not best["ignored"], best["ignored"]))
                else:
                    area = (x2 - x1) * (y2 - y1)
                    scored.append((score, False, not low <= area <= high))
        result[class_id] = None if not objects else curve(scored, objects)
    return result


def curve(scored, objects):
    """(AP by 101 recalls, the last recall) of (score, right, ignored)."""
    right = wrong = 0
    points = []
    for _, is_right, ignored in sorted(scored, key=lambda s: -s[0]):
        if not ignored:
            right, wrong = right + is_right, wrong + (not is_right)
        # COCO counts a point for ignored boxes too; it is the same as the one before, or 0 of 0.
        points.append((right / objects, right / (right + wrong) if right + wrong else 0.0))
    total = 0.0
    for place in range(101):
        reached = [precision for recall, precision in points if recall >= RECALLS[place]]
        total += max(reached, default=0.0)
    return total / 101, points[-1][0] if points else 0.0


def expected_metrics(pictures, classes):
    def mean(which, thresholds, size="all", most=100):
        values = [
            figures[which]
            for threshold in thresholds
            for figures in brute_force(pictures, classes, threshold, size, most).values()
            if figures is not None
        ]
        return sum(values) / len(values) if values else UNDEFINED

    ap = [mean(0, THRESHOLDS), mean(0, [0.5]), mean(0, [0.75]), *(mean(0, THRESHOLDS, s) for s in list(SIZES)[1:])]
    ar = [*(mean(1, THRESHOLDS, most=n) for n in (1, 10, 100)), *(mean(1, THRESHOLDS, s) for s in list(SIZES)[1:])]
    return dict(zip(METRICS, ap + ar, strict=True))


def random_pictures(seed, images=8, classes=3, objects=6, noise=6.0, false=12):
    """Objects of all sizes, some crowds, and boxes that miss them by more or less, with strange ones among them."""
    random = np.random.default_rng(seed)
    pictures = []
    for number in range(images):
        n = int(random.integers(0, objects + 1))
        sides = np.exp(random.uniform(np.log(8), np.log(200), (n, 2)))
        corners = random.uniform(0, 300, (n, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        kinds = random.integers(0, classes, n)
        crowd = random.random(n) < 0.2
        areas = (sides.prod(axis=1) * random.uniform(0.5, 1, n)).astype(np.float32)
        near = np.repeat(boxes, 2, axis=0) + random.normal(0, noise, (2 * n, 4)).astype(np.float32)
        far = random.uniform(0, 300, (false, 2))
        far = np.concatenate([far, far + random.uniform(4, 150, (false, 2))], axis=1)
        found = np.concatenate([near, far]).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        labels = np.concatenate([np.repeat(kinds, 2), random.integers(0, classes, false)])
        # Scores that repeat, so that ranking among equals matters.
        scores = np.round(random.random(len(found)), 2)
        rows = np.concatenate([found, scores[:, None], labels[:, None]], axis=1).astype(np.float32)
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        pictures.append(Picture(number + 1, f"{number}.png", 512, 512, boxes, kinds, crowd, areas, rows))
    return pictures


@pytest.mark.parametrize("seed", range(6))
def test_the_twelve_figures_equal_their_definition(seed):
    pictures = random_pictures(seed)
    accuracy = coco_accuracy(pictures, [0, 1, 2])
    assert accuracy.metrics == pytest.approx(expected_metrics(pictures, [0, 1, 2]), abs=1e-9)
    for class_id, figures in brute_force(pictures, [0, 1, 2], 0.5, "all", 100).items():
        assert accuracy.ap50(class_id) == pytest.approx(figures[0] if figures else UNDEFINED, abs=1e-9)


def test_more_than_a_hundred_boxes_of_a_class_are_cut():
    pictures = random_pictures(7, images=2, classes=1, objects=20, false=150)
    accuracy = coco_accuracy(pictures, [0])
    assert accuracy.metrics == pytest.approx(expected_metrics(pictures, [0]), abs=1e-9)
    assert min(len(p.found) for p in pictures) > 150


def test_classes_in_any_order_and_in_small_groups_give_the_same(monkeypatch):
    pictures = random_pictures(11, classes=5)
    together = coco_accuracy(pictures, [0, 1, 2, 3, 4])
    monkeypatch.setattr(coco, "_GROUP_BOXES", 30)
    apart = coco_accuracy(pictures, [4, 2, 0, 1, 3])
    assert apart.metrics == pytest.approx(together.metrics, abs=1e-12)
    assert [apart.ap(i) for i in range(5)] == pytest.approx([together.ap(i) for i in (4, 2, 0, 1, 3)], abs=1e-12)


def test_a_class_without_objects_is_undefined_and_does_not_count():
    pictures = random_pictures(3, classes=2)
    accuracy = coco_accuracy(pictures, [0, 1, 7])
    assert accuracy.ap(2) == accuracy.ap50(2) == accuracy.ar(2) == UNDEFINED
    assert accuracy.metrics == pytest.approx(coco_accuracy(pictures, [0, 1]).metrics, abs=1e-12)


def test_finding_exactly_what_is_there_is_one_and_nothing_is_zero():
    boxes = np.array([[10, 10, 30, 30], [50, 50, 150, 150]], np.float32)
    kinds, crowd = np.array([0, 0]), np.zeros(2, bool)
    areas = np.array([400, 10_000], np.float32)
    rows = np.concatenate([boxes, [[0.9, 0], [0.8, 0]]], axis=1).astype(np.float32)
    right = Picture(1, "a", 200, 200, boxes, kinds, crowd, areas, rows)
    metrics = coco_accuracy([right], [0]).metrics
    assert metrics["map"] == metrics["map_small"] == metrics["map_large"] == pytest.approx(1)
    assert metrics["map_medium"] == UNDEFINED
    assert metrics["ar1"] == 0.5
    nothing = Picture(1, "a", 200, 200, boxes, kinds, crowd, areas, rows[:0])
    assert coco_accuracy([nothing], [0]).metrics["map"] == 0
    empty = Picture(1, "a", 200, 200, boxes[:0], kinds[:0], crowd[:0], areas[:0], rows[:0])
    assert coco_accuracy([empty], [0]).metrics["map"] == UNDEFINED


def test_boxes_on_a_picture_without_objects_are_wrong():
    (full,) = random_pictures(5, images=1, classes=1, objects=6, noise=1, false=0)
    clean = coco_accuracy([full], [0]).metrics["map"]
    rows = np.array([[0, 0, 50, 50, 1.0, 0]] * 3, np.float32)
    none = np.zeros(0, np.float32)
    empty = Picture(2, "b", 512, 512, none.reshape(0, 4), none.astype(np.int64), none.astype(bool), none, rows)
    assert coco_accuracy([full, empty], [0]).metrics["map"] < clean


def test_overlaps_are_those_of_plain_arithmetic():
    pictures = random_pictures(2, images=3)
    for picture in pictures:
        shares = overlaps(picture.found[:, :4], picture.boxes, picture.crowd)
        for row, box in zip(shares, picture.found.tolist(), strict=True):
            expected = [iou(box, b, c) for b, c in zip(picture.boxes.tolist(), picture.crowd, strict=True)]
            assert row.tolist() == pytest.approx(expected, abs=1e-12)
