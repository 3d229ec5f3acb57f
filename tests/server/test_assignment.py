"""The cheapest assignment, against all that there are."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from server.analytics.assignment import assign

SIZES = st.tuples(st.integers(0, 4), st.integers(0, 5))
COSTS = SIZES.flatmap(lambda size: arrays(float, size, elements=st.integers(0, 40).map(float) | st.just(np.inf)))
LIMIT = 20.0


def best_total(cost: np.ndarray) -> float:
    """By trying everything: a pair costs what it costs, two that stay alone cost LIMIT."""
    rows, columns = cost.shape
    padded = np.full((rows + columns, rows + columns), LIMIT / 2)
    padded[:rows, :columns] = np.where(cost < LIMIT, cost, np.inf)
    padded[rows:, columns:] = 0
    padded[:rows, columns:], padded[rows:, :columns] = LIMIT / 2, LIMIT / 2
    if rows == 0 or columns == 0:
        return (rows + columns) * LIMIT / 2
    best = np.inf
    for chosen in permutations(range(columns + rows), rows):
        pairs = [(row, column) for row, column in enumerate(chosen) if column < columns]
        total = sum(padded[pair] for pair in pairs) + (rows + columns - 2 * len(pairs)) * LIMIT / 2
        best = min(best, total)
    return best


@given(COSTS)
def test_is_the_cheapest_of_all(cost: np.ndarray) -> None:
    rows, columns = assign(cost, LIMIT)
    assert len(set(rows.tolist())) == len(rows) == len(columns) == len(set(columns.tolist()))
    assert (cost[rows, columns] < LIMIT).all(), "what is too dear is never paired"
    total = cost[rows, columns].sum() + (sum(cost.shape) - 2 * len(rows)) * LIMIT / 2
    assert total == pytest.approx(best_total(cost))


def test_is_not_greedy() -> None:
    cost = np.array([[1.0, 2.0], [1.5, 9.0]])
    rows, columns = assign(cost, LIMIT)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("cost", [np.zeros((0, 3)), np.zeros((3, 0)), np.full((2, 2), np.inf), np.full((2, 2), LIMIT)])
def test_may_have_nobody(cost: np.ndarray) -> None:
    assert assign(cost, LIMIT)[0].size == 0


def test_leaves_the_costs_as_they_are() -> None:
    cost = np.array([[1.0, np.inf], [30.0, 2.0]])
    before = cost.copy()
    assign(cost, LIMIT)
    assert cost.tolist() == before.tolist()
