"""The blocks of GELAN and of programmable gradient information.

Attribute names (`cv1`, `m`, `conv1`, ...) are those of the reference layout, since they are the keys of every published
state dict. `fuse()` folds batch normalisation into the convolutions, in place, for inference. `split` is where a block
cuts its channels: into equal parts when it is built, anything once it is pruned. Numbers, not computed from a shape, so
that an exporter writes one Split.

What computes inside a stage of GELAN is any of `COMPUTATIONS`. To add one: a class with (c1, c2) that keeps height and
width, a line in that table, and its name in `yolov9.nn.architecture.Computation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolov9.nn.architecture import Computation

BN_EPS = 1e-3
BN_MOMENTUM = 0.03
RES2_SCALE = 4
"""Groups of channels in a Res2 block: Res2Net's default."""


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, SiLU. Padding keeps the size (at stride 1, odd kernels)."""

    def __init__(
        self, c1: int, c2: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c2, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act: nn.Module = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def fuse(self) -> None:
        """Fold the batch normalisation into the convolution, which gets a bias. Nothing to do the second time."""
        if isinstance(self.bn, nn.BatchNorm2d):
            weight, bias = folded(self.conv, self.bn)
            self.conv = _with_bias(self.conv, weight, bias)
            self.bn = nn.Identity()


class RepConvN(nn.Module):
    """Two parallel convolutions (3x3 and 1x1, no identity), summed, then SiLU: one 3x3 convolution once fused."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv1 = Conv(c1, c2, 3, act=False)
        self.conv2 = Conv(c1, c2, 1, act=False)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x) if hasattr(self, "conv") else self.conv1(x) + self.conv2(x))
        return out

    def fuse(self) -> None:
        """Replace both convolutions by one 3x3 `conv` with the same sum."""
        if hasattr(self, "conv"):
            return
        for branch in (self.conv1, self.conv2):
            branch.fuse()
        wide, point = self.conv1.conv, self.conv2.conv
        assert wide.bias is not None
        assert point.bias is not None
        weight = wide.weight.detach() + F.pad(point.weight.detach(), (1, 1, 1, 1))
        self.conv = _with_bias(wide, weight, wide.bias.detach() + point.bias.detach())
        del self.conv1, self.conv2


