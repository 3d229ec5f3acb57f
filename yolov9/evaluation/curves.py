"""Precision, recall and F1 over the confidence, and the confidence at which each class does best. Pure.

At an IoU of .5, matched as COCO does: best first, each to the free object of its class that it overlaps most. What lies
in a crowd counts neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from yolov9.evaluation.results import Picture, overlaps

IOU = 0.5
GRID = np.linspace(0, 1, 1001)
"""Confidences at which the curves are drawn."""
RECALLS = np.linspace(0, 1, 101)
WRONG, RIGHT, IGNORED = 0, 1, -1

Floats = npt.NDArray[np.float64]
Marks = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Curve:
    """Of one class. All arrays are over GRID, but `envelope`."""

    objects: int
    """Without crowds."""
    precision: Floats
    """1 where nothing is found."""
    recall: Floats
    """NaN without objects."""
    f1: Floats
    envelope: Floats
    """Over RECALLS: the best precision at that recall or a higher one; its mean is AP50."""
    confidence: float
    """The lowest threshold at which F1 is highest, to three places; 1 where nothing right is found."""

    def at(self, confidence: float) -> tuple[float, float, float]:
        """(precision, recall, F1) at a threshold."""
        place = round(confidence * (len(GRID) - 1))
        return float(self.precision[place]), float(self.recall[place]), float(self.f1[place])


def curves(pictures: Sequence[Picture], classes: Sequence[int], iou: float = IOU) -> list[Curve]:
    """One for each of the classes, in their order."""
    found = np.concatenate([p.found for p in pictures])
    marks = np.concatenate([mark(p, iou) for p in pictures])
    real = np.concatenate([p.classes[~p.crowd] for p in pictures])
    counted = marks != IGNORED
    result = []
    for class_id in classes:
        chosen = counted & (found[:, 5] == class_id)
        result.append(
            _curve(found[chosen, 4].astype(np.float64), marks[chosen] == RIGHT, int((real == class_id).sum()))
        )
    return result


def mean_best(found: Sequence[Curve]) -> float:
    """The threshold at which F1, averaged over the classes that have objects, is highest; 1 without any."""
    with_objects = [curve.f1 for curve in found if curve.objects]
    return _best(np.mean(with_objects, axis=0)) if with_objects else 1.0


def mark(picture: Picture, iou: float = IOU) -> Marks:
    """(m,) WRONG, RIGHT or IGNORED for each box that was found."""
    marks = np.full(len(picture.found), WRONG, np.int8)
    classes = picture.found[:, 5].astype(np.int64)
    for class_id in np.unique(picture.classes):
        rows, columns = np.flatnonzero(classes == class_id), np.flatnonzero(picture.classes == class_id)
        crowd = picture.crowd[columns]
        shares = overlaps(picture.found[rows, :4], picture.boxes[columns], crowd)
        shares[shares < iou] = 0
        free = ~crowd
        for row, share in zip(rows, shares, strict=True):
            objects = np.where(free, share, 0)
            if objects.any():
                # Of equal overlaps the last one, as COCO's code.
                free[len(objects) - 1 - int(objects[::-1].argmax())] = False
                marks[row] = RIGHT
            elif share[crowd].any():
                marks[row] = IGNORED
    return marks


def _curve(scores: Floats, right: npt.NDArray[np.bool_], objects: int) -> Curve:
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], right[order].cumsum(dtype=np.int64)
    total = np.arange(1, len(scores) + 1)
    # How many have at least the grid's confidence; float32 scores just below a grid point stay below.
    count = np.searchsorted(-scores, -GRID, side="right")
    hit = np.concatenate([[0], hits])[count]
    precision = np.divide(hit, count, out=np.ones(len(GRID)), where=count > 0)
    recall = hit / objects if objects else np.full(len(GRID), np.nan)
    f1 = 2 * hit / np.maximum(count + objects, 1)
    return Curve(objects, precision, recall, f1, _envelope(hits, total, objects), _best(f1))


def _envelope(hits: npt.NDArray[np.int64], total: npt.NDArray[np.int64], objects: int) -> Floats:
    if not objects or not len(hits):
        return np.zeros(len(RECALLS))
    precision = np.maximum.accumulate((hits / total)[::-1])[::-1]
    place = np.searchsorted(hits / objects, RECALLS, side="left")
    return np.where(place < len(hits), precision[np.minimum(place, len(hits) - 1)], 0.0)


def _best(f1: Floats) -> float:
    return float(GRID[int(f1.argmax())]) if f1.max() > 0 else 1.0
