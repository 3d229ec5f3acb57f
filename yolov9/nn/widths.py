"""The widths of a pruned network as a table: what its file says beside weights, and how a new network takes them on.

An architecture gives a network the widths that it is designed with. Once channels are removed it has others, layer by
layer; blocks that cut their channels cut elsewhere. The table is JSON:

{"convolutions": {"model.0.conv": [3, 14], ...}, "cuts": {"model.2": [12, 15], ...}, "scales": {"model.30.gamma": [96]}}

with input and output channels of every convolution, the list that `split` (or CBLinear's `widths`) becomes, the size
of what else has a number for each channel, and `towers`: how those of the head's branches, main first, are to be built:
[class width, groups of the box tower, whether the class tower is depthwise]. Shapes tell that no longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from yolov9.nn.blocks import Conv
from yolov9.nn.channels import ChannelError, cut_of, scales_of, trace
from yolov9.nn.head import DFL, REG_MAX, Towers
from yolov9.nn.model import Detector

Widths = dict[str, Any]
_PARTS = {"convolutions", "cuts", "scales", "towers"}
MAX_WIDTH = 1 << 14
"""Of anything in a table, which may come from a stranger."""


class WidthsError(ValueError):
    """A table that does not fit the network: one sentence with the layer."""


def widths(model: Detector) -> Widths:
    """The table of `model`; empty if every width is as its architecture builds it."""
    found = table(model)
    return {} if found == table(_as_built(model)) else found


def table(model: Detector) -> Widths:
    """The table of `model`, pruned or not."""
    return {
        "convolutions": {name: [c.in_channels, c.out_channels] for name, c in _convolutions(model)},
        "cuts": {name: list(getattr(block, attribute)) for name, block, attribute in _cuts(model)},
        "scales": {name: [len(parameter)] for name, parameter in scales_of(model).items()},
        "towers": [[t.class_width, t.box_groups, t.depthwise] for t in _branches(model)],
    }


def towers(widths: Any) -> tuple[Towers, Towers]:
    """Towers of the main and of the auxiliary branch, with which a network is built for `apply_widths`. WidthsError."""
    _check_parts(widths)
    found = widths["towers"]
    if not isinstance(found, list) or len(found) not in (1, 2) or not all(map(_is_tower, found)):
        raise WidthsError(f"towers: wants [class width up to {MAX_WIDTH}, groups, depthwise] of one or two branches")
    branches = [Towers(width, groups, depthwise) for width, groups, depthwise in found]
    return branches[0], branches[-1]


def _is_tower(given: Any) -> bool:
    if not isinstance(given, list) or [type(x) for x in given] != [int, int, bool]:
        return False
    return all(1 <= x <= MAX_WIDTH for x in given[:2])


def _check_parts(widths: Any) -> None:
    if not isinstance(widths, Mapping) or set(widths) != _PARTS:
        raise WidthsError(f"wants the parts {', '.join(sorted(_PARTS))}")


def apply_widths(model: Detector, widths: Mapping[str, Any]) -> Detector:
    """Give a network, freshly built (on the meta device, too), the widths of a table, and return it.

    Weights of layers whose width changes are drawn anew. The table may come from a stranger: WidthsError if it is not
    one, names other layers, is wider than anything in the network, or has widths that do not fit each other.
    """
    convolutions, blocks = dict(_convolutions(model)), {name: (b, a) for name, b, a in _cuts(model)}
    scales = scales_of(model)
    _check_parts(widths)
    limit = min(max(max(c.in_channels, c.out_channels) for c in convolutions.values()), MAX_WIDTH)
    shapes = _lists(widths, "convolutions", dict.fromkeys(convolutions, 2), limit)
    cuts = _lists(widths, "cuts", {name: len(getattr(*block)) for name, block in blocks.items()}, limit)
    sizes = _lists(widths, "scales", dict.fromkeys(scales, 1), limit)
    for name, (inputs, outputs) in shapes.items():
        _check_groups(name, convolutions[name], inputs, outputs)
    for name, (inputs, outputs) in shapes.items():
        _resize(convolutions[name], inputs, outputs)
    for name, places in cuts.items():
        setattr(*blocks[name], places)
    for name, (size,) in sizes.items():
        block, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(block), attribute, nn.Parameter(scales[name].new_ones(size, 1, 1)))
    _resize_norms(model)
    _check(model)
    return model


def _check(model: Detector) -> None:
    """WidthsError unless every map has the channels that its readers expect."""
    boxes, classes = 4 * REG_MAX, len(model.names)
    for branch, wanted in (("cv2", boxes), ("cv3", classes), ("cv4", boxes), ("cv5", classes)):
        for level in getattr(model.head, branch, ()):
            if level[-1].out_channels != wanted:
                raise WidthsError(f"the head gives {level[-1].out_channels} channels instead of {wanted}")
    try:
        trace(model)
    except ChannelError as e:
        raise WidthsError(f"widths that do not fit each other: {e}") from e


def _lists(widths: Mapping[str, Any], part: str, wanted: Mapping[str, int], limit: int) -> dict[str, list[int]]:
    """One part of the table, with exactly the `wanted` layers and so many widths for each, from 1 to `limit`."""
    found = widths[part]
    if not isinstance(found, Mapping):
        raise WidthsError(f"{part}: wants a table of layers")
    for what, keys in (("lacks", set(wanted) - set(found)), ("names a layer that is none:", set(found) - set(wanted))):
        if keys:
            raise WidthsError(f"{part}: {what} {min(map(str, keys))[:80]!r}")
    for name, sizes in found.items():
        if not isinstance(sizes, list) or len(sizes) != wanted[name] or not all(type(size) is int for size in sizes):
            raise WidthsError(f"{name}: wants a list of {wanted[name]} whole numbers")
        if not all(1 <= size <= limit for size in sizes):
            raise WidthsError(f"{name}: the widths {str(sizes)[:80]} are not between 1 and {limit}")
    return {name: list(sizes) for name, sizes in found.items()}


def _check_groups(name: str, conv: nn.Conv2d, inputs: int, outputs: int) -> None:
    if _depthwise(conv):
        if inputs != outputs:
            raise WidthsError(f"{name}: convolves each channel by itself, but has the widths {inputs} and {outputs}")
    elif inputs % conv.groups or outputs % conv.groups:
        raise WidthsError(f"{name}: {conv.groups} groups do not divide the widths {inputs} and {outputs}")


def _depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1


def _resize(conv: nn.Conv2d, inputs: int, outputs: int) -> None:
    if (conv.in_channels, conv.out_channels) == (inputs, outputs):
        return
    bias = None if conv.bias is None else conv.bias.detach()
    if _depthwise(conv):
        conv.groups = outputs
    conv.in_channels, conv.out_channels = inputs, outputs
    weight = conv.weight
    conv.weight = nn.Parameter(weight.new_empty(outputs, inputs // conv.groups, *weight.shape[2:]))
    if bias is not None:
        conv.bias = nn.Parameter(bias.new_empty(outputs))
    conv.reset_parameters()
    if bias is not None and len(bias) == outputs:  # the head's, which say how rare objects are
        conv.bias = nn.Parameter(bias)


def _resize_norms(model: Detector) -> None:
    """A normalisation is as wide as the convolution beside it in its block."""
    for block in list(model.modules()):
        conv, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.num_features != conv.out_channels:
            device, dtype = norm.weight.device, norm.weight.dtype
            new = nn.BatchNorm2d(conv.out_channels, norm.eps, norm.momentum, device=device, dtype=dtype)
            block.bn = new.train(norm.training)


def _as_built(model: Detector) -> Detector:
    """The network, without memory for its weights, that a reader of the file would build without a table."""
    main, *auxiliary = _branches(model)
    with torch.device("meta"):
        built = Detector(model.arch, model.names, main, *auxiliary)
    return built.fuse() if model.fused else built


def _branches(model: Detector) -> list[Towers]:
    """The towers of each branch, main first."""
    head = model.head
    first = _towers(head.cv2, head.cv3)
    return [_towers(head.cv4, head.cv5), first] if head.dual else [first]


def _towers(boxes: Any, classes: Any) -> Towers:
    """With the widest class tower that is left, so that no width of the table exceeds those of the network built so."""
    mixing = (m for tower in classes for m in tower[:-1].modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    width = max(conv.out_channels for conv in mixing)
    return Towers(width, boxes[0][1].conv.groups, depthwise=not isinstance(classes[0][0], Conv))


def _convolutions(model: Detector) -> Iterator[tuple[str, nn.Conv2d]]:
    """All but the frozen weights of the distances' expectation, which are as they are."""
    frozen = {id(m.conv) for m in model.modules() if isinstance(m, DFL)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and id(module) not in frozen:
            yield name, module


def _cuts(model: Detector) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in model.named_modules():
        attribute = cut_of(module)
        if attribute is not None:
            yield name, module, attribute
