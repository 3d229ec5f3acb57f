"""What a model costs: parameters and floating point operations, as the papers count them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included, running statistics not."""
    return sum(p.numel() for p in model.parameters())


def gflops(model: nn.Module, height: int = 640, width: int = 640) -> float:
    """Billions of operations for one picture: two for each multiply-add of the convolutions, nothing else counted.

    Runs a copy on the meta device: no arithmetic is done and `model` is left as it is. In training mode the auxiliary
    branch counts too.
    """
    total = 0

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += 2 * output.numel() * conv.weight[0].numel()

    twin = copy.deepcopy(model).to("meta")
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        twin(torch.empty(1, 3, height, width, device="meta"))
    return total / 1e9
