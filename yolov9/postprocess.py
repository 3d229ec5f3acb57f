"""From raw predictions to detections in source pixels: thresholds, non-maximum suppression, letterbox undone.

numpy only, vectorised, and bounded by the number of candidates, never by a clock: the same predictions always give the
same detections. Candidates are taken best first in blocks. A block is compared with what has been kept so far and with
itself, so the work stops as soon as enough is kept, and no matrix of all candidates against all is ever made.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from yolov9.geometry import Letterbox

MAX_CANDIDATES = 3000
"""Boxes that enter suppression, best scores first: ten times what may come out. A street scene has some hundred at a
confidence of .25. At .001 with several labels a box, as in evaluation, coco128 has 550 an image and 3,900 at most, and
the AP is the same with 3,000 as with 30,000."""
_BLOCK = 128
"""Candidates compared at once: the fastest of 64, 128 and 256 up to 300 candidates; 256 is faster from 1,000 on."""

Array = npt.NDArray[np.float32]


class PredictionError(Exception):
    """The engine's output is not a prediction: a wrong shape, or NaN or infinity in it."""


def postprocess(
    prediction: Array,
    letterbox: Letterbox,
    confidence: float = 0.25,
    iou: float = 0.7,
    class_thresholds: Array | None = None,
    *,
    max_detections: int = 300,
    multi_label: bool = False,
    max_candidates: int = MAX_CANDIDATES,
) -> Array:
    """One image's predictions -> detections (n, 6): x1, y1, x2, y2 in source pixels, confidence, class id; best first.

    `prediction` is (4+nc, A): x1, y1, x2, y2 in input pixels, then class scores 0..1. A box counts for its best class
    and is reported if that score is at least `confidence`, or at least the class's entry in `class_thresholds`
    (float32[nc]; 2.0 excludes a class) where given. With `multi_label` it counts for every class that reaches its
    threshold, as in COCO evaluation. Boxes of one class that overlap a better one with IoU above `iou` are dropped.
    Boxes are clipped to the source picture; what lies in the border alone is dropped.

    Raises PredictionError for NaN or infinity anywhere: a broken engine must not look like an empty scene.
    """
    if prediction.ndim != 2 or prediction.shape[0] < 5:
        raise PredictionError(f"prediction of shape {prediction.shape}, not (4+nc, A)")
    if not np.isfinite(prediction).all():
        raise PredictionError("the engine returned NaN or infinity")
    boxes, scores = prediction[:4], prediction[4:]
    if class_thresholds is not None and class_thresholds.shape != (len(scores),):
        raise ValueError(f"class_thresholds of shape {class_thresholds.shape} for {len(scores)} classes")

    anchors, classes, best = (_all_labels if multi_label else _best_labels)(scores, confidence, class_thresholds)
    if len(best) > max_candidates:
        top = np.sort(np.argpartition(-best, max_candidates - 1)[:max_candidates])
        anchors, classes, best = anchors[top], classes[top], best[top]
    order = np.argsort(-best, kind="stable")
    anchors, classes, best = anchors[order], classes[order], best[order]
    candidates = boxes[:, anchors]
    kept = suppress(candidates, classes, iou, max_detections)
    return _to_source(candidates[:, kept], best[kept], classes[kept], letterbox)


def to_source(found: Array, letterbox: Letterbox) -> Array:
    """Detections (n, 6) in input pixels -> the same in source pixels, clipped to the picture; what lies in the border
    alone is dropped."""
    return _to_source(found[:, :4].T, found[:, 4], found[:, 5].astype(np.intp), letterbox)


Labels = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]
"""Anchor, class and score of each candidate."""


def _best_labels(scores: Array, confidence: float, thresholds: Array | None) -> Labels:
    best = scores.max(axis=0)
    lowest = np.float32(confidence if thresholds is None else thresholds.min())
    anchors = np.flatnonzero(best >= lowest)
    classes = scores[:, anchors].argmax(axis=0)
    best = best[anchors]
    if thresholds is not None:
        wanted = best >= thresholds[classes]
        anchors, classes, best = anchors[wanted], classes[wanted], best[wanted]
    return anchors, classes, best


def _all_labels(scores: Array, confidence: float, thresholds: Array | None) -> Labels:
    lowest = np.float32(confidence) if thresholds is None else thresholds[:, None]
    classes, anchors = np.nonzero(scores >= lowest)
    return anchors, classes, scores[classes, anchors]


def suppress(boxes: Array, classes: npt.NDArray[np.intp], iou: float, limit: int) -> npt.NDArray[np.intp]:
    """Indices of the boxes (4, n), best first, that greedy suppression within each class keeps, at most `limit`."""
    x1, y1, x2, y2 = boxes
    # inter / (A + B - inter) > t is inter > s * A + s * B with s = t / (1 + t).
    shares = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0) * np.float32(iou / (1 + iou))
    rows = np.stack([x1, y1, x2, y2, shares, classes.astype(np.float32)])
    kept = np.empty(0, np.intp)
    for start in range(0, len(classes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(classes)))
        if len(kept):
            block = block[~_overlap(rows, kept, block).any(axis=0)]
        kept = np.concatenate([kept, block[_greedy(_overlap(rows, block, block))]])
        if len(kept) >= limit:
            return kept[:limit]
    return kept


def _overlap(boxes: Array, a: npt.NDArray[np.intp], b: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """(a, b): whether the boxes are of one class with an IoU above the limit; `boxes` as `suppress` lays them out.

    Without a division, and with one clamp: a negative height gives a negative product, never above the shares."""
    x1a, y1a, x2a, y2a, share_a, class_a = boxes[:, a, None]
    x1b, y1b, x2b, y2b, share_b, class_b = boxes[:, None, b]
    inter = np.minimum(x2a, x2b)
    scratch = np.maximum(x1a, x1b)
    inter -= scratch
    np.maximum(inter, 0, out=inter)
    height = np.minimum(y2a, y2b)
    height -= np.maximum(y1a, y1b, out=scratch)
    inter *= height
    over: npt.NDArray[np.bool_] = inter > np.add(share_a, share_b, out=scratch)
    over &= class_a == class_b
    return over


def _greedy(over: npt.NDArray[np.bool_]) -> list[int]:
    """Rows that survive if each surviving row strikes out the later columns that it overlaps.

    A row becomes one long integer: an `or` of Python integers costs a tenth of one of short numpy arrays."""
    packed = np.packbits(over, axis=1, bitorder="little")
    struck, kept = 0, []
    for row in range(len(over)):
        if not struck >> row & 1:
            kept.append(row)
            struck |= int.from_bytes(packed[row].tobytes(), "little")
    return kept


def _to_source(boxes: Array, scores: Array, classes: npt.NDArray[np.intp], letterbox: Letterbox) -> Array:
    found = np.empty((len(scores), 6), np.float32)
    found[:, (0, 2)] = ((boxes[::2] - letterbox.left) / letterbox.scale_x).clip(0, letterbox.source_width).T
    found[:, (1, 3)] = ((boxes[1::2] - letterbox.top) / letterbox.scale_y).clip(0, letterbox.source_height).T
    found[:, 4] = scores
    found[:, 5] = classes
    return found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]
