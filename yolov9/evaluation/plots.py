"""Curves and the confusion matrix as PNG, by matplotlib, without a display and without its global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from yolov9.evaluation.confusion import CONFIDENCE, IOU, Counts
from yolov9.evaluation.curves import GRID, RECALLS, Curve
from yolov9.evaluation.results import EvaluationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

_DPI = 150
_NAMED_CLASSES = 12
"""More lines than that cannot be told apart by colour: they are drawn thin and grey, and the mean alone has a name."""
_NUMBERED_CELLS = 20
"""A larger matrix has no room for numbers in its cells."""
_NAMED_CELLS = 100


def draw_all(folder: Path, names: Sequence[str], curves: Sequence[Curve], confusion: Counts) -> list[Path]:
    """Write all pictures into an existing folder and return them. EvaluationError if matplotlib is missing; OSError.

    `names`, `curves`: of the evaluated classes, in one order. `confusion`: see `confusion.confusion`."""
    kept = [(name, curve) for name, curve in zip(names, curves, strict=True) if curve.objects]
    by_confidence: list[tuple[str, str, Callable[[Curve], Floats]]] = [
        ("f1_curve", "F1", lambda c: c.f1),
        ("precision_curve", "precision", lambda c: c.precision),
        ("recall_curve", "recall", lambda c: c.recall),
    ]
    written = []
    for file, title, of in by_confidence:
        lines = [(name, of(curve)) for name, curve in kept]
        written.append(_save(_lines(GRID, lines, ("confidence", title)), folder / f"{file}.png"))
    lines = [(f"{name} {curve.envelope.mean():.3f}", curve.envelope) for name, curve in kept]
    written.append(_save(_lines(RECALLS, lines, ("recall", "precision at IoU .5")), folder / "pr_curve.png"))
    written.append(_save(_matrix(names, confusion), folder / "confusion_matrix.png"))
    return written


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its plots, side by side. EvaluationError if matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError(f"pictures need matplotlib ({error}): pip install 'yolov9-server[train]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path


def _lines(x: Floats, lines: Sequence[tuple[str, Floats]], axes: tuple[str, str]) -> Figure:
    figure, (plot,) = new_figure(8, 5.5)
    named = len(lines) <= _NAMED_CLASSES
    for name, y in lines:
        if named:
            plot.plot(x, y, linewidth=1.2, label=name)
        else:
            plot.plot(x, y, linewidth=0.6, color="0.75")
    mean = np.mean([y for _, y in lines], axis=0)
    label = f"all {mean.mean():.3f}" if axes[0] == "recall" else f"all, best {mean.max():.2f} at {x[mean.argmax()]:.3f}"
    plot.plot(x, mean, linewidth=2.5, color="tab:blue" if not named else "black", label=label)
    plot.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=axes[0], ylabel=axes[1])
    plot.grid(alpha=0.3)
    plot.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _matrix(names: Sequence[str], counts: Counts) -> Figure:
    """Rows as shares of their true class; what was found where nothing is, as shares of all such."""
    size = len(names) + 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(5.0, 0.45 * size + 2), 16.0)
    figure, (plot,) = new_figure(side + 1, side)
    image = plot.imshow(np.ma.masked_equal(shares, 0), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=plot, fraction=0.046, label="share of the true class")
    if size <= _NAMED_CELLS:
        font = 9 if size <= _NUMBERED_CELLS else 7
        plot.set_xticks(range(size), [*names, "missed"], rotation=90, fontsize=font)
        plot.set_yticks(range(size), [*names, "nothing there"], fontsize=font)
    if size <= _NUMBERED_CELLS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{shares[row, column]:.2f}\n{counts[row, column]}"
            plot.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    plot.set(xlabel="found", ylabel="true", title=f"confidence ≥ {CONFIDENCE}, IoU ≥ {IOU}")
    return figure
