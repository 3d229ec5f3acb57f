"""Does a series grow? Pure.

The slope is Theil's and Sen's: the median of the slopes between all pairs of samples. A third of the samples may be
outliers (a process that is just being replaced, a burst) without moving it. A slope counts only if it is not chance:
Kendall's rank test, two standard deviations beyond which pure noise comes once in some forty times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SETTLED = 0.5
"""Caches, pools and code that runs for the first time fill in the first part of a run, which is not judged."""
MIN_SAMPLES = 20
MIN_MEMORY_S = 600.0
"""Allocators and caches settle over minutes: memory over a shorter part says nothing."""
MEMORY_SHARE = 0.02
"""Memory may grow by so much over the part that is judged."""
COUNT = 0.5
"""Descriptors, threads, processes, segments: not by a single one. (One that was lost once, in a step, has no slope; the
levels before and after show it.)"""
_SIGNIFICANT = 2.0
_MAX_SAMPLES = 2000
"""Pairs grow with the square."""

Kind = Literal["memory", "count"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trend:
    samples: int
    """Of the part that is judged."""
    growth: float
    """Over that part, in the series' own unit."""
    level: float
    """Median of that part."""
    deviations: float
    """Kendall's test: how far the order is from chance, in standard deviations."""
    verdict: Literal["steady", "grows", "too short"]

    @property
    def share(self) -> float:
        """Growth as a share of the level."""
        return self.growth / self.level if self.level else 0.0


def trend(times: Sequence[float], values: Sequence[float], kind: Kind) -> Trend:
    """`times` rise, in seconds; as many values."""
    if len(times) != len(values):
        raise ValueError(f"{len(times)} times and {len(values)} values")
    first = int(len(times) * SETTLED)
    x, y = _thinned(np.asarray(times[first:], float)), _thinned(np.asarray(values[first:], float))
    count = len(times) - first
    if count < MIN_SAMPLES or (kind == "memory" and times[-1] - times[first] < MIN_MEMORY_S):
        return Trend(count, 0.0, float(np.median(y)) if count else 0.0, 0.0, "too short")
    rows, columns = np.triu_indices(len(x), 1)
    steps = y[columns] - y[rows]
    growth = float(np.median(steps / (x[columns] - x[rows]))) * float(x[-1] - x[0])
    deviations = _kendall(steps, y)
    level = float(np.median(y))
    bound = MEMORY_SHARE * level if kind == "memory" else COUNT
    grows = growth >= bound and growth > 0 and deviations > _SIGNIFICANT
    return Trend(count, growth, level, deviations, "grows" if grows else "steady")


def _kendall(steps: Floats, values: Floats) -> float:
    """The sum of the signs of all steps, over its standard deviation for values in random order, ties counted."""
    n = len(values)
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return float(np.sign(steps).sum()) / math.sqrt(variance) if variance > 0 else 0.0


def _thinned(series: Floats) -> Floats:
    return series[:: -(-len(series) // _MAX_SAMPLES)] if len(series) else series
