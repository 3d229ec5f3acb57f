"""Which rows go: cheapest first, until a target is reached.

Pure arithmetic on scores and costs; the network itself is not touched. Within a space rows go in the order of their
scores. Between spaces the next step is the one that loses least, so that each target is met exactly to one step, and
widths stay multiples of `round_to` all the way.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from yolov9.pruning.spaces import Cost, Network, PruneError

Scores = npt.NDArray[np.float64]
Normalisation = Literal["none", "mean", "lamp"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "mean", "lamp")
Scope = Literal["global", "layer"]


class Plan:
    """What is to be removed. Begins with nothing; `until` goes on from where it stands."""

    def __init__(
        self,
        network: Network,
        scores: Scores,
        *,
        scope: Scope = "global",
        normalisation: Normalisation = "none",
        per_cost: bool = False,
        round_to: int = 1,
        floors: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """`scores`: what each channel of the network is worth, not negative.

        `scope`: `global` compares all spaces with each other; `layer` takes the same share of each. `normalisation`
        makes scores of different spaces comparable: divided by the `mean` of the space, or squared and divided by what
        would be left (`lamp`, arXiv 2010.07611). `per_cost`: by the operations saved. `floors`: rows that each space
        keeps.
        """
        self.network = network
        self.cost = Cost(network)
        self.removed = np.zeros(len(network.spaces), np.int64)
        self._scope, self._per_cost, self._floors = scope, per_cost, floors
        self._rows = [_Rows([np.sort(scores[p]) for p in s.parts], normalisation) for s in network.spaces]
        self._order = [[p[np.argsort(scores[p], kind="stable")] for p in s.parts] for s in network.spaces]
        self._steps = [max(round_to // math.gcd(round_to, len(s.parts)), 1) for s in network.spaces]
        self._queue = [(self._key(i), i) for i in range(len(network.spaces)) if self._step(i)]
        heapq.heapify(self._queue)

    @property
    def channels(self) -> int:
        """Removed so far."""
        return sum(int(n) * len(s.parts) for n, s in zip(self.removed, self.network.spaces, strict=True))

    @property
    def gone(self) -> npt.NDArray[np.bool_]:
        """For each channel of the network, whether it goes."""
        mask = np.zeros(self.network.channels.count, np.bool_)
        for rows, parts in zip(self.removed, self._order, strict=True):
            for part in parts:
                mask[part[:rows]] = True
        return mask

    def until(self, reached: Callable[[Plan], bool]) -> bool:
        """Remove step by step; False if nothing can go any more before `reached`."""
        while not reached(self):
            if not self.advance():
                return False
        return True

    def advance(self) -> bool:
        """One step. False if none is left."""
        while self._queue:
            _, i = heapq.heappop(self._queue)
            key = self._key(i)  # neighbours that went meanwhile have made this step less worth while
            if self._queue and key > self._queue[0][0]:
                heapq.heappush(self._queue, (key, i))
                continue
            rows = self._step(i)
            self.cost.remove(i, rows)
            self.removed[i] += rows
            if self._step(i):
                heapq.heappush(self._queue, (self._key(i), i))
            return True
        return False

    def _step(self, i: int) -> int:
        """Rows of the next step of space `i`: down to the next multiple. 0 if that is below its floor."""
        left, step = self.network.spaces[i].rows - int(self.removed[i]), self._steps[i]
        rows = left % step or step
        floor = 1 if self._floors is None else int(self._floors[i])
        return rows if left - rows >= max(floor, 1) else 0

    def _key(self, i: int) -> float:
        begin = int(self.removed[i])
        rows = self._step(i)
        if self._scope == "layer":
            return (begin + rows) / self.network.spaces[i].rows
        lost = self._rows[i].sum(begin, begin + rows)
        return lost / max(self.cost.saved(i, rows), 1e-12) if self._per_cost else lost / rows


class _Rows:
    """Scores of one space's rows, ascending."""

    def __init__(self, parts: list[Scores], normalisation: Normalisation) -> None:
        values = np.sum(parts, axis=0)
        if not np.isfinite(values).all() or (values < 0).any():
            raise PruneError("a criterion gave scores that are negative or not finite")
        if normalisation == "mean":
            values = values / max(values.mean(), 1e-300)
        elif normalisation == "lamp":
            squares = values**2
            values = squares / np.maximum(np.cumsum(squares[::-1])[::-1], 1e-300)
        self._sums = np.concatenate(([0.0], np.cumsum(values)))

    def sum(self, begin: int, end: int) -> float:
        return float(self._sums[end] - self._sums[begin])
