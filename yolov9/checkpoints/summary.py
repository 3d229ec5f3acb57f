"""What a checkpoint holds, as a table for people and as JSON. Told by its description: no tensor is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yolov9.checkpoints.errors import printable
from yolov9.checkpoints.layouts import TITLES, Layout
from yolov9.checkpoints.reading import Checkpoint
from yolov9.nn.cost import parameters
from yolov9.nn.model import Detector

_NAMES_SHOWN = 12


@dataclass(frozen=True)
class Summary:
    """A checkpoint in words and numbers. The fields are the keys of the JSON."""

    file: str
    bytes: int
    layout: Layout
    part: str
    """Which of several sets of weights is taken: ema, model, ...; empty if there is one."""
    architecture: str
    family: str
    """yolov9 (with the auxiliary branch) or gelan."""
    size: str
    auxiliary: bool
    fused: bool
    classes: int
    names: dict[int, str]
    class_width: int
    box_groups: int
    depthwise: bool
    """Whether the class tower has depthwise convolutions."""
    parameters: int
    dtype: str
    """Of the weights; several are joined by +."""
    epoch: int | None
    """That training stopped at, if it is not finished."""
    notes: tuple[str, ...]


def summarise(checkpoint: Checkpoint, model: Detector) -> Summary:
    """`model`: the skeleton of `checkpoint`."""
    towers = model.head.towers
    family, _, size = model.name.partition("-")
    kinds = {str(t.dtype).removeprefix("torch.") for t in checkpoint.shapes.values() if t.is_floating_point()}
    assert towers.class_width is not None
    return Summary(
        file=str(checkpoint.path),
        bytes=checkpoint.path.stat().st_size,
        layout=checkpoint.layout,
        part=checkpoint.part,
        architecture=model.name,
        family=family,
        size=size,
        auxiliary=bool(model.arch.head.auxiliary),
        fused=model.fused,
        classes=len(model.names),
        names=dict(model.names),
        class_width=towers.class_width,
        box_groups=towers.box_groups,
        depthwise=towers.depthwise,
        parameters=parameters(model),
        dtype="+".join(sorted(kinds)),
        epoch=checkpoint.epoch,
        notes=checkpoint.notes,
    )


def describe(summary: Summary) -> str:
    """A summary as lines of text."""
    return "\n".join(f"{label:<14}{show(summary)}" for label, show in _LINES) + "".join(
        f"\n{'note':<14}{note}" for note in summary.notes
    )


def kind(summary: Summary) -> str:
    """The layout in words: whose it is, for training or not, which weights are taken."""
    if summary.layout in ("r1", "r2", "r2-lightning"):
        use = "training (main and auxiliary branch)" if summary.auxiliary else "converted or gelan (one branch)"
        text = f"{TITLES[summary.layout]}, {use}"
    else:
        text = TITLES[summary.layout]
    return f"{text}; the {summary.part} in it" if summary.part else text


def _classes(summary: Summary) -> str:
    shown = ", ".join(printable(name) for name in list(summary.names.values())[:_NAMES_SHOWN])
    more = summary.classes - _NAMES_SHOWN
    return f"{summary.classes}: {shown}" + (f", ... {more} more" if more > 0 else "")


def _head(summary: Summary) -> str:
    kind = "depthwise, " if summary.depthwise else ""
    groups = f"{summary.box_groups} groups" if summary.box_groups > 1 else "not grouped"
    return f"class tower {kind}{summary.class_width} wide, box tower {groups}"


_LINES: tuple[tuple[str, Callable[[Summary], Any]], ...] = (
    ("file", lambda s: f"{s.file} ({s.bytes:,} bytes)"),
    ("layout", kind),
    ("architecture", lambda s: s.architecture),
    ("classes", _classes),
    ("head", _head),
    ("parameters", lambda s: f"{s.parameters:,} in {s.dtype}"),
    ("fused", lambda s: "yes: for inference only" if s.fused else "no"),
    ("auxiliary", lambda s: "yes, used in training only" if s.auxiliary else "no"),
    ("epoch", lambda s: "not stated" if s.epoch is None else s.epoch),
)
