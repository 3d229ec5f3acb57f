"""How much of the input a probe can read from features: a linear one, or one with a hidden layer.

Ridge regression from the features around a position to the picture's colour there. It is fitted on all pictures but one
and judged on that one, each in turn, so it never sees the picture that it is judged by. (Judged on other *parts* of the
same pictures, it gets .3 for features that tell the picture and the position but nothing of what is there: surfaces are
large, and between two pieces of sky there is sky.) R2 = 1 - squared error / variance: 1 is everything, 0 no more than
the other pictures' mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_PICTURES = 2
"""One to be fitted to, one to be judged by."""
RIDGE = 1e-3
"""Penalty, in units of a feature's variance: what lies some 3 % of a feature's spread deep counts as lost."""

_FAINT = 1e-6
"""A hidden unit that hardly ever fires is not magnified beyond this."""


@dataclass(frozen=True)
class Probe:
    r2: float
    """Over all positions, colours and pictures. Below 0 where nothing is left: what fits the others by chance errs."""
    reconstruction: Tensor
    """(N, 3, H, W): the pictures as the probe sees them, each by the probe that has not been fitted to it."""


def probe(features: Tensor, pictures: Tensor, neighbourhood: int = 3, ridge: float = RIDGE, hidden: int = 0) -> Probe:
    """`features` (N, C, H, W) and `pictures` (N, 3, H, W), float32, N from 2. Reads `neighbourhood` x `neighbourhood`
    positions.

    `pictures` are in 0..1. Features are scaled to unit variance over all pictures first, so their size does not matter;
    that tells nothing of colours, and one that hardly fires in the fitted pictures is not blown up for the judged one.
    `hidden`: units of a hidden layer with ReLU, whose weights are random and stay so; what is fitted reads them and the
    features. ValueError for a single picture and for pictures of a single colour.
    """
    count, _, height, width = pictures.shape
    if count < LEAST_PICTURES:
        raise ValueError("two pictures are needed at least: the probe is fitted on the others and judged on one")
    inputs = _inputs(features, neighbourhood)
    if hidden:
        inputs = torch.cat((inputs, _hidden_layer(inputs, hidden)), 1)
    targets = pictures.flatten(2)
    sums = [_Sums.of(x, y) for x, y in zip(inputs, targets, strict=True)]
    guesses = []
    error = variance = 0.0
    for judged in range(count):
        others = _Sums.total([s for number, s in enumerate(sums) if number != judged])
        weights, offset = others.fit(ridge)
        # No picture is darker than black: where features have outliers, a guess may be far out.
        guess = (weights @ inputs[judged] + offset[:, None]).clamp(0, 1)
        guesses.append(guess)
        error += float((guess - targets[judged]).double().square().sum())
        variance += float((others.mean_target[:, None] - targets[judged]).square().sum())
    if variance == 0:
        raise ValueError("the pictures are of one colour: there is nothing to reconstruct")
    return Probe(1 - error / variance, torch.stack(guesses).reshape(count, 3, height, width))


@dataclass(frozen=True)
class _Sums:
    """All that a fit needs to know of a picture, or of several. float64: the equations may be close to singular."""

    count: int
    inputs: Tensor
    targets: Tensor
    inputs_inputs: Tensor
    targets_inputs: Tensor

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor) -> _Sums:
        """`inputs` (K, P), `targets` (3, P) of P positions. Products in float32: this is where the time goes."""
        return cls(
            inputs.shape[1],
            inputs.sum(1, dtype=torch.float64),
            targets.sum(1, dtype=torch.float64),
            (inputs @ inputs.T).double(),
            (targets @ inputs.T).double(),
        )

    @classmethod
    def total(cls, parts: list[_Sums]) -> _Sums:
        return cls(
            sum(p.count for p in parts),
            torch.stack([p.inputs for p in parts]).sum(0),
            torch.stack([p.targets for p in parts]).sum(0),
            torch.stack([p.inputs_inputs for p in parts]).sum(0),
            torch.stack([p.targets_inputs for p in parts]).sum(0),
        )

    @property
    def mean_target(self) -> Tensor:
        return self.targets / self.count

    def fit(self, ridge: float) -> tuple[Tensor, Tensor]:
        """(weights (3, K), offset (3,)), float32."""
        mean = self.inputs / self.count
        covariance = self.inputs_inputs / self.count - mean[:, None] * mean
        moments = self.targets_inputs / self.count - self.mean_target[:, None] * mean
        covariance.diagonal().add_(ridge)
        weights = torch.linalg.solve(covariance, moments.T).T
        return weights.float(), (self.mean_target - weights @ mean).float()


def _inputs(features: Tensor, neighbourhood: int) -> Tensor:
    """(N, C * neighbourhood^2, H * W): features around each position, of unit variance (0 where constant)."""
    features = features.double()
    centred = features - features.mean((0, 2, 3), keepdim=True)
    spread = centred.std((0, 2, 3), keepdim=True)
    scaled = torch.where(spread > 0, centred / spread, 0.0).float()
    margin = neighbourhood // 2
    return F.unfold(F.pad(scaled, (margin,) * 4, mode="reflect"), neighbourhood)


def _hidden_layer(inputs: Tensor, units: int) -> Tensor:
    """(N, units, H * W), of unit variance. The same random weights every time."""
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(units, inputs.shape[1], generator=random) / inputs.shape[1] ** 0.5
    seen = torch.relu(weights @ inputs + torch.randn(units, 1, generator=random))
    centred = seen - seen.mean((0, 2), keepdim=True)
    return centred / centred.std((0, 2), keepdim=True).clamp_min(_FAINT)
