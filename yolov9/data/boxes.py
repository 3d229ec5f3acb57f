"""The boxes of one picture, and the rules by which broken ones are mended or left out. Pure.

- A box without width or height, or with a coordinate that is not finite, is left out (`empty box`, `not a number`).
- A box is cut to the picture. What lies wholly outside is left out (`box outside`); up to OVERHANG pixels of overhang
  come from rounding and are cut silently, more is reported (`box clipped`).
- The same box of the same class twice in one picture counts once (`duplicate`).
- A crowd (COCO's iscrowd, Pascal's difficult) follows the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from yolov9.data.dataset import Item, Kind, Polygon, Problem

OVERHANG = 1.0
"""Pixels. Tools that count pixels from 1, or round outwards, overshoot by that much."""
_LEAST_SIDE = 1e-2
"""Pixels. Narrower boxes are nothing but rounding."""


class BoxList:
    """Collects the boxes of one picture of `width` x `height` displayed pixels; problems go into `problems`."""

    def __init__(self, width: int, height: int, problems: list[Problem], *, polygons: bool) -> None:
        self._width = width
        self._height = height
        self._problems = problems
        self._keep_polygons = polygons
        self._rows: list[tuple[float, float, float, float]] = []
        self._classes: list[int] = []
        self._crowd: list[bool] = []
        self._areas: list[float] = []
        self._polygons: list[tuple[Polygon, ...]] = []
        self._seen: set[tuple[int, float, float, float, float]] = set()

    def add(
        self,
        corners: tuple[float, float, float, float],
        class_id: int,
        file: Path,
        line: int | None,
        *,
        label: str = "box",
        crowd: bool = False,
        area: float | None = None,
        parts: Sequence[Polygon] = (),
    ) -> None:
        """`corners`: x1, y1, x2, y2 in pixels. `label`: how problems call the box. `area`: of the object, None for
        that of the box as it is after cutting. `parts`: the object's outline."""

        def problem(what: str, kind: Kind) -> None:
            self._problems.append(Problem(file, line, f"{label}: {what}", kind))

        x1, y1, x2, y2 = corners
        if not isfinite(x1 + y1 + x2 + y2):
            problem("a coordinate is not a finite number; left out", "not a number")
            return
        if x2 - x1 < _LEAST_SIDE or y2 - y1 < _LEAST_SIDE:
            problem(f"{x2 - x1:.6g} x {y2 - y1:.6g} pixels, which is no box; left out", "empty box")
            return
        over = max(-x1, -y1, x2 - self._width, y2 - self._height)
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(self._width)), min(y2, float(self._height))
        if x2 - x1 < _LEAST_SIDE or y2 - y1 < _LEAST_SIDE:
            problem(f"lies outside of the picture of {self._width} x {self._height}; left out", "box outside")
            return
        if over > OVERHANG:
            problem(f"reaches {over:.1f} pixels out of the picture; cut", "box clipped")
        key = (class_id, round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2))
        if key in self._seen:
            problem("the same box of the same class as before; left out", "duplicate")
            return
        self._seen.add(key)
        self._rows.append((x1, y1, x2, y2))
        self._classes.append(class_id)
        self._crowd.append(crowd)
        self._areas.append((x2 - x1) * (y2 - y1) if area is None else area)
        if self._keep_polygons:
            limit = np.array([self._width, self._height], np.float32)
            self._polygons.append(tuple(np.clip(part, 0, limit).astype(np.float32) for part in parts))

    def item(self, image: Path, identity: int) -> Item:
        """The picture with the boxes so far."""
        return Item(
            image=image,
            id=identity,
            width=self._width,
            height=self._height,
            boxes=np.array(self._rows, np.float32).reshape(-1, 4),
            classes=np.array(self._classes, np.int64),
            crowd=np.array(self._crowd, np.bool_),
            areas=np.array(self._areas, np.float32),
            polygons=tuple(self._polygons) if self._keep_polygons else None,
        )


def polygon_area(points: Polygon) -> float:
    """Pixels inside of a simple polygon (k, 2), whichever way round."""
    x, y = points.astype(np.float64).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
