"""The twelve figures of COCO, and AP by class, through faster-coco-eval.

It wants a dictionary a box: some 700 bytes, where the arrays have 24. Classes do not depend on each other, so they are
evaluated in groups of a bounded number of boxes, and their precisions are joined: the memory does not grow with the
data set. COCO's rules that matter: of each class the best 100 boxes of a picture count; precision is read at 101
recalls and averaged over the IoU thresholds .50, .55, ..., .95; crowds neither count nor cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from yolov9.evaluation.results import EvaluationError, Picture

METRICS = (
    "map", "map50", "map75", "map_small", "map_medium", "map_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""In COCO's order: average precision over the IoU thresholds, at .50, at .75, by the object's size (below 32 x 32, up
to 96 x 96 pixels, above); average recall with 1, 10, 100 boxes a picture and class, by size."""
UNDEFINED = -1.0
"""Of a figure for which there is no object, as in COCO's own tools."""
IOU_50, IOU_75 = 0, 5
"""Places of these thresholds."""
_GROUP_BOXES = 50_000
"""Boxes that are dictionaries at one time. For 5,000 pictures with 160 boxes each, as COCO's val2017 makes at a
confidence of .001: 240 MB and 12 s in all; with 200,000 it is 530 MB and 14 s."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """Of the evaluated classes, in the order they were given; UNDEFINED where there is no object."""

    precision: Floats
    """(10 IoU thresholds, 101 recalls, classes, 4 sizes, 3 numbers of boxes)"""
    recall: Floats
    """(10, classes, 4, 3)"""

    @property
    def metrics(self) -> dict[str, float]:
        """METRICS -> 0..1 or UNDEFINED."""
        p, r = self.precision, self.recall
        ap = [p[..., 0, 2], p[IOU_50, ..., 0, 2], p[IOU_75, ..., 0, 2], *(p[..., size, 2] for size in (1, 2, 3))]
        ar = [*(r[..., 0, most] for most in (0, 1, 2)), *(r[..., size, 2] for size in (1, 2, 3))]
        return dict(zip(METRICS, map(_mean, ap + ar), strict=True))

    def ap(self, index: int) -> float:
        """Of one class, averaged over the thresholds."""
        return _mean(self.precision[:, :, index, 0, 2])

    def ap50(self, index: int) -> float:
        return _mean(self.precision[IOU_50, :, index, 0, 2])

    def ar(self, index: int) -> float:
        """Average recall of one class with 100 boxes a picture."""
        return _mean(self.recall[:, index, 0, 2])


def check_installed() -> None:
    """EvaluationError if faster-coco-eval is missing: better told before an hour of inference than after."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as error:
        raise EvaluationError(
            f"evaluation needs faster-coco-eval ({error}): pip install 'yolov9-server[train]'"
        ) from error


def coco_accuracy(pictures: Sequence[Picture], classes: Sequence[int]) -> Accuracy:
    """Evaluate what was found in the pictures, for these classes alone. EvaluationError if the package is missing."""
    check_installed()
    truth, found = _Table.of_truth(pictures), _Table.of_found(pictures)
    parts = [_evaluate(truth, found, group) for group in _groups(classes, found)]
    return Accuracy(np.concatenate([p for p, _ in parts], axis=2), np.concatenate([r for _, r in parts], axis=1))


@dataclass(frozen=True)
class _Table:
    """All boxes of one kind, sorted by class; within a class in the pictures' order, and theirs."""

    picture: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    boxes: Floats
    """(n, 4) x, y, width, height"""
    extra: dict[str, npt.NDArray[Any]]
    """Further fields of the dictionaries."""

    @classmethod
    def of_truth(cls, pictures: Sequence[Picture]) -> _Table:
        return cls._sorted(
            [len(p.boxes) for p in pictures],
            np.concatenate([p.classes for p in pictures]),
            np.concatenate([p.boxes for p in pictures]),
            iscrowd=np.concatenate([p.crowd for p in pictures]).astype(np.int64),
            area=np.concatenate([p.areas for p in pictures]).astype(np.float64),
        )

    @classmethod
    def of_found(cls, pictures: Sequence[Picture]) -> _Table:
        rows = np.concatenate([p.found for p in pictures])
        size = rows[:, 2:4].astype(np.float64) - rows[:, :2]
        return cls._sorted(
            [len(p.found) for p in pictures],
            rows[:, 5].astype(np.int64),
            rows[:, :4],
            score=rows[:, 4].astype(np.float64),
            area=size.prod(axis=1),
            iscrowd=np.zeros(len(rows), np.int64),
        )

    @classmethod
    def _sorted(
        cls, counts: list[int], classes: npt.NDArray[np.int64], corners: npt.NDArray[Any], **extra: npt.NDArray[Any]
    ) -> _Table:
        order = np.argsort(classes, kind="stable")
        boxes = corners.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        picture = np.repeat(np.arange(1, len(counts) + 1), counts)
        return cls(picture[order], classes[order], boxes[order], {key: values[order] for key, values in extra.items()})

    def count(self, class_id: int) -> int:
        return int(np.searchsorted(self.classes, class_id, "right") - np.searchsorted(self.classes, class_id, "left"))

    def annotations(self, group: Sequence[int]) -> list[dict[str, Any]]:
        """COCO's dictionaries of some classes. Their ids count from 1: COCO's code takes 0 for no match."""
        chosen = np.flatnonzero(np.isin(self.classes, group))
        columns = {
            "image_id": self.picture, "category_id": self.classes, "bbox": self.boxes, **self.extra,
        }  # fmt: skip
        lists = [values[chosen].tolist() for values in columns.values()]
        return [
            {"id": number, **dict(zip(columns, values, strict=True))}
            for number, values in enumerate(zip(*lists, strict=True), 1)
        ]


def _groups(classes: Sequence[int], found: _Table) -> Iterator[list[int]]:
    group: list[int] = []
    boxes = 0
    for class_id in classes:
        count = found.count(class_id)
        if group and boxes + count > _GROUP_BOXES:
            yield group
            group, boxes = [], 0
        group.append(class_id)
        boxes += count
    yield group


def _evaluate(truth: _Table, found: _Table, group: list[int]) -> tuple[Floats, Floats]:
    """Precision and recall of some classes, as `Accuracy` has them."""
    from faster_coco_eval import COCO, COCOeval_faster

    # The library sorts the classes; ours may come in any order.
    order = sorted(group)
    annotations, detections = truth.annotations(order), found.annotations(order)
    images = [{"id": i} for i in sorted({a["image_id"] for a in annotations + detections})]
    if not images:
        return np.full((10, 101, len(group), 4, 3), UNDEFINED), np.full((10, len(group), 4, 3), UNDEFINED)
    sides = []
    for side in (annotations, detections):
        table = COCO()
        table.dataset = {"images": images, "categories": [{"id": c} for c in order], "annotations": side}
        table.createIndex()
        sides.append(table)
    run = COCOeval_faster(*sides, iouType="bbox")
    run.params.maxDets = [1, 10, 100]
    run.evaluate()
    run.accumulate()
    places = [order.index(c) for c in group]
    precision = np.asarray(run.eval["precision"], np.float64)[:, :, places]
    return precision, np.asarray(run.eval["recall"], np.float64)[:, places]


def _mean(values: Floats) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED
