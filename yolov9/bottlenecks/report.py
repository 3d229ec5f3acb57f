"""What was measured, in words: report.md for people, results.json and results.csv for programs."""

from __future__ import annotations

import csv
import io
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yolov9.bottlenecks.figures import SHORT_TITLES
from yolov9.bottlenecks.networks import NETWORKS, VARIANT_TEXT, Variant
from yolov9.bottlenecks.study import Curve, Point, Study

HALF = 0.5


@dataclass(frozen=True)
class Origin:
    """How the study came about."""

    command: str
    date: str
    seconds: float
    pictures: list[str]
    machine: str
    versions: dict[str, str]


def half_depth(curve: Curve) -> float | None:
    """Depth at which the median R2 first falls below one half, between the measured points; None if it never does."""
    before: Point | None = None
    for point in curve.points:
        if point.median < HALF:
            if before is None:
                return float(point.depth)
            share = (before.median - HALF) / (before.median - point.median)
            return before.depth + share * (point.depth - before.depth)
        before = point
    return None


def to_json(study: Study, origin: Origin) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    return {
        **asdict(origin),
        "settings": asdict(study.settings),
        "curves": [
            {
                "variant": curve.variant,
                "network": curve.network,
                "parameters": curve.parameters,
                "half_depth": half_depth(curve),
                "points": [
                    {
                        "nominal": p.nominal,
                        **asdict(p.paths),
                        "depth": p.depth,
                        "r2": p.r2,
                        "r2_median": p.median,
                        "r2_control": p.control,
                    }
                    for p in curve.points
                ],
            }
            for curve in study.curves
        ],
    }


def to_csv(study: Study) -> str:
    """A line for each seed at each depth; the control's stand among them, with the activation `none`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["variant", "network", "activation", "nominal_depth", "depth", "longest_3x3", "shortest", "seed", "r2"]
    )
    for curve in study.curves:
        for point in curve.points:
            measured = [(study.settings.activation, seed, r2) for seed, r2 in enumerate(point.r2)]
            if point.control is not None:
                measured.append(("none", 0, point.control))
            for activation, seed, r2 in measured:
                rows.writerow(
                    [curve.variant, curve.network, activation, point.nominal, point.depth, point.paths.longest_3x3,
                     point.paths.shortest, seed, f"{r2:.6f}"]
                )  # fmt: skip
    return text.getvalue()


def to_markdown(study: Study, origin: Origin) -> str:
    """The report. Refers to the figures beside it by name."""
    settings = study.settings
    parts = [_QUESTION, _method(study, origin)]
    for variant in settings.variants:
        parts.append(_results(study, variant))
    parts.append(f"## All depths\n\n![R2 over depth](curve.png)\n\n{_curve_text(study)}\n")
    parts.append(_CAVEATS)
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    parts.append(
        f"Measured on {origin.date} in {origin.seconds:.0f} s by {origin.machine} with {versions}:\n\n"
        f"```sh\n{origin.command}\n```\n"
    )
    return "\n".join(parts)


_QUESTION = """# How much of a picture is left after many layers?

A detector can only find what its layers have not lost. Every layer computes something new from what the layer before it
gives, and what is lost once cannot come back: this is the *information bottleneck*. The loss function sees the last
layer only; where that holds little of the picture, the gradients that train the network say little about the picture
too. The YOLOv9 paper shows this with pictures (its figure 2): feature maps of networks that have **not been trained**,
at growing depth. Here the same is drawn, and measured.
"""

_CAVEATS = """## How to read it, and how not to

* R2 is the share of the pictures' variance that the probe restores: 1 is everything, 0 no more than the mean colour of
  the other pictures. Below 0 is 0: nothing is left, and what fits the other pictures by chance misleads.
* The picture that is judged must be a new one. Features that tell only *which* picture it is and *where* in it, nothing
  of what is there, restore .3 of the drawn scenes if a probe is fitted on some parts of them and judged on others; here
  they restore nothing.
* The probe looks at few positions and has few parameters, so R2 is a lower bound of what is left: features may hold a
  picture that it cannot read, and eyes may still see outlines where colours cannot be told any more. A detector's head
  is a few convolutions: not much cleverer than the probe.
* The control tells *mixed* from *lost*. Where it has fallen too, the picture has been spread over more places than the
  probe looks at, and R2 says nothing about the activations.
* The networks are random. Training changes the weights so that useful things are kept. What is shown is where training
  starts from, and how hard the wiring makes it.
* Nobody builds these networks: they have one width and keep the picture's full size, so that all probes have the same
  number of inputs. They show what the wiring does, nothing else.
