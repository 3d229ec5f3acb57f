"""Detection head: box and class towers a level, distribution focal decoding to x1, y1, x2, y2 in input pixels.

A training model has two branches, auxiliary and main, on two pyramids. The reference layout names the first branch
`cv2, cv3, dfl` and the second `cv4, cv5, dfl2`: with two of them the *first* is the auxiliary one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolov9.nn.blocks import Conv

REG_MAX = 16
"""Bins of the distribution of each side's distance, 0..15 strides."""
_PRIOR_OBJECTS = 5
"""Objects that a 640x640 picture is assumed to show: sets the initial bias of the class scores."""
_PRIOR_SIZE = 640


@dataclass(frozen=True)
class Towers:
    """What checkpoints differ in: width of the class tower (None: as a new model has it), groups of the box tower."""

    class_width: int | None = None
    box_groups: int = 4
    depthwise: bool = False
    """Class tower of depthwise and 1x1 convolutions in turn, as some releases of Ultralytics have it."""

    def resolve(self, p3_channels: int, classes: int) -> Towers:
        """Without None, for a head whose finest level has `p3_channels`. ValueError if it cannot be built."""
        width = max(p3_channels, min(classes, 100)) if self.class_width is None else self.class_width
        box = _box_width(p3_channels)
        if width < 1:
            raise ValueError(f"class_width {width} is not positive")
        if self.box_groups < 1 or box % self.box_groups or 4 * REG_MAX % self.box_groups:
            raise ValueError(f"box_groups {self.box_groups} does not divide the box tower's width {box}")
        return Towers(width, self.box_groups, self.depthwise)


class RawOutputs(NamedTuple):
    """What a loss needs: for each level, finest first, (B, 4*16 + classes, H/stride, W/stride): logits of the distance
    bins of left, top, right, bottom, then class logits. `auxiliary` is empty without an auxiliary branch."""

    main: list[Tensor]
    auxiliary: list[Tensor]


