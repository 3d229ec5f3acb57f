"""How long to wait before a lost camera is tried again. Pure: chance is passed in, and nothing here sleeps.

Exponential, so that a dead camera costs little; with jitter, so that 64 cameras behind one switch do not come back in
the same instant. A wrong password is tried at the slowest pace from the first: cameras lock out whoever insists.
"""

from __future__ import annotations

from collections.abc import Callable

STABLE_S = 10.0
"""A source that delivered for so long counts as working: the next loss begins with the first pause again."""
_SPREAD = 0.25
"""Pauses of one step differ by up to this part."""


class Backoff:
    """`random` gives numbers in [0, 1). All pauses lie between `initial_s` and `max_s`."""

    def __init__(self, initial_s: float, max_s: float, random: Callable[[], float]) -> None:
        self._initial_s = initial_s
        self._max_s = max(initial_s, max_s)
        self._random = random
        self._failures = 0

    def next_s(self, *, slow: bool = False) -> float:
        """Seconds to wait after another failure. `slow`: the longest pause at once (wrong credentials)."""
        # The power is capped, since a camera may be away for years.
        step = self._max_s if slow else self._initial_s * 2.0 ** min(self._failures, 30)
        self._failures += 1
        step = min(step, self._max_s / (1 + _SPREAD))
        return max(step * (1 + _SPREAD * self._random()), self._initial_s)

    def delivered(self, for_s: float) -> None:
        """The source worked for `for_s` seconds before it was lost."""
        if for_s >= STABLE_S:
            self._failures = 0
