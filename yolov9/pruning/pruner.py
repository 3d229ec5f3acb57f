"""From a model and a target to the pruned model: score, choose, cut, repair, in as many steps as asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from yolov9.nn.channels import Channels
from yolov9.nn.model import Detector
from yolov9.pruning.criteria import DEFAULTS, NEED_PICTURES, Criterion, score
from yolov9.pruning.pictures import Pictures
from yolov9.pruning.repair import repair
from yolov9.pruning.selection import Normalisation, Plan, Scope
from yolov9.pruning.spaces import Cost, Network, PruneError, network
from yolov9.pruning.surgery import Kept, KeptPositions, followed, remove

_REPAIR_SIDE = 320
_REPAIR_PICTURES = 64
"""Windows of that many pixels, of that many pictures, run as one batch: some 1.5 GB for T, 8 GB for E. Least squares
want few pixels of many pictures rather than all of few."""
_SEARCH_STEPS = 7
"""Bisections of a search for a latency: to a hundredth of what can be removed."""
_LATENCY_RETRY = 0.02
"""Operations removed further, as a share of the whole, while the measured latency is still above its target."""

Repair = Literal["weights", "statistics", "none"]
Say = Callable[[str], None]
Measure = Callable[[Detector], float]
"""Latency of a model in milliseconds."""


@dataclass(frozen=True)
class Target:
    """When to stop. `ratio`: channels removed / all that may go. `flops`: operations left / all. `latency`: ms left."""

    kind: Literal["ratio", "flops", "latency"]
    value: float


@dataclass(frozen=True)
class Options:
    criterion: Criterion = "fisher"
    scope: Scope = "global"
    """`global`: where it costs least accuracy; `layer`: the same share everywhere."""
    normalisation: Normalisation | None = None
    """None: the criterion's own."""
    per_cost: bool | None = None
    """Weigh what is lost against the operations that are saved. None: unless the target counts channels alike."""
    round_to: int = 8
    """Widths that are pruned become multiples of it."""
    floor: float = 0.1
    """Share of its width that every space keeps, 0..1."""
    protect: tuple[str, ...] = ()
    steps: int = 1
    repair: Repair = "weights"
    """Needs pictures; without them nothing is repaired."""
    seed: int = 0


@dataclass
class Pruned:
    """The result: `model` has the mode and the names of the one that was given."""

    model: Detector
    whole: Channels
    """Of the model before."""
    kept: Kept
    gflops: list[float] = field(default_factory=list)
    """Of the main branch: before, and after each step."""
    channels: list[int] = field(default_factory=list)
    """That could be pruned: before, and after each step."""


def prune(
    model: Detector,
    target: Target,
    options: Options | None = None,
    *,
    pictures: Pictures | None = None,
    input_size: int = 640,
    measure: Measure | None = None,
    say: Say = lambda line: None,
) -> Pruned:
    """Remove channels of `model` (left as it is) until the target is reached.

    `pictures`: without labels, for criteria that need them and for the repair. `input_size`: for which operations are
    counted, on a square. `measure`: for a target of latency. PruneError says what cannot be reached or had.
    """
    options = options or Options()
    _check(target, options, pictures, measure)
    if options.per_cost is None:
        options = replace(options, per_cost=target.kind != "ratio")
    state = _Run(model, options, pictures, input_size, say)
    if target.kind == "latency":
        assert measure is not None
        state.steps_to(Target("flops", state.search(target.value, measure)))
        state.until_fast_enough(target.value, measure)
    else:
        state.steps_to(target)
    return state.result


