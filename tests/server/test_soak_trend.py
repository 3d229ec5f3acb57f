"""The pure parts of long runs: a planted leak is found, noise is not, and the plan of faults is fair."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.soak.acts import Acts
from server.soak.report import faults, summarise
from server.soak.run import Soaked
from server.soak.sample import Sample, compared
from server.soak.schedule import CAMERA_FAULTS, SERVER_FAULTS, plan
from server.soak.trend import MEMORY_SHARE, MIN_SAMPLES, trend

MB = float(1 << 20)
HOUR = [7.2 * number for number in range(500)]


def noisy(level: float, growth: float, noise: float, seed: int = 0) -> list[float]:
    """A series that fills caches in its first fifth, then grows evenly by `growth` over the whole run."""
    rng = random.Random(seed)
    values = []
    for number in range(len(HOUR)):
        warm = min(1.0, number / 100)
        burst = 0.3 * level if rng.random() < 0.05 else 0.0
        values.append(level * (0.7 + 0.3 * warm) + growth * number / len(HOUR) + rng.gauss(0, noise) + burst)
    return values


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_leak_of_memory_is_found_beneath_noise_and_bursts(seed: int) -> None:
    found = trend(HOUR, noisy(200 * MB, growth=16 * MB, noise=2 * MB, seed=seed), "memory")
    assert found.verdict == "grows"
    assert found.growth == pytest.approx(8 * MB, rel=0.3), "the second half of the run has half of the leak"


@pytest.mark.parametrize("seed", range(20))
def test_noise_bursts_and_a_warm_start_are_no_leak(seed: int) -> None:
    assert trend(HOUR, noisy(200 * MB, growth=0.0, noise=4 * MB, seed=seed), "memory").verdict == "steady"


def test_memory_may_grow_by_less_than_the_bound() -> None:
    level = 200 * MB
    below = trend(HOUR, noisy(level, growth=level * MEMORY_SHARE, noise=0.1 * MB), "memory")
    assert (below.verdict, below.share) == ("steady", pytest.approx(MEMORY_SHARE / 2, rel=0.1))


def test_descriptors_that_are_lost_one_by_one_are_found_and_come_and_go_is_not() -> None:
    rng = random.Random(1)
    come_and_go = [80 + rng.choice((0, 0, 0, 6, 12)) for _ in HOUR]
    leak = [value + 6 * number // len(HOUR) for number, value in enumerate(come_and_go)]
    assert trend(HOUR, come_and_go, "count").verdict == "steady"
    assert trend(HOUR, leak, "count").verdict == "grows"


def test_a_series_that_never_changes_or_falls_is_steady() -> None:
    assert trend(HOUR, [5.0] * len(HOUR), "count").verdict == "steady"
    assert trend(HOUR, [5.0 * MB - number for number in range(len(HOUR))], "memory").verdict == "steady"


def test_few_samples_say_nothing() -> None:
    few = 2 * MIN_SAMPLES - 2
    assert trend(HOUR[:few], list(range(few)), "count").verdict == "too short"
    assert trend([], [], "memory").verdict == "too short"
    assert (
        trend([float(number) for number in range(500)], noisy(200 * MB, 99 * MB, 0.0), "memory").verdict == "too short"
    )
    with pytest.raises(ValueError, match="2 times and 1 values"):
        trend([1, 2], [1], "count")


@given(st.lists(st.integers(-1000, 1000), min_size=40, max_size=80), st.floats(-5, 5), st.floats(-1e3, 1e3))
def test_growth_follows_scale_and_offset(values: list[int], factor: float, offset: float) -> None:
    times = [float(number) for number in range(len(values))]
    plain = trend(times, [float(value) for value in values], "count").growth
    moved = trend(times, [factor * value + offset for value in values], "count").growth
    assert moved == pytest.approx(factor * plain, abs=1e-6 * (1 + abs(offset) + abs(factor * plain)))


def test_the_plan_has_every_fault_equally_often_within_the_run() -> None:
    planned = plan(3, 3600, 8, 320)
    counts = Counter(item.fault for item in planned)
    assert len(planned) == 320
    assert set(counts) == set(CAMERA_FAULTS | SERVER_FAULTS)
    assert set(counts.values()) == {20}
    assert planned == sorted(planned) == plan(3, 3600, 8, 320)
    assert planned != plan(4, 3600, 8, 320)
    assert all(item.at_s > 0 and item.at_s + item.lasts_s <= 3600 * 0.96 + 0.01 for item in planned)
    assert {item.camera for item in planned if item.fault in CAMERA_FAULTS} == set(range(8))
    assert all(item.camera is None for item in planned if item.fault in SERVER_FAULTS)


def test_what_is_left_out_of_the_plan_does_not_happen() -> None:
    assert "swap" not in {item.fault for item in plan(0, 60, 1, 200, ["swap"])}


def test_every_planned_fault_has_an_act() -> None:
    for fault in CAMERA_FAULTS | SERVER_FAULTS:
        assert callable(getattr(Acts, f"_{fault}"))


def sample(at: float = 0.0, **changed: int) -> Sample:
    usual = Sample(at, 200 << 20, 60 << 20, 24 << 20, processes=6, threads=22, descriptors=83, segments=22)
    return replace(usual, **changed)


def test_a_run_without_any_trend_has_no_faults() -> None:
    steady = [sample(at) for at in HOUR]
    level = compared(sample(), sample())
    report = summarise(Soaked(samples=steady, with_streams=level, empty=level))
    assert report["faults"] == []
    assert report["trends"]["memory"]["verdict"] == "steady"


@pytest.mark.parametrize("name", ["threads", "processes", "descriptors", "segments"])
def test_a_count_that_does_not_come_back_is_a_fault(name: str) -> None:
    more = compared(sample(), sample(**{name: 100}))
    (fault,) = faults(Soaked(empty=more), {})
    assert fault.startswith(f"{name} without streams: ")


def test_everything_that_is_lost_is_named() -> None:
    soaked = Soaked(
        reads=9, unbalanced=1, torn=2, errors=3, unaccounted=["cam00: 1 frames are in flight"], silent=["no result"],
        bad_lines=["Traceback"],
    )  # fmt: skip
    text = "\n".join(faults(soaked, {}))
    for part in (
        "1 of 9 reads",
        "2 results are of torn",
        "3 results of status error",
        "cam00",
        "no result",
        "Traceback",
    ):
        assert part in text
