"""Whether labels mean the picture as it is displayed or as its pixels are stored (phones held upright), and how to turn
them. COCO and Pascal files state the size that their coordinates refer to, which tells. Pure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from yolov9.data.dataset import Problem
from yolov9.images import Header

Points = npt.NDArray[np.float64]
"""(k, 2) x, y in pixels."""


def lies_on_side(header: Header, stated: tuple[int, int], file: Path, label: str, problems: list[Problem]) -> bool:
    """Whether coordinates for a picture of `stated` (width, height) are those of the stored pixels, to be turned.

    If the size is that of neither, it is reported; the coordinates count as pixels of the displayed picture then."""
    if stated == header.displayed:
        return False
    if stated == (header.width, header.height):
        return True
    width, height = header.displayed
    problems.append(
        Problem(file, None, f"{label}states a picture of {stated[0]} x {stated[1]}, but it has {width} x {height}; "
                            "coordinates count as pixels of the picture", "size")
    )  # fmt: skip
    return False


def turned(points: Points, header: Header) -> Points:
    """Points of the stored picture -> of the displayed one, for the orientations 5 to 8."""
    x, y = points.T
    over_x, over_y = header.width - x, header.height - y
    columns = {5: (y, x), 6: (over_y, x), 7: (over_y, over_x), 8: (y, over_x)}[header.orientation]
    return np.stack(columns, axis=1)


def turned_box(corners: tuple[float, float, float, float], header: Header) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 likewise."""
    (ax, ay), (bx, by) = turned(np.array(corners).reshape(2, 2), header).tolist()
    return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)
