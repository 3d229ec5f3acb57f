"""Who belongs to whom: the assignment of least total cost (Jonker-Volgenant, by `lap`), without what is too dear."""

from __future__ import annotations

import lap  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


def assign(cost: npt.NDArray[np.float64], limit: float) -> tuple[Indices, Indices]:
    """(rows, columns) of the pairs. A pair of `limit` or more, or of infinite cost, is never made; leaving a row and a
    column alone costs `limit` together. Costs must not be negative or NaN."""
    allowed = cost < limit
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    if not rows.size:
        return rows, columns
    # Only those that have a partner at all: most of a matrix is out of reach.
    part = np.where(allowed, cost, 2 * limit)[np.ix_(rows, columns)]
    _, of_row, _ = lap.lapjv(part, extend_cost=True, cost_limit=limit)
    paired = np.flatnonzero(of_row >= 0)
    rows, columns = rows[paired], columns[of_row[paired]]
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]
