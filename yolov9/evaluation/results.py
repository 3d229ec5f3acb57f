"""What is compared: for each picture its truth and what was found in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]


class EvaluationError(Exception):
    """There is nothing to evaluate, or what it needs is not installed. One sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Boxes are x1, y1, x2, y2 in pixels of the picture; classes are ids of the data set's names. Rows: n true, m
    found."""

    id: int
    file_name: str
    width: int
    height: int
    boxes: Boxes
    """(n, 4)"""
    classes: npt.NDArray[np.int64]
    """(n,)"""
    crowd: npt.NDArray[np.bool_]
    """(n,) neither to be found nor wrong to be found; see `yolov9.data.dataset.Item`."""
    areas: npt.NDArray[np.float32]
    """(n,) pixels of the object, for small, medium and large."""
    found: npt.NDArray[np.float32]
    """(m, 6) x1, y1, x2, y2, confidence, class id; best first."""


def overlaps(found: Boxes, boxes: Boxes, crowd: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(m, 4), (n, 4) -> (m, n) intersection over union; for a crowd, the share of what was found that lies in it."""
    a, b = found.astype(np.float64), boxes.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (high - low).clip(0).prod(axis=2)
    size_a = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None]
    size_b = (b[:, 2:] - b[:, :2]).prod(axis=1)[None]
    union = np.where(crowd[None], size_a, size_a + size_b - inter)
    shares: npt.NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return shares
