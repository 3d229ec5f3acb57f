"""Which detector a state dict in the reference layout belongs to: told by its keys and shapes alone.

Works on tensors of any device, the meta device included, so that a file can be recognised before it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch
import yaml
from torch import Tensor

from yolov9.checkpoints.errors import WeightsError
from yolov9.checkpoints.layouts import some
from yolov9.nn.architecture import Architecture, StageLayer, architecture, names
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector, class_names
from yolov9.nn.widths import WidthsError, apply_widths, towers

State = Mapping[str, Tensor]
_LAYER = re.compile(r"model\.([0-9]{1,4})\.", re.ASCII)
MAX_CLASSES = 1 << 16
"""The largest public vocabulary has 21,841. Names are made for each, and a file may state any number."""


def match(state: State, table: Any = None, arch: Architecture | None = None, widths: Any = None) -> Detector:
    """The detector whose weights these are, itself without memory for them (on the meta device), in training mode.

    `table`: class names, as a list or {id: name}; None gives COCO's for 80 classes, else class0, ...
    `arch`: what it is, if that is known; None finds it among the packaged ones. `widths`: of a pruned model, whose
    architecture is known: the table of `yolov9.nn.widths`.
    WeightsError says what does not fit.
    """
    layout = read_layout(state, arch)
    class_table = _class_table(table, layout.classes)
    if widths is not None:
        return _pruned(layout, class_table, widths, state)
    likely = [arch for arch in layout.candidates if _agrees(arch, state)] or layout.candidates
    fits = [_Fit(_skeleton(arch, layout, class_table), state) for arch in likely]
    if layout.fused:  # it is slow on the meta device, so only the model whose shapes agree is fused
        best = _Fit(min(fits, key=lambda fit: len(fit.shapes)).model.fuse(), state)
    else:
        best = min(fits, key=lambda fit: fit.wrong)
    if best.wrong:
        raise WeightsError(best.describe())
    return best.model


def fill(model: Detector, state: State) -> Detector:
    """Give a model from `match` its weights, as copies in fp32, and return it in eval mode."""
    filled = {}
    for key, expected in model.state_dict().items():
        if key in state:
            given = state[key].detach()
            filled[key] = given.to(expected.dtype, copy=True, memory_format=torch.contiguous_format)
        else:
            filled[key] = torch.zeros_like(expected, device="cpu")  # batch counters, which `match` lets be missing
    model.load_state_dict(filled, assign=True)
    return model.eval()


def coco_names() -> list[str]:
    """The 80 class names of COCO, in the order of every published checkpoint."""
    data = yaml.safe_load((files("configs") / "coco.yaml").read_text(encoding="utf-8"))
    return [str(name) for name in data["names"]]


@dataclass(frozen=True)
class HeadLayout:
    """What the head's tensors say."""

    classes: int
    towers: Towers
    auxiliary: Towers
    fused: bool
    candidates: list[Architecture]
    """Architectures with that many layers and branches; sizes differ in shapes only."""


def read_layout(state: State, arch: Architecture | None = None) -> HeadLayout:
    """Classes, towers, possible architectures of a state dict. WeightsError if its head is missing or too strange."""
    last = max((int(found[1]) for found in map(_LAYER.match, state) if found), default=-1)
    dual = f"model.{last}.cv5.0.2.weight" in state
    if f"model.{last}.cv3.0.2.weight" not in state:
        raise WeightsError(
            f"no detection head in the reference layout (model.N.cv3...) among {len(state)} tensors, such as "
            f"{some(list(state))}"
        )
    arches = [arch] if arch is not None else [architecture(name) for name in names()]
    candidates = [a for a in arches if len(a.layers) == last + 1 and bool(a.head.auxiliary) == dual]
    if not candidates:
        raise WeightsError(
            f"no architecture has {last + 1} layers with {'an' if dual else 'no'} auxiliary branch; there are "
            f"{', '.join(a.name for a in arches)}"
        )
    classes, auxiliary = _towers(state, f"model.{last}.cv2", f"model.{last}.cv3")
    main = auxiliary
    if dual:
        classes, main = _towers(state, f"model.{last}.cv4", f"model.{last}.cv5")
    fused = not any(".bn." in key for key in state)
    return HeadLayout(classes, main, auxiliary, fused, candidates)


