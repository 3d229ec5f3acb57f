"""The measurement: every network, variant and seed is run once; a probe reads its features at a row of depths.

The first seed is run once more without activations. Such a network is linear: it mixes colours and places like the
other but hardly loses anything. What is missing there is out of the probe's reach, not lost: without this *control* one
would be taken for the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolov9.bottlenecks.networks import (
    FIGURE_2,
    NETWORKS,
    VARIANTS,
    WIDTH_MULTIPLE,
    Activation,
    Network,
    Paths,
    Variant,
)
from yolov9.bottlenecks.probe import LEAST_PICTURES, RIDGE, Probe, probe
from yolov9.bottlenecks.scenes import Rgb, to_tensor, without_blur

SHOWN_DEPTHS = (50, 100, 150, 200)
"""Those of the paper's figure 2."""
_CURVE_STEPS = (1, 5, 13, 25, 37, 50, 62, 75, 100, 125, 150, 175, 200)
"""Depths of the curve; dense where it falls."""
MIN_SIZE = 32
MAX_HIDDEN = 4096

Say = Callable[[str], None]
Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What is compared, at what cost. Sizes in pixels."""

    networks: Sequence[str] = FIGURE_2
    variants: Sequence[Variant] = VARIANTS
    depths: Sequence[int] = SHOWN_DEPTHS
    """Of the pictures; the curve has more of them."""
    seeds: int = 5
    width: int = 32
    size: int = 128
    activation: Activation = "relu"
    neighbourhood: int = 3
    ridge: float = RIDGE
    hidden: int = 0
    """Units of the probe's hidden layer; 0: the probe is linear."""
    detail: bool = False
    """The probe is asked for edges and texture alone: for the pictures without their blur."""

    def __post_init__(self) -> None:
        """ValueError names the setting that cannot be."""
        unknown = [n for n in self.networks if n not in NETWORKS]
        if unknown:
            raise ValueError(f"unknown network {unknown[0]!r} (there are {', '.join(NETWORKS)})")
        if not self.networks or not self.variants or not self.depths or min(self.depths) < 1:
            raise ValueError("networks, variants and depths: at least one of each, depths from 1")
        if self.width <= 0 or self.width % WIDTH_MULTIPLE:
            raise ValueError(f"width: {self.width} is not a positive multiple of {WIDTH_MULTIPLE}")
        if self.size < MIN_SIZE:
            raise ValueError(f"size: {self.size} is below {MIN_SIZE} pixels")
        if self.seeds < 1:
            raise ValueError(f"seeds: {self.seeds} is below 1")
        if self.neighbourhood not in (1, 3, 5):
            raise ValueError(f"neighbourhood: {self.neighbourhood} is not 1, 3 or 5")
        if not 0 < self.ridge < 1:
            raise ValueError(f"ridge: {self.ridge} is not between 0 and 1")
        if not 0 <= self.hidden <= MAX_HIDDEN:
            raise ValueError(f"hidden: {self.hidden} is not between 0 and {MAX_HIDDEN}")

    @property
    def controlled(self) -> bool:
        """Whether there is a control: not if the networks are linear themselves."""
        return self.activation != "none"

    @property
    def curve_depths(self) -> list[int]:
        """Nominal depths that are measured, the shown ones among them."""
        return sorted({*self.depths, *(d for d in _CURVE_STEPS if d < max(self.depths))})


@dataclass
class Point:
    """One depth of one network."""

    nominal: int
    """The depth asked for; the nearest end of a block is measured."""
    paths: Paths
    r2: list[float] = field(default_factory=list)
    """One for each seed."""
    control: float | None = None
    """Of the first seed's network without activations."""

    @property
    def depth(self) -> int:
        return self.paths.longest

    @property
    def median(self) -> float:
        return statistics.median(self.r2)


@dataclass
class Cell:
    """What a picture shows of the first seed's network at one depth, for the first picture."""

    depth: int
    r2: float
    """For all pictures."""
    feature_map: Map
    """(H, W): the channels' mean, each channel scaled to unit variance."""
    reconstruction: Rgb


@dataclass
class Curve:
    """One network in one variant."""

    network: str
    variant: Variant
    parameters: int
    """At the greatest depth."""
    points: list[Point]
    cells: dict[int, Cell] = field(default_factory=dict)
    """By nominal depth."""


