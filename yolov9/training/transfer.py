"""A model to start from: weights of another one, be it of other classes, and layers that stay as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from yolov9.data.classes import normalised
from yolov9.nn.head import initial_class_bias
from yolov9.nn.model import Detector


class TransferError(ValueError):
    """Weights that do not fit the model, or a layer that it does not have."""


_CLASS_OUTPUT = re.compile(r"(aux_)?cv3\.\d\.2\.(weight|bias)")
"""The last convolution of a class tower: a row a class."""


@torch.no_grad()
def transfer(source: Detector, target: Detector) -> tuple[int, list[str]]:
    """Copy what fits from `source`, layer by layer name, -> (tensors copied, class names taken over).

    The auxiliary branch comes along if both have one. Class outputs are copied row by row, for classes of the same
    name; the others stay as they were made. TransferError if nothing of the main branch fits.
    """
    given = _by_layer(source)
    rows = {normalised(name): i for i, name in source.names.items()}
    pairs = [(i, rows[normalised(name)]) for i, name in target.names.items() if normalised(name) in rows]
    to, of = [i for i, _ in pairs], [j for _, j in pairs]
    copied = 0
    for (layer, key), value in _by_layer(target).items():
        other = given.get((layer, key))
        if other is None:
            continue
        if layer == "detect" and _CLASS_OUTPUT.fullmatch(key):
            if value.shape[1:] == other.shape[1:]:
                value[to] = other[of].to(value.dtype)
                copied += bool(to)
        elif value.shape == other.shape:
            value.copy_(other)
            copied += value.ndim > 0
    if not copied:
        raise TransferError(f"nothing of {source.name} fits {target.name}")
    return copied, [target.names[i] for i in to]


@torch.no_grad()
def with_classes(model: Detector, names: Mapping[int, str]) -> tuple[Detector, list[str]]:
    """`model`, changed in place, for other classes, -> (it, names of the classes that it knew already).

    All else stays as it is, widths of a pruned model, too. TransferError if its weights are fused.
    """
    if model.fused:
        raise TransferError("its weights are fused for inference; training wants the file from before that")
    if model.names == dict(names):
        return model, list(names.values())
    rows = {normalised(name): i for i, name in model.names.items()}
    kept = {i: rows[normalised(name)] for i, name in names.items() if normalised(name) in rows}
    head = model.head
    fresh = initial_class_bias(head.strides, len(names))
    for towers in (head.cv3, head.cv5) if head.dual else (head.cv3,):
        for tower, bias in zip(towers, fresh, strict=True):
            assert isinstance(tower, nn.Sequential)
            old = tower[-1]
            assert isinstance(old, nn.Conv2d)
            assert old.bias is not None
            new = nn.Conv2d(old.in_channels, len(names), 1).to(old.weight.device, old.weight.dtype)
            assert new.bias is not None
            new.bias.fill_(bias)
            for to, of in kept.items():
                new.weight[to], new.bias[to] = old.weight[of], old.bias[of]
            tower[-1] = new
    head.classes = len(names)
    model.names = dict(names)
    return model, [names[i] for i in kept]


def freeze(model: Detector, layers: Sequence[str]) -> list[str]:
    """Keep layers or whole sections (backbone, neck, auxiliary) by name, -> the layers. TransferError for others."""
    known = {x.name: x.section for x in model.arch.layers}
    unknown = [x for x in layers if x not in known and x not in set(known.values())]
    if unknown:
        raise TransferError(
            f"freeze: {unknown[0]!r} is neither a section nor a layer of {model.name}: {', '.join(known)}"
        )
    frozen = [name for name, section in known.items() if name in layers or section in layers]
    for name, module in zip(known, model.model, strict=True):
        if name in frozen:
            module.requires_grad_(False)
    return frozen


def train_mode(model: Detector) -> None:
    """Training mode, but for frozen layers, whose running statistics stay, too."""
    model.train()
    for module in model.model:
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            for m in module.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eval()


def _by_layer(model: Detector) -> dict[tuple[str, str], Tensor]:
    """{(layer's name, key inside of it): tensor}; in a head the main branch goes by one name, with a second branch or
    without."""
    found = {}
    dual = model.head.dual
    for named, module in zip(model.arch.layers, model.model, strict=True):
        for key, value in module.state_dict().items():
            if named is model.arch.layers[-1]:
                first, _, rest = key.partition(".")
                main = {"cv4": "cv2", "cv5": "cv3", "dfl2": "dfl"}
                auxiliary = {"cv2": "aux_cv2", "cv3": "aux_cv3", "dfl": "aux_dfl"}
                renamed = (main | auxiliary).get(first, first) if dual else first
                found["detect", f"{renamed}.{rest}"] = value
            else:
                found[named.name, key] = value
    return found