def _towers(state: State, box: str, cls: str) -> tuple[int, Towers]:
    """(classes, widths) of one branch of the head, from the shapes of its finest level."""
    try:
        classes, width = state[f"{cls}.0.2.weight"].shape[:2]
        out, per_group = state[f"{box}.0.1.conv.weight"].shape[:2]
        towers = Towers(int(width), int(out) // int(per_group), depthwise=f"{cls}.0.0.0.conv.weight" in state)
    except (KeyError, ValueError, ZeroDivisionError) as e:
        raise WeightsError(f"the head {box.rsplit('.', 1)[0]} lacks tensors or has strange ones: {e}") from e
    if classes > MAX_CLASSES:
        raise WeightsError(f"its head has {classes:,} classes, more than the {MAX_CLASSES:,} that are read")
    return int(classes), towers


def _class_table(table: Any, classes: int) -> dict[int, str]:
    try:
        if table is None:
            return class_names(coco_names() if classes == 80 else classes)
        names = class_names({int(k): v for k, v in table.items()} if isinstance(table, dict) else list(table))
    except (TypeError, ValueError) as e:
        raise WeightsError(f"its class names are not a table of names: {e}") from e
    if len(names) != classes:
        raise WeightsError(f"names {len(names)} classes, but its head has {classes}")
    return names


def _agrees(arch: Architecture, state: State) -> bool:
    """Whether the stages are as wide as the architecture says: spares building models to find that they are not."""
    stages = ((f"model.{n}.cv4.conv.weight", x.layer) for n, x in enumerate(arch.layers))
    return all(state[key].shape[:1] == (x.channels,) for key, x in stages if isinstance(x, StageLayer) and key in state)


def _skeleton(arch: Architecture, layout: HeadLayout, names: dict[int, str]) -> Detector:
    """The model without memory for its weights: shapes only."""
    try:
        with torch.device("meta"):
            return Detector(arch, names, layout.towers, layout.auxiliary)
    except ValueError as e:
        raise WeightsError(f"its head cannot be built: {e}") from e


def _pruned(layout: HeadLayout, names: dict[int, str], widths: Any, state: State) -> Detector:
    """The model of a table of widths, which the shapes of a pruned head do not tell."""
    try:
        main, auxiliary = towers(widths)
        model = _skeleton(layout.candidates[0], replace(layout, towers=main, auxiliary=auxiliary), names)
        fit = _Fit(apply_widths(model.fuse() if layout.fused else model, widths), state)
    except WidthsError as e:
        raise WeightsError(f"its table of widths: {e}") from e
    if fit.wrong:
        raise WeightsError(fit.describe())
    return fit.model


class _Fit:
    """How well a state dict fits a model."""

    def __init__(self, model: Detector, state: State) -> None:
        self.model = model
        self.expected = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        given = {key: tuple(t.shape) for key, t in state.items()}
        # Converters drop the counters of batches, which only a cumulative average would read.
        self.missing = [k for k in self.expected if k not in given and not k.endswith("num_batches_tracked")]
        self.unexpected = [k for k in given if k not in self.expected]
        self.shapes = [
            f"{key} {shape} instead of {self.expected[key]}"
            for key, shape in given.items()
            if key in self.expected and shape != self.expected[key]
        ]
        self.wrong = len(self.missing) + len(self.unexpected) + len(self.shapes)

    def describe(self) -> str:
        parts = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.shapes))
        text = "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in parts if keys)
        return f"fits no architecture; nearest is {self.model.name}, but of its tensors are {text}"
