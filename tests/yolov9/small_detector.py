"""A detector for PyTorch that is small, but has every block of the ten architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from yolov9.export import pictures
from yolov9.nn.architecture import parse
from yolov9.nn.blocks import BN_MOMENTUM
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector

EVERY_BLOCK = """
backbone:
  copy:   {block: Identity}
  stem:   {block: Conv, from: image, channels: 8, kernel: 3, stride: 2}
  early:  {block: ELAN1, channels: 8, hidden: 8, branch: 4}
  down2:  {block: AConv, channels: 8}
  down3:  {block: AConv, channels: 16}
  link:   {block: CBLinear, from: down2, widths: [8, 16]}
  deep:   {block: CBLinear, from: down3, widths: [8, 16]}
  second: {block: Conv, from: image, channels: 8, kernel: 3, stride: 2}
  fuse1:  {block: CBFuse, from: [link, deep, second], split: 0}
  next2:  {block: ADown, channels: 16}
  fuse2:  {block: CBFuse, from: [link, deep, next2], split: 1}
  stage:  {block: RepNCSPELAN4, channels: 16, hidden: 16, branch: 8, repeats: 2}
  next3:  {block: ADown, channels: 16}
neck:
  spp:  {block: SPPELAN, channels: 16, hidden: 8}
  up:   {block: Upsample}
  join: {block: Concat, from: [up, stage]}
head:
  out:  {block: Detect, from: [join, spp]}
"""


def every_block(names: Sequence[str] | Mapping[int, str], *, score: float | None = None, seed: int = 5) -> Detector:
    """In eval mode, with random weights and, as trained models have them, statistics of what flows through: whatever
    the picture shows, reaches the predictions. `score`: logit that the class scores are around, so that something is
    found."""
    torch.manual_seed(seed)
    table = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    model = Detector(parse("every-block", EVERY_BLOCK), table, Towers())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = None  # the mean of all that it sees
    for towers in (model.head.cv2, model.head.cv3):
        for tower in towers:
            tower[-1].weight.data.mul_(3)
            if score is not None and towers is model.head.cv3:
                nn.init.constant_(tower[-1].bias, score)
    with torch.no_grad():
        model.train()(torch.from_numpy(pictures(4, 96, 96, seed)).permute(0, 3, 1, 2) / 255)
    for norm in norms:
        norm.momentum = BN_MOMENTUM
    return model.eval()