class DFL(nn.Module):
    """Expected value of each side's distribution: (B, 64, A) logits -> (B, 4, A) distances in strides."""

    def __init__(self) -> None:
        super().__init__()
        # A 1x1 convolution with frozen weights 0..15 in the reference layout: the key is in every checkpoint.
        self.conv = nn.Conv2d(REG_MAX, 1, 1, bias=False).requires_grad_(False)
        # Counted on the CPU: on the meta device, where checkpoints are recognised, it costs a second of imports.
        bins = torch.arange(REG_MAX, dtype=torch.float32, device="cpu")
        self.conv.weight.data[:] = bins.view(1, REG_MAX, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        # A sum, not a convolution or a matrix product: where an engine computes those in bf16 or int8, this stays fp32
        # (OpenVINO in bf16: boxes 14 % nearer to fp32, at the same speed).
        bins = torch.unflatten(x, 1, (4, REG_MAX)).softmax(2)
        return (bins * self.conv.weight.view(1, 1, REG_MAX, 1).to(x.dtype)).sum(2)


class Detect(nn.Module):
    """Towers on the levels of one pyramid, or of two (auxiliary and main) while training.

    In training mode gives `RawOutputs`; in eval mode decodes the main branch and never computes the auxiliary one.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        towers: Towers,
        auxiliary_channels: Sequence[int] = (),
        auxiliary_towers: Towers | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.strides = tuple(strides)
        self.dual = bool(auxiliary_channels)
        self.towers = towers.resolve(channels[0], classes)
        """The main branch's, nothing left to a default."""
        main = _towers(channels, self.strides, classes, towers)
        if self.dual:
            self.cv2, self.cv3 = _towers(auxiliary_channels, self.strides, classes, auxiliary_towers or towers)
            self.cv4, self.cv5 = main
            self.dfl2 = DFL()
        else:
            self.cv2, self.cv3 = main
        self.dfl = DFL()

    def forward(self, main: Sequence[Tensor], auxiliary: Sequence[Tensor] = ()) -> Tensor | RawOutputs:
        box, cls, dfl = (self.cv4, self.cv5, self.dfl2) if self.dual else (self.cv2, self.cv3, self.dfl)
        boxes = [tower(x) for tower, x in zip(box, main, strict=True)]
        scores = [tower(x) for tower, x in zip(cls, main, strict=True)]
        if not self.training:
            return self._decode(boxes, scores, dfl)
        raw = [torch.cat(pair, 1) for pair in zip(boxes, scores, strict=True)]
        if not self.dual:
            return RawOutputs(raw, [])
        towers = zip(self.cv2, self.cv3, auxiliary, strict=True)
        return RawOutputs(raw, [torch.cat((b(x), c(x)), 1) for b, c, x in towers])

    def drop_auxiliary(self) -> None:
        """Keep the main branch only, under the names of a single head."""
        if self.dual:
            self.cv2, self.cv3, self.dfl = self.cv4, self.cv5, self.dfl2
            del self.cv4, self.cv5, self.dfl2
            self.dual = False

    def _decode(self, boxes: Sequence[Tensor], scores: Sequence[Tensor], dfl: DFL) -> Tensor:
        """(B, 4 + classes, A): x1, y1, x2, y2 in input pixels, then scores in 0..1; levels one after the other.

        In fp32 whatever the towers compute in: half precision has steps of half a pixel from x = 512 on.
        """
        distance = dfl(torch.cat([b.flatten(2) for b in boxes], 2).float())
        points, strides = anchors(boxes, self.strides)
        left_top, right_bottom = distance.split([2, 2], 1)
        corners = torch.cat((points - left_top, points + right_bottom), 1) * strides
        return torch.cat((corners, torch.cat([s.flatten(2) for s in scores], 2).float().sigmoid()), 1)


def anchors(levels: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centres of the cells, (2, A): x, y in strides; and the stride of each, (1, A). Row by row, level by level.

    Made from the shapes only, so that an exporter keeps them dynamic and an engine with a static shape folds them.
    """
    points, steps = [], []
    for level, stride in zip(levels, strides, strict=True):
        height, width = level.shape[-2:]
        x = torch.arange(width, dtype=torch.float32, device=level.device) + 0.5
        y = (torch.arange(height, dtype=torch.float32, device=level.device) + 0.5).unsqueeze(1)
        grid = torch.stack((x + 0 * y, y + 0 * x)).flatten(1)  # broadcast by sums: exports to fewer nodes than expand
        points.append(grid)
        steps.append(torch.full_like(grid[:1], stride))
    return torch.cat(points, 1), torch.cat(steps, 1)


def _towers(
    channels: Sequence[int], strides: Sequence[int], classes: int, towers: Towers
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Box and class tower of each level, with their initial biases."""
    resolved, box = towers.resolve(channels[0], classes), _box_width(channels[0])
    width, groups = resolved.class_width, resolved.box_groups
    assert width is not None
    boxes, scores = nn.ModuleList(), nn.ModuleList()
    for c1, bias in zip(channels, initial_class_bias(strides, classes), strict=True):
        last_box = nn.Conv2d(box, 4 * REG_MAX, 1, groups=groups)
        last_class = nn.Conv2d(width, classes, 1)
        assert last_box.bias is not None
        assert last_class.bias is not None
        nn.init.constant_(last_box.bias, 1.0)
        nn.init.constant_(last_class.bias, bias)
        boxes.append(nn.Sequential(Conv(c1, box, 3), Conv(box, box, 3, groups=groups), last_box))
        layers = (
            [_depthwise(c1, width), _depthwise(width, width)]
            if towers.depthwise
            else [Conv(c1, width, 3), Conv(width, width, 3)]
        )
        scores.append(nn.Sequential(*layers, last_class))
    return boxes, scores


def initial_class_bias(strides: Sequence[int], classes: int) -> list[float]:
    """For each level the class logit from which training starts: objects are rare."""
    return [math.log(_PRIOR_OBJECTS / classes / (_PRIOR_SIZE / stride) ** 2) for stride in strides]


def _depthwise(c1: int, c2: int) -> nn.Module:
    """A 3x3 convolution of each channel by itself, then a 1x1 across channels."""
    return nn.Sequential(Conv(c1, c1, 3, groups=c1), Conv(c1, c2))


def _box_width(p3_channels: int) -> int:
    """Width of every box tower, from the channels of the finest level: at least one for each bin of each side."""
    return math.ceil(max(p3_channels // 4, 4 * REG_MAX) / 4) * 4
