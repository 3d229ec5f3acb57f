"""Latency or throughput, by load, in virtual time."""

from __future__ import annotations

import pytest

from server.inference.modes import ModeSwitch


class Engine:
    """Answers at `rate` images a second if asked, or as fast as it can; tells the switch."""

    def __init__(self, latency_s: float = 0.025, gain: float = 1.2) -> None:
        self.switch = ModeSwitch()
        self.now = 1000.0
        self.latency_s = latency_s
        self.gain = gain

    def run(self, seconds: float, rate: float = 1e9) -> list[str]:
        """Modes in which batches ran, each once when it changes."""
        modes: list[str] = []
        until = self.now + seconds
        while self.now < until:
            mode = self.switch.mode
            if not modes or modes[-1] != mode:
                modes.append(mode)
            parallel = 2 if mode == "throughput" else 1
            took = self.latency_s if parallel == 1 else 2 * self.latency_s / self.gain
            start = self.now
            for _ in range(parallel):
                self.switch.ended(start, start + took, 1, mode, parallel)
            self.now = start + max(took, parallel / rate)
        return modes


def test_it_begins_with_latency_and_stays_there_under_little_load() -> None:
    assert Engine().run(100, rate=25) == ["latency"]


def test_sustained_overload_brings_throughput_and_only_little_load_brings_latency_back() -> None:
    engine = Engine()
    assert engine.run(20) == ["latency", "throughput"]
    assert engine.run(60, rate=36) == ["throughput"], "latency mode would be busy for 90 %"
    assert engine.run(20, rate=28) == ["throughput", "latency"]
    assert engine.run(60, rate=34) == ["latency"]


def test_a_burst_is_no_load() -> None:
    engine = Engine()
    for _ in range(20):
        assert engine.run(2.0) == ["latency"]
        assert engine.run(4.0, rate=10) == ["latency"]


def test_after_an_idle_time_it_is_back_at_latency_soon() -> None:
    engine = Engine()
    engine.run(20)
    engine.now += 3600
    assert engine.run(10, rate=10) == ["throughput", "latency"]


@pytest.mark.parametrize("gain", [0.8, 1.0, 1.02])
def test_where_throughput_does_not_pay_it_goes_back_and_stays_for_a_while(gain: float) -> None:
    engine = Engine(gain=gain)
    assert engine.run(20) == ["latency", "throughput", "latency"]
    assert engine.run(500) == ["latency"]
    assert engine.run(200) == ["latency", "throughput", "latency"], "the load may have changed: it tries again"


def test_batches_in_the_mode_that_was_left_say_nothing() -> None:
    engine = Engine()
    engine.run(20)
    assert engine.switch.mode == "throughput"
    for i in range(1000):
        assert not engine.switch.ended(engine.now + i, engine.now + i + 0.001, 1, "latency", 1)
