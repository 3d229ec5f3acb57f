"""When may the next batch go to the worker, so that the engine never waits and no frame waits for the engine twice?

A batch handed over early cannot be replaced by a newer frame any more: handed over one inference ahead, it is one
inference older than need be. Handed over only when the engine reports that it is free, the engine idles for the round
trip (some .5 to 1 ms, 3 % of a 20 ms inference). So the next batch goes out shortly before the running one is expected
to end. Pure: no clock, times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

LEAD_S = 0.002
"""How long before the expected end the next batch goes out: a wake-up of the loop, a message and a thread switch take
.3 to 1 ms on a busy two-core machine; estimates of the inference time scatter by about as much."""
_SMOOTHING = 0.2
"""Weight of the newest inference time in the running estimate."""


@dataclass(slots=True)
class _Batch:
    key: Hashable
    expected_start: float


class Window:
    """Batches on their way. `key` names what takes equally long: shape and batch size."""

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel
        """Batches that the engine works on at once."""
        self._out: dict[int, _Batch] = {}  # in order of sending
        self._usual: dict[Hashable, float] = {}

    @property
    def outstanding(self) -> int:
        return len(self._out)

    def usual_s(self, key: Hashable) -> float | None:
        """Running estimate of the inference time, None before the first."""
        return self._usual.get(key)

    def opens_at(self) -> float:
        """From this time on the next batch may go out: -inf (now), a time, or +inf (only after a batch has ended)."""
        if len(self._out) < self.parallel:
            return float("-inf")
        if len(self._out) > self.parallel:
            return float("inf")
        ends = [self._expected_end(batch) for batch in self._out.values()]
        return min(ends) - LEAD_S

    def sent(self, batch_id: int, key: Hashable, now: float) -> None:
        """A batch went out. One sent ahead is expected to start when the first of the running ones ends."""
        start = now
        if len(self._out) >= self.parallel:
            start = max(now, min(self._expected_end(batch) for batch in self._out.values()))
        self._out[batch_id] = _Batch(key, start)

    def ended(self, batch_id: int, started_at: float, finished_at: float, *, ok: bool = True) -> None:
        """A batch came back. Failed ones say nothing about the usual time. KeyError for an unknown one."""
        batch = self._out.pop(batch_id)
        if ok:
            took = finished_at - started_at
            usual = self._usual.get(batch.key)
            self._usual[batch.key] = took if usual is None else usual + _SMOOTHING * (took - usual)
        waiting = list(self._out.values())[self.parallel - 1 : self.parallel]
        for successor in waiting:  # it begins now, whatever was expected
            successor.expected_start = max(finished_at, started_at)

    def clear(self) -> None:
        """The worker is gone; so are its batches. Estimates stay."""
        self._out.clear()

    def _expected_end(self, batch: _Batch) -> float:
        usual = self._usual.get(batch.key)
        return float("inf") if usual is None else batch.expected_start + usual
