"""The networks that are compared: the same width, resolution and initial weights; only the wiring differs.

A network is a 3x3 stem and then one kind of block, again and again, all `width` channels wide at the picture's own
size, so that a probe of its features has the same number of inputs everywhere. *Depth* is the number of convolutions on
the longest path from the picture, 1x1 ones included; it is counted in the modules themselves (`path_lengths`), not
declared. The beginning of a deep network is a shallow one: one pass gives the features at every depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from yolov9.nn import blocks
from yolov9.nn.architecture import Computation

Variant = Literal["fresh", "he", "batch"]
Activation = Literal["relu", "silu", "none"]
"""none: a linear network, for comparison."""
VARIANTS: tuple[Variant, ...] = get_args(Variant)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

VARIANT_TEXT: dict[Variant, str] = {
    "fresh": "as built: PyTorch's initial weights, no normalisation (batch normalisation of a new model in eval mode)",
    "he": "He's initial weights, no normalisation: every convolution keeps the variance",
    "batch": "batch normalisation with the statistics of the pictures, as in training",
}
"""What the signals are scaled by. In `fresh` a convolution with ReLU leaves a sixth of the variance, so that residual
branches are weak; in the others it keeps all. The answer depends on it: all are shown."""


class PostResidual(nn.Module):
    """ResNet's basic block: two 3x3 convolutions, added to the input, then the activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = blocks.Conv(channels, channels, 3)
        self.cv2 = blocks.Conv(channels, channels, 3, act=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.cv2(self.cv1(x)))
        return out


@dataclass(frozen=True)
class Wiring:
    title: str
    description: str
    block: Callable[[int], nn.Module]
    """One block of the given width."""


def _gelan(computation: Computation, width: int) -> nn.Module:
    return blocks.GELAN(width, width, width, width // 2, computation=computation)


NETWORKS: dict[str, Wiring] = {
    "plainnet": Wiring("PlainNet", "3x3 convolutions in a row", lambda width: blocks.Conv(width, width, 3)),
    "resnet": Wiring("ResNet", "basic blocks: two 3x3 convolutions added to their input, then activated", PostResidual),
    "cspnet": Wiring(
        "CSPNet",
        "cross-stage partial blocks (RepNCSP): half of the width passes a bottleneck, half goes around it, both joined",
        lambda width: blocks.RepNCSP(width, width, 1),
    ),
    "gelan": Wiring(
        "GELAN", "YOLOv9's stage (RepNCSPELAN4): layer aggregation over two CSP blocks", partial(_gelan, "csp")
    ),
    "resnet-v2": Wiring(
        "ResNet v2", "residual blocks that nothing follows: the input is added to all the way", blocks.Bottleneck
    ),
    **{
        f"gelan-{name}": Wiring(f"GELAN-{name}", f"layer aggregation over blocks of kind {name}", partial(_gelan, name))
        for name in blocks.COMPUTATIONS
        if name != "csp"
    },
}
FIGURE_2 = ("plainnet", "resnet", "cspnet", "gelan")
"""Those of the paper's figure 2, in its order."""
WIDTH_MULTIPLE = 16
"""Every block can halve and quarter its width."""


@dataclass(frozen=True)
class Paths:
    """Convolutions on a way through a module: on the longest, on the shortest, and 3x3 ones alone on the longest."""

    longest: int
    shortest: int
    longest_3x3: int


@dataclass(frozen=True)
class Features:
    """(N, width, H, W) float32 at one depth of a network."""

    depth: int
    values: Tensor


class Network(nn.Module):
    """Stem and blocks, to at least `depth` - half a block convolutions on the longest path."""

    def __init__(self, name: str, width: int, depth: int, variant: Variant, activation: Activation, seed: int) -> None:
        """`width`: a multiple of WIDTH_MULTIPLE. Draws its weights from `seed` alone."""
        super().__init__()
        if width <= 0 or width % WIDTH_MULTIPLE:
            raise ValueError(f"width {width} is not a positive multiple of {WIDTH_MULTIPLE}")
        wiring = NETWORKS[name]
        self.block_paths = path_lengths(wiring.block(width), width)
        count = max(round((depth - 1) / self.block_paths.longest), 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = blocks.Conv(3, width, 3)
            self.blocks = nn.ModuleList(wiring.block(width) for _ in range(count))
            if variant == "he":
                for module in self.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        _adapt(self, activation, normalised=variant == "batch")
        self._rescaled = variant != "batch"
        self.train()  # batch normalisation by the batch's own statistics

    @property
    def depths(self) -> list[int]:
        """Where features can be taken: after the stem and after every block."""
        return [1 + i * self.block_paths.longest for i in range(len(self.blocks) + 1)]

    def nearest(self, depth: int) -> int:
        """The one of `depths` that comes nearest."""
        return min(self.depths, key=lambda d: (abs(d - depth), d))

    def paths(self, depth: int) -> Paths:
        """Ways from the picture to `depth`, which is one of `depths`."""
        block, count = self.block_paths, (depth - 1) // self.block_paths.longest
        return Paths(depth, 1 + count * block.shortest, 1 + count * block.longest_3x3)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Iterator[Features]:
        """At every depth in turn. `pictures`: (N, 3, H, W) float32 of zero mean and unit variance.

        Without normalisation the signal is scaled to unit variance between blocks, as one: 200 convolutions would leave
        float32's range. ReLU networks without biases give the same features but for that factor.
        """
        signal = self.stem(pictures)
        yield Features(1, signal)
        for number, block in enumerate(self.blocks, 1):
            signal = block(signal)
            if self._rescaled:
                signal = signal / signal.std().clamp_min(torch.finfo(signal.dtype).tiny)
            yield Features(1 + number * self.block_paths.longest, signal)


def path_lengths(module: nn.Module, channels: int, side: int = 4) -> Paths:
    """Counted in the graph that autograd keeps of one run: `module` takes (N, channels, side, side), gives a tensor."""
    picture = torch.zeros(2, channels, side, side, requires_grad=True)
    known: dict[Any, Paths | None] = {}

    def paths(node: Any) -> Paths | None:
        """From the input to what `node` made; None if nothing leads there, as for a weight."""
        if node not in known:
            if hasattr(node, "variable"):
                known[node] = Paths(0, 0, 0) if node.variable is picture else None
            else:
                before = [found for source, _ in node.next_functions if source and (found := paths(source))]
                known[node] = _joined(before, node) if before else None
        return known[node]

    found = paths(module(picture).grad_fn)
    assert found is not None
    return found


def _joined(before: Sequence[Paths], node: Any) -> Paths:
    convolution = "Convolution" in node.name()
    wide = convolution and tuple(node._saved_weight.shape[2:]) == (3, 3)
    return Paths(
        max(p.longest for p in before) + convolution,
        min(p.shortest for p in before) + convolution,
        max(p.longest_3x3 for p in before) + wide,
    )


def _adapt(module: nn.Module, activation: Activation, normalised: bool) -> None:
    """Exchange activations, and take batch normalisation out where there is to be none. In place."""
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU) and activation != "silu":
            setattr(module, name, nn.ReLU() if activation == "relu" else nn.Identity())
        elif isinstance(child, nn.BatchNorm2d) and not normalised:
            setattr(module, name, nn.Identity())
        else:
            _adapt(child, activation, normalised)
