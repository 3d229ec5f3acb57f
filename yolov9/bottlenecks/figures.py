"""The pictures of the study: grids like the paper's figure 2, and the curve of what is left over depth."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from yolov9.bottlenecks.networks import NETWORKS, Variant
from yolov9.bottlenecks.study import Cell, Curve, Study

Kind = Literal["maps", "reconstructions"]

_DPI = 100
_USUAL_CELL, _LARGEST_CELL = 144, 256
"""Pixels a side of what a grid shows at one depth."""
_LEFT, _GAP, _ROW_HEAD, _TOP = 26, 8, 22, 64
"""Margins of a grid, in pixels: names of networks, between cells, above each row, title and depths."""
_PALETTE = 256
"""Colours of a grid: a third of the file's size, and no difference to be seen."""
_COLOURS = ("#777777", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""Told apart by colour-blind readers too."""
_MARKERS = "osD^vP*Xh"

SHORT_TITLES: dict[Variant, str] = {
    "fresh": "as built, no normalisation",
    "he": "He's weights, no normalisation",
    "batch": "batch normalisation",
}
_GRID_TITLES: dict[Kind, str] = {"maps": "Feature maps of random networks", "reconstructions": "What a probe restores"}
_GRID_NOTES: dict[Kind, str] = {
    "maps": "Mean of the channels; each map in a scale of its own.",
    "reconstructions": "Each pixel's colour, told from the features around it.",
}
_R2_NOTE = "$R^2$: share of the picture that the probe restores."


def grid(study: Study, variant: Variant, kind: Kind, path: Path) -> None:
    """Write a PNG: the input, and beside it a row for each network with a column for each depth. Each says its R2."""
    depths, networks = list(study.settings.depths), list(study.settings.networks)
    side = _cell_side(study.settings.size)
    width = _LEFT + (len(depths) + 1) * (side + _GAP) + _LEFT
    height = _TOP + len(networks) * (side + _ROW_HEAD) + _GAP
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def place(row: int, column: int) -> Axes:
        """Axes of exactly `side` pixels."""
        left = _GAP + column * (side + _GAP) + (_LEFT if column else 0)
        below = height - _TOP - row * (side + _ROW_HEAD) - side
        axes = figure.add_axes((left / width, below / height, side / width, side / height))
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    figure.text(0.5, 1 - 14 / height, f"{_GRID_TITLES[kind]}: {SHORT_TITLES[variant]}", ha="center", va="center")
    _show(place(0, 0), study.pictures[0], "input", side)
    notes = [textwrap.fill(note, side // 6) for note in (_GRID_NOTES[kind], _R2_NOTE)]
    left, top = _GAP / width, 1 - (_TOP + side + 2 * _GAP) / height
    figure.text(left, top, "\n\n".join(notes), fontsize=8, va="top", linespacing=1.3)
    for row, name in enumerate(networks):
        curve = study.curve(name, variant)
        for column, depth in enumerate(depths, 1):
            cell, axes = curve.cells[depth], place(row, column)
            head = f"depth {depth}\n" if row == 0 else ""
            image = _stretched(cell) if kind == "maps" else cell.reconstruction
            _show(axes, image, f"{head}$R^2$ {max(cell.r2, 0):.2f}", side)
            if column == 1:
                axes.set_ylabel(NETWORKS[name].title, fontsize=10)
    _save(figure, path, _PALETTE)


def curves(study: Study, path: Path) -> None:
    """Write a PNG: R2 over depth, a panel for each variant, median of the seeds in a band from lowest to highest."""
    variants = list(study.settings.variants)
    figure = Figure(figsize=(0.8 + 4 * len(variants), 4.4), dpi=_DPI)
    panels: Sequence[Axes] = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for panel, variant in zip(panels, variants, strict=True):
        for number, name in enumerate(study.settings.networks):
            _line(panel, study.curve(name, variant), number)
        panel.set_title(SHORT_TITLES[variant], fontsize=11)
        panel.set_xlabel("depth (convolutions on the longest path)")
        panel.set_ylim(-0.05, 1.03)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=9)
    panels[0].set_ylabel("share of the picture that\na probe restores ($R^2$)")
    handles = panels[0].get_legend_handles_labels()[0]
    if study.settings.controlled:
        handles = [*handles, Line2D([], [], color="black", ls=":", label="control: the same without activations")]
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=10, frameon=False)
    _save(figure, path)


def _line(panel: Axes, curve: Curve, number: int) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    depths = [p.depth for p in curve.points]
    panel.fill_between(
        depths, [min(p.r2) for p in curve.points], [max(p.r2) for p in curve.points], color=colour, alpha=0.2, lw=0
    )
    panel.plot(
        depths, [p.median for p in curve.points], color=colour, marker=_MARKERS[number % len(_MARKERS)], ms=5,
        label=NETWORKS[curve.network].title,
    )  # fmt: skip
    controls = [p.control for p in curve.points if p.control is not None]
    if controls:
        panel.plot(depths, controls, color=colour, ls=":", lw=1.6)


def _cell_side(size: int) -> int:
    """Whole multiples of the picture's pixels, so that no feature is shown wider than its neighbour."""
    return size * max(1, round(_USUAL_CELL / size)) if size <= _LARGEST_CELL else _LARGEST_CELL


def _show(axes: Axes, image: Any, title: str, side: int) -> None:
    axes.imshow(image, interpolation="nearest" if side % len(image) == 0 else "antialiased", aspect="auto")
    axes.set_title(title, fontsize=9, pad=3)


def _stretched(cell: Cell) -> Any:
    """0..1 between the 1st and 99th percentile: each map has its own scale, as only its structure is looked at."""
    low, high = np.percentile(cell.feature_map, (1, 99))
    return np.clip((cell.feature_map - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)


def _save(figure: Figure, path: Path, colours: int | None = None) -> None:
    """A PNG; with so many colours, if given."""
    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    image = Image.open(drawn).convert("RGB")
    if colours is not None:
        # Not the usual median cut: it spends all colours on the maps and leaves the input without its green.
        image = image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
