"""Taking channels out of a network, in place: rows and columns of weights, entries of normalisations, lists of cuts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from yolov9.nn.channels import Channels, Ids, cut_of
from yolov9.nn.model import Detector


class KeptPositions(NamedTuple):
    """Where the channels that stayed were among those of the network before."""

    inputs: Ids
    outputs: Ids


Kept = dict[str, KeptPositions]
"""For each convolution and normalisation, by name."""


def remove(model: Detector, channels: Channels, gone: npt.NDArray[np.bool_]) -> Kept:
    """Take out of `model` every channel for which `gone` is true, wherever it occurs. `channels`: of this model.

    ValueError if a fixed one is among them, a layer would be left without channels, or groups would become unequal.
    """
    if gone[channels.fixed].any():
        raise ValueError("a channel of the picture or of the head's outputs cannot be removed")
    modules, kept = dict(model.named_modules()), Kept()
    for name, conv in channels.convolutions.items():
        for ids in (conv.inputs, conv.outputs):
            left = [int((~gone[group]).sum()) for group in np.split(ids, 1 if conv.depthwise else conv.groups)]
            if min(left) == 0 or len(set(left)) > 1:
                raise ValueError(f"{name}: its {conv.groups} groups would keep {left} channels")
    for name, conv in channels.convolutions.items():
        kept[name] = KeptPositions(np.flatnonzero(~gone[conv.inputs]), np.flatnonzero(~gone[conv.outputs]))
        _cut_convolution(modules[name], conv.depthwise, ~gone[conv.inputs], ~gone[conv.outputs])
    for name, ids in channels.norms.items():
        kept[name] = KeptPositions(np.flatnonzero(~gone[ids]), np.flatnonzero(~gone[ids]))
        _cut_norm(modules[name], kept[name].outputs)
    for name, ids in channels.scales.items():
        block, _, attribute = name.rpartition(".")
        old = getattr(modules[block], attribute)
        setattr(modules[block], attribute, nn.Parameter(old.detach()[_at(~gone[ids], old)], old.requires_grad))
    for name, ids in channels.cuts.items():
        cutting = cut_of(modules[name])
        assert cutting is not None
        ends = np.cumsum(getattr(modules[name], cutting))[:-1]
        setattr(modules[name], cutting, [int((~gone[part]).sum()) for part in np.split(ids, ends)])
    return kept


def followed(first: Kept, second: Kept) -> Kept:
    """What is kept after two removals, one after the other."""
    return {
        name: KeptPositions(first[name].inputs[kept.inputs], first[name].outputs[kept.outputs])
        for name, kept in second.items()
    }


def _cut_convolution(
    conv: nn.Module, depthwise: bool, inputs: npt.NDArray[np.bool_], outputs: npt.NDArray[np.bool_]
) -> None:
    assert isinstance(conv, nn.Conv2d)
    groups = 1 if depthwise else conv.groups
    reads = [np.ones(1, np.bool_)] if depthwise else np.split(inputs, groups)
    makes = np.split(outputs, groups)
    weights = conv.weight.detach().chunk(groups)
    pieces = [w[_at(m, w)][:, _at(r, w)] for w, m, r in zip(weights, makes, reads, strict=True)]
    conv.weight = nn.Parameter(torch.cat(pieces).contiguous(), conv.weight.requires_grad)
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach()[_at(outputs, conv.bias)], conv.bias.requires_grad)
    conv.in_channels, conv.out_channels = int(inputs.sum()), int(outputs.sum())
    if depthwise:
        conv.groups = conv.out_channels


def _cut_norm(norm: nn.Module, kept: Ids) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    at = torch.from_numpy(kept).to(norm.weight.device)
    norm.weight = nn.Parameter(norm.weight.detach()[at], norm.weight.requires_grad)
    norm.bias = nn.Parameter(norm.bias.detach()[at], norm.bias.requires_grad)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean, norm.running_var = norm.running_mean[at], norm.running_var[at]
    norm.num_features = len(kept)


def _at(mask: npt.NDArray[np.bool_], like: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(like.device)
