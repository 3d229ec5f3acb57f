"""Models for the tests of pruning: every structure that there is, narrow, and no two channels alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolov9.nn.ablation import ablate
from yolov9.nn.architecture import Architecture, from_dict
from yolov9.nn.channels import Channels
from yolov9.nn.model import Detector, build

_WIDTHS = ("channels", "hidden", "branch", "widths")
DIVISORS = {"t": 2, "s": 4, "m": 4, "c": 8, "e": 8}
"""Sizes differ in their layers, not in how wide these are: what is large is tested narrow."""


def narrow(arch: Architecture, divisor: int) -> Architecture:
    """An architecture with all of its layers and a fraction of their widths."""
    sections = arch.to_dict()
    for layers in sections.values():
        for fields in layers.values():
            for key in set(_WIDTHS) & set(fields):
                width = fields[key]
                fields[key] = [w // divisor for w in width] if isinstance(width, list) else width // divisor
    return from_dict(arch.name, sections)


def small(name: str, classes: int = 3, **options: Any) -> Detector:
    """`name` as `build` takes it, narrow."""
    return stirred(build(narrow(ablate(name, **options), DIVISORS[name[-1]]), classes))


def stirred(model: Detector, seed: int = 0) -> Detector:
    """Every normalisation gets values of its own, so that no two channels can be mistaken for each other. In eval mode.

    Biases are large: a channel that is forgotten somewhere shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.copy_(draw(module.weight, 0.8, 1.6))
                module.bias.copy_(draw(module.bias, -0.4, 0.8))
                module.running_mean.copy_(draw(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(draw(module.running_var, 0.3, 1.2))
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(draw(parameter, -0.9, 0.9))
    return model.eval()


def deafen(model: Detector, channels: Channels, gone: Tensor) -> Detector:
    """Zero every weight that reads a channel of `gone`, in place: the whole network, as if those did not exist.

    A depthwise convolution passes its channel on, so there the channel goes on until somebody mixes it.
    """
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, conv in channels.convolutions.items():
            if conv.depthwise:
                continue
            weight = modules[name].weight
            assert isinstance(weight, Tensor)
            width = len(conv.outputs) // conv.groups
            for group, inputs in enumerate(gone[torch.from_numpy(conv.inputs)].chunk(conv.groups)):
                weight[group * width : (group + 1) * width, inputs] = 0
    return model
