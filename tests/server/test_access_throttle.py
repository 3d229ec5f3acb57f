"""How often an address may show a wrong token, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.throttle import BURST, MAX_ADDRESSES, REFILL_S, Throttle


def test_a_burst_then_one_in_a_while() -> None:
    throttle = Throttle()
    told = [throttle.failed("192.0.2.1", 0.0) for _ in range(BURST)]
    assert told == [False] * (BURST - 1) + [True]
    assert throttle.wait_s("192.0.2.1", 0.0) == pytest.approx(REFILL_S)
    assert throttle.wait_s("192.0.2.1", REFILL_S / 2) == pytest.approx(REFILL_S / 2)
    assert throttle.wait_s("192.0.2.1", REFILL_S) == 0
    assert throttle.wait_s("192.0.2.2", 0.0) == 0


@given(st.lists(st.floats(0, 30), max_size=60))
def test_never_more_attempts_than_burst_and_refill(pauses: list[float]) -> None:
    throttle, now, made = Throttle(), 0.0, 0
    for pause in pauses:
        now += pause
        if throttle.wait_s("192.0.2.1", now) == 0:
            throttle.failed("192.0.2.1", now)
            made += 1
    assert made <= BURST + now / REFILL_S + 1e-6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("unknown", "unknown", True),
    ],
)
def test_who_counts_as_one_address(one: str, other: str, same: bool) -> None:
    throttle = Throttle()
    for _ in range(BURST):
        throttle.failed(one, 0.0)
    assert (throttle.wait_s(other, 0.0) > 0) is same


def test_many_addresses_fill_no_memory() -> None:
    throttle = Throttle()
    for number in range(3 * MAX_ADDRESSES):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", float(number))
    assert len(throttle) == MAX_ADDRESSES
