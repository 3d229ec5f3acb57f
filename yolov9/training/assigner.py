"""Which anchor points learn which box: the task-aligned assigner of TOOD (arXiv 2108.07755, section 3.2).

Alignment of an anchor point with a box is s^alpha * CIoU^beta: s is its score for the box's class, CIoU compares its
predicted box. Each box gets the `topk` best of the points strictly inside it. A point that several boxes claim goes to
the box of the *image* with which its prediction has the largest CIoU, be it one of these or not. A point's target score
is its alignment, scaled so that the best point of a box has the largest CIoU that the box got.

Nothing loops over images, and nothing is padded: all boxes of a batch lie in one list. They are looked at in chunks, so
that memory is bounded by `CHUNK` and not by boxes x points. A point whose alignment is 0 (it predicts no overlap) is
never a candidate: it would get the target score 0, which is that of background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from yolov9.training.iou import ciou

CHUNK = 1 << 22
"""Pairs of box and anchor point that are looked at together: some 100 MB at the worst, when every point is inside."""
_EPS = 1e-9


@dataclass(frozen=True)
class Truth:
    """The boxes of a batch, in one list of T."""

    image: Tensor
    """(T,) int64: index into the batch."""
    cls: Tensor
    """(T,) int64: class id."""
    box: Tensor
    """(T, 4) float32: x1, y1, x2, y2 in input pixels."""

    def __len__(self) -> int:
        return int(self.image.shape[0])

    def to(self, device: torch.device) -> Truth:
        return Truth(self.image.to(device), self.cls.to(device), self.box.to(device))


class Assignment(NamedTuple):
    """The P positive anchor points of a batch, each with the one box that it learns."""

    image: Tensor
    """(P,) int64"""
    anchor: Tensor
    """(P,) int64"""
    truth: Tensor
    """(P,) int64: index into `Truth`."""
    score: Tensor
    """(P,) float32 in 0..1: the soft target of the box's class, and the weight of the box losses."""


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    truth: Truth,
    *,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """`scores` (B, A, C) in 0..1, `boxes` (B, A, 4) and `points` (A, 2) in input pixels. Computed in float32."""
    scores, boxes = scores.float(), boxes.float()
    anchors, device = points.shape[0], points.device

    def alignment(image: Tensor, anchor: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        overlap = ciou(truth.box[which], boxes[image, anchor]).clamp(min=0)
        return scores[image, anchor, truth.cls[which]].pow(alpha) * overlap.pow(beta), overlap

    claims: list[Tensor] = []  # (n, 2): truth, anchor
    step = max(1, CHUNK // anchors)
    for start in range(0, len(truth), step):
        box = truth.box[start : start + step]
        which, anchor = _inside(points, box).nonzero(as_tuple=True)
        metric, _ = alignment(truth.image[start + which], anchor, start + which)
        dense = torch.zeros(box.shape[0], anchors, device=device)
        dense[which, anchor] = metric
        best, index = dense.topk(min(topk, anchors), 1)
        row, column = (best > 0).nonzero(as_tuple=True)
        claims.append(torch.stack((start + row, index[row, column]), 1))
    if not claims:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return Assignment(empty, empty, empty, torch.zeros(0, device=device))

    claimed_by, anchor = torch.cat(claims).unbind(1)
    key = truth.image[claimed_by] * anchors + anchor  # a point of an image
    key, order, times = _unique(key)
    winner = claimed_by[order]
    contested = times > 1
    winner[contested] = _best_of_image(key[contested], anchors, boxes, truth)
    image, anchor = key // anchors, key % anchors

    metric, overlap = alignment(image, anchor, winner)
    best_metric = torch.zeros(len(truth), device=device).scatter_reduce_(0, winner, metric, "amax")
    best_overlap = torch.zeros(len(truth), device=device).scatter_reduce_(0, winner, overlap, "amax")
    return Assignment(image, anchor, winner, metric * best_overlap[winner] / (best_metric[winner] + _EPS))


def _inside(points: Tensor, box: Tensor) -> Tensor:
    """(T, A) bool: points strictly inside the boxes."""
    x, y = points.unbind(1)
    x1, y1, x2, y2 = box.unsqueeze(2).unbind(1)
    nearest = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    return nearest > _EPS


def _unique(key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted values without repetition, where the first of each stands, and how many there are of each."""
    ordered, order = key.sort(stable=True)
    values, times = torch.unique_consecutive(ordered, return_counts=True)
    return values, order[times.cumsum(0) - times], times


def _best_of_image(key: Tensor, anchors: int, boxes: Tensor, truth: Truth) -> Tensor:
    """For each point the box of its image with the largest CIoU (the first of equals)."""
    image, anchor = key // anchors, key % anchors
    result = torch.empty_like(key)
    step = max(1, CHUNK // max(len(truth), 1))
    for start in range(0, len(key), step):
        part = slice(start, start + step)
        point, which = (image[part, None] == truth.image).nonzero(as_tuple=True)
        overlap = torch.full((len(image[part]), len(truth)), -torch.inf, device=key.device)
        overlap[point, which] = ciou(truth.box[which], boxes[image[part][point], anchor[part][point]]).clamp(min=0)
        result[part] = overlap.argmax(1)
    return result
