"""Suppression against a plain loop, thresholds, caps, and the way back to source pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from yolov9.geometry import Letterbox
from yolov9.postprocess import PredictionError, postprocess

SAME = Letterbox.fit(640, 640, 640, 640)


def prediction(*boxes, classes=3):
    """Boxes (x1, y1, x2, y2, {class: score}) -> (4+classes, A)."""
    out = np.zeros((4 + classes, len(boxes)), np.float32)
    for column, (*corners, scores) in enumerate(boxes):
        out[:4, column] = corners
        for class_id, score in scores.items():
            out[4 + class_id, column] = score
    return out


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def by_loop(pred, confidence, limit_iou, thresholds, limit, multi_label):
    """What `postprocess` promises, one box after the other, in double precision."""
    pred = pred.astype(np.float64)
    classes = range(pred.shape[0] - 4)
    lowest = [np.float32(confidence)] * len(classes) if thresholds is None else thresholds
    candidates = []
    for anchor in range(pred.shape[1]):
        scores = pred[4:, anchor]
        labels = classes if multi_label else [int(scores.argmax())]
        candidates += [(scores[c], c, tuple(pred[:4, anchor])) for c in labels if scores[c] >= lowest[c]]
    candidates.sort(key=lambda c: -c[0])
    kept = []
    for score, class_id, box in candidates:
        overlaps = [iou(box, other) for _, c, other in kept if c == class_id]
        assume(not any(abs(o - limit_iou) < 1e-4 for o in overlaps))  # rounding decides there
        if not any(o > limit_iou for o in overlaps):
            kept.append((score, class_id, box))
    return kept[:limit]


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 400), st.integers(1, 5), st.floats(0.05, 0.95), st.floats(0.0, 0.9),
    st.booleans(), st.booleans(), st.integers(1, 300),
)  # fmt: skip
def test_it_equals_a_plain_loop(seed, anchors, classes, limit_iou, confidence, multi_label, by_class, limit):
    rng = np.random.default_rng(seed)
    pred = np.empty((4 + classes, anchors), np.float32)
    pred[:2] = rng.uniform(0, 300, (2, anchors)).round()
    pred[2:4] = pred[:2] + rng.uniform(1, 200, (2, anchors)).round()
    pred[4:] = rng.permutation(classes * anchors).reshape(classes, anchors) / max(classes * anchors, 1)  # no ties
    thresholds = rng.uniform(0, 1, classes).astype(np.float32) if by_class else None
    expected = by_loop(pred, confidence, limit_iou, thresholds, limit, multi_label)
    found = postprocess(
        pred, SAME, confidence, limit_iou, thresholds,
        max_detections=limit, multi_label=multi_label, max_candidates=10**6,
    )  # fmt: skip
    assert found.dtype == np.float32
    assert found.shape == (len(expected), 6)
    assert [(s, c, b) for s, c, b in expected] == [(r[4], int(r[5]), tuple(r[:4])) for r in found.tolist()]


def test_boxes_of_different_classes_do_not_suppress_each_other():
    pred = prediction((10, 10, 50, 50, {0: 0.9}), (11, 10, 50, 50, {1: 0.8}), (12, 10, 50, 50, {0: 0.7}))
    assert postprocess(pred, SAME, 0.25, 0.5)[:, 5].tolist() == [0, 1]


def test_a_box_counts_for_its_best_class_only_unless_multi_label():
    pred = prediction((10, 10, 50, 50, {0: 0.6, 2: 0.9}))
    assert postprocess(pred, SAME)[:, 4:].tolist() == [[pytest.approx(0.9), 2]]
    both = postprocess(pred, SAME, multi_label=True)
    assert both[:, 5].tolist() == [2, 0]


def test_class_thresholds_stand_for_the_confidence_and_can_exclude():
    pred = prediction((0, 0, 9, 9, {0: 0.1}), (20, 0, 29, 9, {1: 0.3}), (40, 0, 49, 9, {2: 0.99}))
    thresholds = np.array([0.05, 0.4, 2.0], np.float32)
    assert postprocess(pred, SAME, 0.25, 0.7, thresholds)[:, 5].tolist() == [0]


def test_a_score_equal_to_the_threshold_is_reported():
    pred = prediction((0, 0, 9, 9, {0: np.float32(0.3)}))
    assert len(postprocess(pred, SAME, 0.3)) == 1


def test_candidates_beyond_the_cap_are_the_worst():
    scores = np.linspace(0.3, 0.9, 500)
    pred = prediction(*((20.0 * i, 0, 20.0 * i + 10, 10, {0: s}) for i, s in enumerate(scores)))
    wide = Letterbox.fit(20_000, 640, 20_000, 640)
    found = postprocess(pred, wide, max_detections=500, max_candidates=100)
    assert found[:, 4] == pytest.approx(scores[::-1][:100], abs=1e-6)


def test_the_letterbox_is_undone_and_boxes_are_clipped():
    box = Letterbox.fit(1921, 1079, 640, 384)  # odd: the scales of x and y differ
    assert box.scale_x != box.scale_y
    want = np.array([[100.5, 200.25, 900.0, 1000.0]])
    inner = want * np.array([box.scale_x, box.scale_y] * 2)
    corners = inner[0] + [box.left, box.top, box.left, box.top]
    pred = prediction((*corners, {1: 0.8}), (-50, -50, 700, 500, {0: 0.7}))
    found = postprocess(pred, box)
    assert found[0, :4] == pytest.approx(want[0], abs=1e-3)
    assert found[1, :4].tolist() == [0, 0, 1921, 1079]


def test_what_lies_in_the_border_alone_is_dropped():
    box = Letterbox.fit(1280, 720, 640, 384)
    assert box.top == 12
    assert len(postprocess(prediction((10, 0, 50, 11, {0: 0.9})), box)) == 0


def test_boxes_without_area_are_harmless():
    pred = prediction((10, 10, 10, 40, {0: 0.9}), (10, 10, 10, 40, {0: 0.8}), (5, 5, 20, 20, {0: 0.7}))
    assert postprocess(pred, SAME)[:, :4].tolist() == [[5, 5, 20, 20]]


def test_an_empty_scene_gives_no_rows_of_six():
    assert postprocess(np.zeros((7, 50), np.float32), SAME).shape == (0, 6)
    assert postprocess(np.zeros((7, 0), np.float32), SAME).shape == (0, 6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3, 4, 6])
def test_a_broken_engine_is_no_empty_scene(row, value):
    pred = np.zeros((7, 50), np.float32)
    pred[row, 20] = value
    with pytest.raises(PredictionError, match="NaN or infinity"):
        postprocess(pred, SAME)


def test_shapes_that_are_no_predictions_are_refused():
    with pytest.raises(PredictionError, match=r"\(1, 7, 50\)"):
        postprocess(np.zeros((1, 7, 50), np.float32), SAME)
    with pytest.raises(PredictionError, match=r"\(4, 50\)"):
        postprocess(np.zeros((4, 50), np.float32), SAME)
    with pytest.raises(ValueError, match="class_thresholds"):
        postprocess(np.zeros((7, 50), np.float32), SAME, class_thresholds=np.zeros(2, np.float32))


def test_thousands_of_overlapping_candidates_are_all_taken_into_account():
    """Many blocks: 40 clusters of 70 boxes leave 40."""
    rng = np.random.default_rng(1)
    centres = np.stack(np.meshgrid(np.arange(8) * 80.0, np.arange(5) * 100.0), -1).reshape(-1, 2)
    boxes = [
        (x + dx, y + dy, x + dx + 60, y + dy + 60, {0: rng.uniform(0.3, 0.9)})
        for x, y in centres
        for dx, dy in rng.uniform(0, 2, (70, 2))
    ]
    found = postprocess(prediction(*boxes), SAME, 0.25, 0.6)
    assert len(found) == 40
