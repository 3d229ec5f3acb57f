"""How far predictions move: a number for one picture that is not drowned by the noise of AP on few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Predictions = Sequence[npt.NDArray[np.float32]]
"""(B, 4 + classes, A) a call of an engine."""
_MIN_AREA = 1.0
"""Square pixels: boxes of a network with random weights can be empty."""


@dataclass(frozen=True)
class Deviation:
    """Means over all places of all pictures, each weighted with the score of its best class in the exact prediction:
    what counts is what would be reported."""

    boxes: float
    """Mean distance of the four sides, relative to the root of the box's area."""
    scores: float
    """Largest difference of a class's score, 0..1."""

    def __str__(self) -> str:
        return f"boxes by {self.boxes:.2%} of their size, scores by {self.scores:.4f}"


def deviation(exact: Predictions, given: Predictions) -> Deviation:
    """NaN if a prediction is not finite. ValueError for shapes that differ."""
    boxes = scores = total = 0.0
    for reference, other in zip(exact, given, strict=True):
        if reference.shape != other.shape:
            raise ValueError(f"predictions of shapes {reference.shape} and {other.shape}")
        best = reference[:, 4:].max(1).astype(np.float64)
        x1, y1, x2, y2 = (reference[:, i].astype(np.float64) for i in range(4))
        size = np.sqrt(np.maximum((x2 - x1) * (y2 - y1), _MIN_AREA))
        moved = np.abs(other[:, :4] - reference[:, :4]).mean(1) / size
        boxes += float((moved * best).sum())
        scores += float((np.abs(other[:, 4:] - reference[:, 4:]).max(1) * best).sum())
        total += float(best.sum())
    return Deviation(boxes / total, scores / total) if total else Deviation(0.0, 0.0)