class _Run:
    def __init__(self, model: Detector, options: Options, pictures: Pictures | None, input_size: int, say: Say) -> None:
        self._options, self._pictures, self._size, self._say = options, pictures, input_size, say
        self._whole = model
        first = network(model, input_size, input_size, options.protect)
        if not first.spaces:
            raise PruneError("every layer is protected: nothing may be pruned")
        self._rows = {space.name: space.rows for space in first.spaces}
        everything = {
            name: KeptPositions(np.arange(len(c.inputs)), np.arange(len(c.outputs)))
            for name, c in first.channels.convolutions.items()
        } | {name: KeptPositions(np.arange(len(i)), np.arange(len(i))) for name, i in first.channels.norms.items()}
        self.result = Pruned(copy.deepcopy(model), first.channels, everything)
        self._note(first)

    def steps_to(self, target: Target) -> None:
        for step in range(1, self._options.steps + 1):
            share = step / self._options.steps
            self._step(target, share, f"step {step}/{self._options.steps}")

    def search(self, wanted_ms: float, measure: Measure) -> float:
        """Share of the operations that can stay for a latency, by bisection along the path of one step.

        What is cut does not depend on the time, and the time not on the weights, so nothing is repaired meanwhile.
        """
        now = measure(self.result.model)
        self._say(f"latency {now:.2f} ms before, {wanted_ms:.2f} ms wanted")
        if now <= wanted_ms:
            raise PruneError(f"the model takes {now:.2f} ms, which is not more than {wanted_ms:.2f} ms already")
        net = self._network()
        scores = self._scores(net)
        whole = self.result.gflops[0]

        def fast_enough(share: float) -> bool:
            plan = self._plan(net, scores)
            plan.until(lambda p: p.cost.gflops <= share * whole)
            trial = copy.deepcopy(self.result.model)
            remove(trial, net.channels, plan.gone)
            taken = measure(trial)
            self._say(f"with {plan.cost.gflops / whole:.0%} of the operations: {taken:.2f} ms")
            return taken <= wanted_ms

        bottom = self._plan(net, scores)
        bottom.until(lambda _: False)
        low, high = bottom.cost.gflops / whole, 1.0
        if not fast_enough(low):
            raise PruneError(f"{wanted_ms:.2f} ms cannot be reached: not even with {low:.0%} of the operations")
        for _ in range(_SEARCH_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if fast_enough(middle) else (low, middle)
        return low

    def until_fast_enough(self, wanted_ms: float, measure: Measure) -> None:
        """Several steps cut a little otherwise than the one along which the search went."""
        while (taken := measure(self.result.model)) > wanted_ms:
            share = self.result.gflops[-1] / self.result.gflops[0] - _LATENCY_RETRY
            self._say(f"{taken:.2f} ms is more than {wanted_ms:.2f} ms: on to {share:.0%} of the operations")
            self._step(Target("flops", share), 1.0, "once more")

    def _step(self, target: Target, share: float, title: str) -> None:
        net = self._network()
        plan = self._plan(net, self._scores(net, title))
        if not plan.until(self._reached(target, share)):
            raise PruneError(
                f"the target cannot be reached: {plan.cost.gflops / self.result.gflops[0]:.1%} of the operations are "
                "left where every layer has come to its floor; lower --floor or --round"
            )
        kept = remove(self.result.model, net.channels, plan.gone)
        self.result.kept = followed(self.result.kept, kept)
        self._repair(title)
        after = self._network()
        self._note(after)
        self._say(
            f"{title}: {plan.channels} channels removed, {self.result.gflops[-1]:.2f} GFLOPs "
            f"({self.result.gflops[-1] / self.result.gflops[0]:.1%}) left"
        )

    def _reached(self, target: Target, share: float) -> Callable[[Plan], bool]:
        if target.kind == "flops":
            limit = self.result.gflops[0] * (1 - (1 - target.value) * share)
            return lambda plan: plan.cost.gflops <= limit * (1 + 1e-12)
        total, now = self.result.channels[0], self.result.channels[-1]
        wanted = round(total * target.value * share) - (total - now)
        return lambda plan: plan.channels >= wanted

    def _network(self) -> Network:
        return network(self.result.model, self._size, self._size, self._options.protect)

    def _scores(self, net: Network, title: str = "search") -> npt.NDArray[np.float64]:
        criterion = self._options.criterion

        def progress(done: int, total: int) -> None:
            if done % 16 == 0 or done == total:
                self._say(f"{title}: {criterion}, picture {done}/{total}")

        return score(net, criterion, self._pictures, seed=self._options.seed, progress=progress)

    def _plan(self, net: Network, scores: npt.NDArray[np.float64]) -> Plan:
        o = self._options
        floors = [max(math.ceil(o.floor * self._rows[s.name]), 1) for s in net.spaces]
        return Plan(
            net, scores, scope=o.scope, normalisation=o.normalisation or DEFAULTS[o.criterion],
            per_cost=bool(o.per_cost), round_to=o.round_to, floors=np.array(floors),
        )  # fmt: skip

    def _repair(self, title: str) -> None:
        if self._pictures is None or self._options.repair == "none":
            return
        self._say(f"{title}: repair ({self._options.repair})")
        side = min(_REPAIR_SIDE, self._size)
        images = self._pictures.windows(side, _REPAIR_PICTURES, self._options.seed)
        fit_weights = self._options.repair == "weights"
        repair(self.result.model, self._whole, self.result.whole, self.result.kept, images, weights=fit_weights)

    def _note(self, net: Network) -> None:
        self.result.gflops.append(Cost(net).gflops)
        self.result.channels.append(sum(space.width for space in net.spaces))


def _check(target: Target, options: Options, pictures: Pictures | None, measure: Measure | None) -> None:
    if target.kind != "latency" and not 0 < target.value < 1:
        raise PruneError(f"{target.kind} {target.value}: wants a share between 0 and 1")
    if target.kind == "latency" and (measure is None or not target.value > 0):
        raise PruneError("a target of latency wants milliseconds above 0 and an engine to measure in")
    if not 0 <= options.floor <= 1 or options.round_to < 1 or options.steps < 1:
        raise PruneError("floor wants a share between 0 and 1, round and steps at least 1")
    if options.criterion in NEED_PICTURES and pictures is None:
        raise PruneError(f"the criterion {options.criterion} needs pictures: give --data or --images")