class Bottleneck(nn.Module):
    """RepConvN, then a 3x3 convolution, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = RepConvN(channels, channels)
        self.cv2 = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.cv2(self.cv1(x))
        return out


class RepNCSP(nn.Module):
    """Cross-stage partial block: half of the width goes through `repeats` bottlenecks, half around them."""

    def __init__(self, c1: int, c2: int, repeats: int) -> None:
        super().__init__()
        half = c2 // 2
        self.cv1 = Conv(c1, half)
        self.cv2 = Conv(c1, half)
        self.cv3 = Conv(2 * half, c2)
        self.m = nn.Sequential(*(Bottleneck(half) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return out


class Residual(nn.Module):
    """ResNet's bottleneck: 1x1 to half of the width, 3x3, 1x1 back, added to the input."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        half = max(c2 // 2, 1)
        self.cv1 = Conv(c1, half)
        self.cv2 = Conv(half, half, 3)
        self.cv3 = Conv(half, c2)
        self.shortcut = _shortcut(c1, c2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.cv3(self.cv2(self.cv1(x)))
        return out


class Res2(nn.Module):
    """Res2Net's bottleneck (arXiv 1904.01169): a hierarchy of residuals inside one block.

    Between two 1x1 convolutions the channels are cut into four groups. The first is left alone; to each further one the
    result of the group before is added (not to the second), then comes a 3x3 convolution of its own: one block sees
    neighbourhoods of four sizes.
    """

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        group = -(-c2 // RES2_SCALE)
        self.split = [group] * RES2_SCALE
        self.cv1 = Conv(c1, group * RES2_SCALE)
        self.m = nn.ModuleList(Conv(group, group, 3) for _ in range(RES2_SCALE - 1))
        self.cv2 = Conv(group * RES2_SCALE, c2)
        self.shortcut = _shortcut(c1, c2)

    def forward(self, x: Tensor) -> Tensor:
        first, *groups = torch.split(self.cv1(x), self.split, 1)
        parts = [first]
        for number, (conv, group) in enumerate(zip(self.m, groups, strict=True)):
            parts.append(conv(group + parts[-1] if number else group))
        out: Tensor = self.shortcut(x) + self.cv2(torch.cat(parts, 1))
        return out


class Dark(nn.Module):
    """Darknet-53's block: 1x1 to half of the width, 3x3 back, added to the input."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        half = max(c2 // 2, 1)
        self.cv1 = Conv(c1, half)
        self.cv2 = Conv(half, c2, 3)
        self.shortcut = _shortcut(c1, c2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.cv2(self.cv1(x))
        return out


def _shortcut(c1: int, c2: int) -> nn.Module:
    """What a residual is added to: the input, projected where the width changes."""
    return nn.Identity() if c1 == c2 else Conv(c1, c2, act=False)


def _chain(block: Callable[[int, int], nn.Module]) -> Callable[[int, int, int], nn.Module]:
    """A computation of `repeats` blocks, one after the other."""

    def build(c1: int, c2: int, repeats: int) -> nn.Module:
        return nn.Sequential(block(c1, c2), *(block(c2, c2) for _ in range(repeats - 1)))

    return build


COMPUTATIONS: dict[Computation, Callable[[int, int, int], nn.Module]] = {
    "csp": RepNCSP,
    "conv": _chain(partial(Conv, kernel=3)),
    "res": _chain(Residual),
    "res2": _chain(Res2),
    "dark": _chain(Dark),
}
"""Module from input channels, output channels and repeats, for each computation that a stage can be built of."""


class ELAN1(nn.Module):
    """Layer aggregation of two plain 3x3 convolutions: the shallow stage of T and S."""

    def __init__(self, c1: int, c2: int, hidden: int, branch: int) -> None:
        super().__init__()
        self.split = [hidden // 2, hidden // 2]
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(hidden // 2, branch, 3)
        self.cv3 = Conv(branch, branch, 3)
        self.cv4 = Conv(hidden + 2 * branch, c2)

    def forward(self, x: Tensor) -> Tensor:
        return _aggregate(x, self.cv1, self.split, [self.cv2, self.cv3], self.cv4)


class GELAN(nn.Module):
    """Stage of the generalised ELAN: layer aggregation over computational blocks of any kind.

    A projection (`cv1`, `hidden` wide) is cut in two. One half passes through `depth` blocks in a row (`cv2`, `cv3`,
    ...), each a computation of `repeats` units followed by a 3x3 convolution, `branch` wide. The last convolution
    (`cv4` at depth 2) joins both halves and what every block gave: the shortest gradient path skips all blocks.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        hidden: int,
        branch: int,
        *,
        computation: Computation = "csp",
        depth: int = 2,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        self.split = [hidden // 2, hidden // 2]
        self.depth = depth
        self.cv1 = Conv(c1, hidden)
        for number in range(depth):
            inner = COMPUTATIONS[computation](branch if number else hidden // 2, branch, repeats)
            self.add_module(f"cv{number + 2}", nn.Sequential(inner, Conv(branch, branch, 3)))
        self.add_module(f"cv{depth + 2}", Conv(hidden + depth * branch, c2))

    def forward(self, x: Tensor) -> Tensor:
        *computed, last = (getattr(self, f"cv{number + 2}") for number in range(self.depth + 1))
        return _aggregate(x, self.cv1, self.split, computed, last)


class RepNCSPELAN4(GELAN):
    """The stage of the published models: GELAN of two RepNCSP, each followed by a 3x3 convolution."""

    def __init__(self, c1: int, c2: int, hidden: int, branch: int, repeats: int = 1) -> None:
        super().__init__(c1, c2, hidden, branch, repeats=repeats)


class AConv(nn.Module):
    """Halves the size: 2x2 average at stride 1, then a 3x3 convolution at stride 2."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv1(F.avg_pool2d(x, 2, 1))
        return out


class ADown(nn.Module):
    """Halves the size: 2x2 average, then half of the channels by 3x3 convolution, half by maximum and 1x1."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.split = [c1 // 2, c1 // 2]
        self.cv1 = Conv(c1 // 2, c2 // 2, 3, 2)
        self.cv2 = Conv(c1 // 2, c2 // 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(F.avg_pool2d(x, 2, 1), self.split, 1)
        return torch.cat((self.cv1(left), self.cv2(F.max_pool2d(right, 3, 2, 1))), 1)


class SPPELAN(nn.Module):
    """Spatial pyramid: three serial 5x5 maxima, aggregated with their input."""

    def __init__(self, c1: int, c2: int, hidden: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, hidden)
        self.cv5 = Conv(4 * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        out: Tensor = self.cv5(torch.cat(parts, 1))
        return out


class CBLinear(nn.Module):
    """One feature map, projected for several levels of another pyramid: a tuple with one map a width."""

    def __init__(self, c1: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.conv = nn.Conv2d(c1, sum(widths), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.conv(x).split(self.widths, 1))


class CBFuse(nn.Module):
    """Adds to the last source map number `split` of every CBLinear source, resized to it (nearest)."""

    def __init__(self, split: int) -> None:
        super().__init__()
        self.split = split

    def forward(self, sources: Sequence[tuple[Tensor, ...] | Tensor]) -> Tensor:
        *linears, target = sources
        assert isinstance(target, Tensor)
        total = target
        for maps in linears:
            total = total + F.interpolate(maps[self.split], size=target.shape[-2:], mode="nearest")
        return total


class Concat(nn.Module):
    """Joins maps of one size along their channels."""

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(sources), 1)


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that computes `bn(conv(x))` in eval mode. Computed in double precision."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    if conv.weight.is_meta:  # shapes only, as when a checkpoint is recognised: arithmetic there is slow
        return torch.empty_like(conv.weight), torch.empty_like(bn.bias)
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = bn.bias.double() - bn.running_mean.double() * scale
    return weight.to(conv.weight.dtype).detach(), bias.to(conv.weight.dtype).detach()


def _with_bias(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution as `like` with this weight and bias."""
    c2, per_group, height, width = weight.shape
    stride, padding = (like.stride[0], like.stride[1]), (height // 2, width // 2)
    conv = nn.Conv2d(
        per_group * like.groups, c2, (height, width), stride, padding, groups=like.groups, device="meta"
    )  # on meta: the weights below replace the ones that it would have drawn at random
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return conv.train(like.training)


def _aggregate(x: Tensor, project: nn.Module, split: list[int], blocks: Sequence[nn.Module], join: nn.Module) -> Tensor:
    """ELAN: cut the projection in two, send the second half through the blocks in a row, join all maps."""
    parts = [*torch.split(project(x), split, 1)]
    for block in blocks:
        parts.append(block(parts[-1]))
    out: Tensor = join(torch.cat(parts, 1))
    return out
