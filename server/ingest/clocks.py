"""Two clocks at one instant. A process may be interrupted between two readings, for tens of milliseconds on a busy
machine, and a time that is stated by both clocks would then be two times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

_CLOSE_S = 2e-4
_TRIES = 5


class Instant(NamedTuple):
    monotonic: float
    """CLOCK_MONOTONIC seconds."""
    unix: float
    """The wall clock's seconds."""

    @property
    def offset(self) -> float:
        """Wall clock minus monotonic clock."""
        return self.unix - self.monotonic


def instant(monotonic: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time) -> Instant:
    """Now by both clocks: the closest pair of readings of a few, mostly the first."""
    closest, gap = Instant(0.0, 0.0), float("inf")
    for _ in range(_TRIES):
        before = monotonic()
        unix = wall_clock()
        after = monotonic()
        if after - before < gap:
            closest, gap = Instant(after, unix), after - before
        if gap < _CLOSE_S:
            break
    return closest