* How signals are scaled matters as much as the wiring. A residual block adds to its input. Where the addition is weak
  (as built) nearly everything passes; where every block adds as much as there is (He's weights without normalisation),
  half of the signal is new after each; with batch normalisation every block adds the same amount to a growing sum.
"""


def _method(study: Study, origin: Origin) -> str:
    settings = study.settings
    networks = "\n".join(f"* **{NETWORKS[n].title}**: {NETWORKS[n].description}" for n in settings.networks)
    activation = {"relu": "with ReLU", "silu": "with SiLU", "none": "without activations"}[settings.activation]
    wanted = "its colour"
    if settings.detail:
        wanted = "its **detail**, by which its colour differs from the mean of the 7x7 pixels around it"
    inputs, side = settings.width * settings.neighbourhood**2, settings.neighbourhood
    if settings.hidden:
        probe = f"""a **probe** with a hidden layer ({settings.hidden} units, random and fixed; ridge regression of
        them and of the features, penalty {settings.ridge:g})"""
    else:
        probe = f"a **linear probe** (ridge regression, penalty {settings.ridge:g})"
    control = """The first of the random networks is run a second time **without activations**: linear, it only mixes,
    and hardly loses anything. This is the control: what is missing there is out of the probe's reach, not lost."""
    text = f"""
    All are {settings.width} channels wide at {settings.size}x{settings.size} pixels from the first layer to the last,
    {activation} after their convolutions and with weights drawn at random, {_times(settings.seeds)}. The pictures
    ({", ".join(origin.pictures)}) are sent through, and at a row of depths {probe} is asked to give them back: from the
    {inputs} features in the {side}x{side} positions around a pixel to {wanted}. It is fitted on all
    pictures but one and judged on that one, each in turn. Where it succeeds on a picture that it has never seen, the
    features still hold the picture. {control if settings.controlled else ""}
    """
    return f"## What was done\n\n{networks}\n\n{_filled(text)}\n\n{_depth(study)}"


def _curve_text(study: Study) -> str:
    settings = study.settings
    band = "median, in a band from the lowest to the highest seed" if settings.seeds > 1 else "the only seed"
    control = (
        "Dotted: the control; what lies between the two was lost to the activations." if settings.controlled else ""
    )
    return f"Lines: {band}. {control}".strip()


def _depth(study: Study) -> str:
    """What depth means for each network: at the greatest one, ways and parameters."""
    rows = "".join(
        f"| {NETWORKS[c.network].title} | {p.longest} | {p.longest_3x3} | {p.shortest} | {c.parameters:,} |\n"
        for c in study.curves
        if c.variant == study.settings.variants[0]
        for p in [c.points[-1].paths]
    )
    text = """*Depth* is the number of convolutions on the longest path from the picture, 1x1 ones included. Blocks are
    long, so a network is measured at the end of the block that comes nearest to the depth asked for. Counted otherwise,
    the networks compare otherwise; at the greatest depth they have:"""
    head = "| network | longest path | 3x3 on it | shortest path | parameters |\n|---|---|---|---|---|\n"
    return f"{_filled(text)}\n\n{head}{rows}"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times each"


def _results(study: Study, variant: Variant) -> str:
    settings = study.settings
    depths = list(settings.depths)
    columns = " | ".join(f"depth {d}" for d in depths)
    found = f"| network | {columns} | R2 falls below .5 at |\n|---|{'---|' * (len(depths) + 1)}\n"
    control = f"| control | {columns} |\n|---|{'---|' * len(depths)}\n"
    for name in settings.networks:
        curve, title = study.curve(name, variant), NETWORKS[name].title
        points = [_at(curve, d) for d in depths]
        half = half_depth(curve)
        fall = f"depth {half:.0f}" if half is not None else f"not before {curve.points[-1].depth}"
        found += f"| {title} | {' | '.join(map(_figure, points))} | {fall} |\n"
        control += f"| {title} | {' | '.join(_number(p.control) for p in points if p.control is not None)} |\n"
    text, title = VARIANT_TEXT[variant], SHORT_TITLES[variant]
    return f"""## {title[0].upper() + title[1:]}

{text[0].upper() + text[1:]}.

![Feature maps](feature-maps-{variant}.png)

Mean of the channels of the first picture, each map in its own scale. What the probe makes of them (first seed):

![Reconstructions](reconstructions-{variant}.png)

R2{f", median of {settings.seeds} seeds (lowest to highest)" if settings.seeds > 1 else ""}:

{found}
{_finding(study, variant)}
{f"{chr(10)}{control}" if settings.controlled else ""}"""


def _finding(study: Study, variant: Variant) -> str:
    """Who keeps most at the shown depths; ties and empty hands are called so."""
    by_winner: dict[str, list[int]] = {}
    for depth in study.settings.depths:
        by_winner.setdefault(_winner(study, variant, depth), []).append(depth)
    parts = []
    for winner, depths in by_winner.items():
        parts.append(f"At depth {_listed(depths)} {winner}.")
    return " ".join(parts)


def _listed(things: Sequence[object]) -> str:
    """`a, b and c`"""
    *before, last = map(str, things)
    return f"{', '.join(before)} and {last}" if before else last


def _winner(study: Study, variant: Variant, depth: int) -> str:
    points = {name: _at(study.curve(name, variant), depth) for name in study.settings.networks}
    best, *others = sorted(points, key=lambda name: -points[name].median)
    if points[best].median < _NOTHING:
        return "nothing is left in any"
    equals = [name for name in others if max(points[name].r2) >= min(points[best].r2)]
    if not equals:
        return f"{NETWORKS[best].title} keeps most"
    others_text = _listed([NETWORKS[name].title for name in equals])
    return f"{NETWORKS[best].title} keeps most by the median, within the spread of {others_text}"


_NOTHING = 0.02


def _at(curve: Curve, nominal: int) -> Point:
    return min(curve.points, key=lambda p: abs(p.depth - nominal))


def _figure(point: Point) -> str:
    spread = f" ({_number(min(point.r2))} to {_number(max(point.r2))})" if len(point.r2) > 1 else ""
    return f"{_number(statistics.median(point.r2))}{spread}"


def _number(value: float) -> str:
    return f"{value:z.2f}"  # z: no minus before zero
