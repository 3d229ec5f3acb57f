"""What a run shows as pictures: what the network sees, what the boxes are like, how the figures move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from yolov9.draw import draw_boxes
from yolov9.evaluation.plots import new_figure
from yolov9.training.journal import read_results
from yolov9.training.loader import Examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from yolov9.training.samples import Sample

_COLUMNS, _ROWS = 4, 4
_TILE = 320
"""Pixels a side of one example on a sheet."""
_DPI = 120
_DOTS = 20_000
"""Boxes on the scatter of sizes, at most."""


def draw_examples(examples: Examples, names: Mapping[int, str], epoch: int, path: Path) -> Path:
    """16 training examples of an epoch, augmented as the network gets them, with their boxes. OSError."""
    sheet = Image.new("RGB", (_COLUMNS * _TILE, _ROWS * _TILE), (114, 114, 114))
    count = min(len(examples), _COLUMNS * _ROWS)
    for place, index in enumerate(np.linspace(0, len(examples) - 1, count).astype(int).tolist()):
        example = examples[(epoch, index)]
        scale = _TILE / example.image.shape[0]
        tile = Image.fromarray(example.image).resize((_TILE, _TILE), Image.Resampling.BILINEAR)
        labels = [names[int(c)] for c in example.classes]
        draw_boxes(tile, [(*(box * scale), name) for box, name in zip(example.boxes, labels, strict=True)])
        sheet.paste(tile, (place % _COLUMNS * _TILE, place // _COLUMNS * _TILE))
    sheet.save(path)
    return path


def draw_labels(samples: Sequence[Sample], names: Mapping[int, str], path: Path) -> Path:
    """How many boxes a class has, where their centres lie and how large they are. OSError."""
    classes = np.concatenate([s.classes for s in samples]) if samples else np.zeros(0, np.int64)
    boxes = (
        np.concatenate([s.boxes / np.tile((s.width, s.height), 2) for s in samples]) if samples else np.zeros((0, 4))
    )
    counts = np.bincount(classes, minlength=len(names))
    figure, axes = new_figure(15, 5, 3)
    bars, centres, sizes = axes
    bars.bar(range(len(names)), counts)
    rotated = 90 if len(names) > 6 else 0
    bars.set_xticks(range(len(names)), [names[i] for i in range(len(names))], rotation=rotated, fontsize=8)
    bars.set(ylabel="boxes", title=f"{len(classes):,} boxes in {len(samples):,} pictures")
    middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centres.hist2d(middle[:, 0], middle[:, 1], bins=40, range=((0, 1), (0, 1)), cmap="Blues")
    centres.set(title="centres", xlabel="x, share of the width", ylabel="y, share of the height")
    centres.invert_yaxis()
    some = np.random.default_rng(0).permutation(len(extent))[:_DOTS]
    sizes.scatter(extent[some, 0], extent[some, 1], s=3, alpha=0.3, linewidths=0)
    sizes.set(title="sizes", xlabel="width, share", ylabel="height, share", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path, dpi=_DPI)
    return path


def draw_curves(results: Path, path: Path) -> Path | None:
    """Losses, accuracy and learning rate over the epochs of a `results.csv`. None if it has no epoch. OSError."""
    rows = read_results(results)
    if not rows:
        return None
    groups = (
        ("losses", ("train/box", "train/cls", "train/dfl", "train/auxiliary")),
        ("accuracy on held-out pictures", ("val/map", "val/map50", "val/map75")),
        ("learning rate", ("lr",)),
    )
    figure, axes = new_figure(15, 4.5, 3)
    for plot, (title, columns) in zip(axes, groups, strict=True):
        for column in columns:
            _line(plot, rows, column)
        plot.set(title=title, xlabel="epoch")
        plot.grid(alpha=0.3)
        if plot.lines:
            plot.legend(frameon=False)
    figure.savefig(path, dpi=_DPI)
    return path


def _line(plot: Axes, rows: Sequence[Mapping[str, str]], column: str) -> None:
    points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
    if points:
        plot.plot(*zip(*points, strict=True), linewidth=1.5, marker="." if len(points) < 20 else "",
                  label=column.rpartition("/")[2])  # fmt: skip