@dataclass(frozen=True)
class Study:
    settings: Settings
    pictures: Sequence[Rgb]
    curves: list[Curve]

    def curve(self, network: str, variant: Variant) -> Curve:
        return next(c for c in self.curves if c.network == network and c.variant == variant)


def measure(settings: Settings, pictures: Sequence[Rgb], say: Say = lambda line: None) -> Study:
    """`pictures`: (size, size, 3) uint8, two at least. `say` gets a line for each network of each seed. ValueError.

    The picture number i is turned by i quarter turns: sky is not always at the top, so that a position, which zero
    padding gives away, tells no colour.
    """
    if len(pictures) < LEAST_PICTURES:  # `probe` says so too, but after a network has run
        raise ValueError("two pictures are needed at least: the probe is fitted on the others and judged on one")
    images = to_tensor([np.ascontiguousarray(np.rot90(p, i)) for i, p in enumerate(pictures)])
    spread = images.std((0, 2, 3), keepdim=True).clamp_min(1 / 255)
    inputs = (images - images.mean((0, 2, 3), keepdim=True)) / spread
    targets = without_blur(images) if settings.detail else images
    curves = []
    runs = list(_runs(settings))
    for done, (variant, name, seed) in enumerate(runs, 1):
        activation = "none" if seed is None else settings.activation
        network = Network(name, settings.width, max(settings.depths), variant, activation, seed or 0)
        if seed == 0:
            curves.append(_empty(name, variant, network, settings))
        curve = curves[-1]
        for point, found, features in _probed(network, curve, inputs, targets, settings):
            if seed is None:
                point.control = found.r2
                continue
            point.r2.append(found.r2)
            if seed == 0:
                _show(curve, point, found, features, network, settings)
        last = curve.points[-1]
        r2, which = (last.control, "control") if seed is None else (last.r2[-1], f"seed {seed}")
        say(f"{done}/{len(runs)} {variant} {NETWORKS[name].title} {which}: R2 {r2:.3f} at depth {last.depth}")
    return Study(settings, pictures, curves)


def _runs(settings: Settings) -> Iterator[tuple[Variant, str, int | None]]:
    """(variant, network, seed); no seed: the control."""
    for variant in settings.variants:
        for name in settings.networks:
            for seed in range(settings.seeds):
                yield variant, name, seed
            if settings.controlled:
                yield variant, name, None


def _empty(name: str, variant: Variant, network: Network, settings: Settings) -> Curve:
    points: list[Point] = []
    for nominal in settings.curve_depths:
        paths = network.paths(network.nearest(nominal))
        if points and points[-1].depth == paths.longest:  # blocks are long: two nominal depths, one end of a block
            if nominal in settings.depths:
                points[-1].nominal = nominal
            continue
        points.append(Point(nominal, paths))
    parameters = sum(p.numel() for p in network.parameters())
    return Curve(name, variant, parameters, points)


def _probed(
    network: Network, curve: Curve, inputs: Tensor, targets: Tensor, settings: Settings
) -> Iterator[tuple[Point, Probe, Tensor]]:
    """Point, what the probe finds there and the features of the first picture, at each depth of the curve."""
    points = {point.depth: point for point in curve.points}
    for features in network.features(inputs):
        point = points.get(features.depth)
        if point is not None:
            found = probe(features.values, targets, settings.neighbourhood, settings.ridge, settings.hidden)
            yield point, found, features.values[0]


def _show(curve: Curve, point: Point, found: Probe, features: Tensor, network: Network, settings: Settings) -> None:
    """Keep what the figures show of that point, if they do."""
    for nominal in settings.depths:
        if network.nearest(nominal) == point.depth:
            seen = (found.reconstruction[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            curve.cells[nominal] = Cell(point.depth, found.r2, _feature_map(features), seen)


def _feature_map(features: Tensor) -> Map:
    centred = features.double() - features.double().mean((1, 2), keepdim=True)
    spread = centred.std((1, 2), keepdim=True)
    scaled = torch.where(spread > 0, centred / spread, 0.0)
    result: Map = scaled.mean(0).float().numpy()
    return result
