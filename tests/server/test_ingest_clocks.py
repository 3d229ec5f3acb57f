"""Both clocks at one instant."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from server.ingest.clocks import instant

OFFSET = 1.8e9


class Interrupted:
    """Clocks that go on by so many seconds at each reading."""

    def __init__(self, steps: list[float]) -> None:
        self._steps: Iterator[float] = iter(steps)
        self._now = 100.0

    def monotonic(self) -> float:
        self._now += next(self._steps)
        return self._now

    def wall_clock(self) -> float:
        return self.monotonic() + OFFSET


@pytest.mark.parametrize(
    "steps",
    [[0.0] * 15, [0.0, 0.04, 0.0] + [0.0] * 12, [0.0, 0.0, 0.04] + [0.0] * 12, [0.0, 0.03, 0.03] * 4 + [0.0] * 3],
)
def test_an_interruption_between_the_readings_makes_no_difference(steps: list[float]) -> None:
    clocks = Interrupted(steps)
    assert instant(clocks.monotonic, clocks.wall_clock).offset == pytest.approx(OFFSET, abs=1e-6)


def test_on_a_machine_that_is_never_left_alone_the_closest_pair_counts() -> None:
    clocks = Interrupted([0.0, 0.02, 0.02, 0.0, 0.003, 0.002, *[0.0, 0.05, 0.05] * 3])
    assert instant(clocks.monotonic, clocks.wall_clock).offset == pytest.approx(OFFSET, abs=0.0021)


def test_it_is_now() -> None:
    before = time.monotonic()
    now = instant()
    assert before <= now.monotonic <= time.monotonic()
    assert abs(now.unix - time.time()) < 5
