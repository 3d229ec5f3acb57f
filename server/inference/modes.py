"""Latency or throughput: how the engine should run under the load that it has.

Latency: one batch at a time on all cores. Throughput: several side by side on fewer cores each, which wastes no core on
the parts of a network that do not spread over all, and makes each batch take longer. What it gains depends on the
model, the shape and the cores (for T at 640x384 on two cores some 20 %), so it is not assumed but measured: where it
does not pay, the engine goes back and stays there for a while.

Pure: no clock, no threads; times are monotonic seconds. Not thread-safe.
"""

from __future__ import annotations

from typing import Literal

Mode = Literal["latency", "throughput"]

_WINDOW_S = 2.0
"""Over which load and capacity are measured: some dozens of batches."""
_WINDOWS = 2
"""So many windows in a row must want the other mode: a burst of a few seconds is not a load."""
_SATURATED = 0.9
"""Share of the time that the engine is busy, from which on frames are being lost, or a file is waiting."""
_RELAXED = 0.75
"""Back to latency if that mode would be busy for no more than this share: far enough from `_SATURATED` not to swing."""
_PAYS = 1.03
"""Throughput must give so many times the images of latency."""
_DISMISSED_S = 600.0
"""Where it does not pay, it is not tried again before."""


class ModeSwitch:
    """Tell it of every batch (`ended`); it says which mode is wanted."""

    def __init__(self) -> None:
        self.mode: Mode = "latency"
        """What is wanted now. The caller may take its time to get there."""
        self._capacity: dict[Mode, float] = {}  # images a second if busy all the time
        self._dismissed_until = float("-inf")
        self._agreed = 0  # windows in a row that wanted the other mode
        self._began: float | None = None
        self._busy = 0.0
        self._images = 0

    def ended(self, started_at: float, finished_at: float, images: int, mode: Mode, parallel: int) -> bool:
        """A batch ran in `mode`, with room for `parallel` side by side. True: `self.mode` has changed thereby."""
        if mode != self.mode:  # on the way to what is wanted
            return False
        if self._began is None:
            self._began = started_at
        self._busy += (finished_at - started_at) / parallel
        self._images += images
        elapsed = finished_at - self._began
        if elapsed < _WINDOW_S:
            return False
        other = self._wants_other(min(self._busy / elapsed, 1.0), self._images / elapsed, finished_at)
        self._agreed = self._agreed + 1 if other else 0
        self._began, self._busy, self._images = finished_at, 0.0, 0
        if self._agreed < _WINDOWS:
            return False
        self._agreed, self._began = 0, None
        self.mode = "throughput" if self.mode == "latency" else "latency"
        return True

    def _wants_other(self, load: float, rate: float, now: float) -> bool:
        """A window is over: the engine was busy for the share `load` of it and gave `rate` images a second."""
        saturated = load >= _SATURATED
        if saturated:
            self._capacity[self.mode] = self._images / self._busy
        if self.mode == "latency":
            return saturated and now >= self._dismissed_until
        latency = self._capacity["latency"]  # known: it was saturated when it was left
        if saturated and self._capacity["throughput"] < _PAYS * latency:
            self._dismissed_until = now + _DISMISSED_S
            return True
        return rate <= _RELAXED * latency
