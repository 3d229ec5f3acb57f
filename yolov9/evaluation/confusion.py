"""Which class is taken for which: counts of pairs of a true and a found box, whatever their classes. Pure.

Above a confidence, as a server would report them. Pairs are made by overlap, largest first, each box once; what is left
over was missed, or was seen where there is nothing. What lies in a crowd of its class is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from yolov9.evaluation.results import Picture, overlaps

CONFIDENCE = 0.25
IOU = 0.5

Counts = npt.NDArray[np.int64]


def confusion(
    pictures: Sequence[Picture], classes: Sequence[int], confidence: float = CONFIDENCE, iou: float = IOU
) -> Counts:
    """(c + 1, c + 1): rows are true classes, columns found ones, in the order of `classes`; the last row holds what was
    found where nothing is, the last column what was missed."""
    nothing = len(classes)
    index = {class_id: i for i, class_id in enumerate(classes)}
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    for picture in pictures:
        found = picture.found[picture.found[:, 4] >= np.float32(confidence)]
        kinds = found[:, 5].astype(np.int64)
        real = ~picture.crowd
        pairs = _pairs(overlaps(found[:, :4], picture.boxes[real], picture.crowd[real]), iou)
        truth = picture.classes[real]
        for row, column in pairs:
            counts[index[int(truth[column])], index[int(kinds[row])]] += 1
        for column in set(range(len(truth))) - {column for _, column in pairs}:
            counts[index[int(truth[column])], nothing] += 1
        crowded = overlaps(found[:, :4], picture.boxes[~real], picture.crowd[~real]) >= iou
        crowded &= kinds[:, None] == picture.classes[~real]
        for row in set(range(len(found))) - {row for row, _ in pairs}:
            if not crowded[row].any():
                counts[nothing, index[int(kinds[row])]] += 1
    return counts


def _pairs(shares: npt.NDArray[np.float64], iou: float) -> list[tuple[int, int]]:
    """(row, column) of the overlaps from `iou` on, largest first, each row and each column once."""
    rows, columns = np.nonzero(shares >= iou)
    order = np.argsort(-shares[rows, columns], kind="stable")
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs
