"""Complete IoU of pairs of boxes: what the assigner ranks by and the box loss learns from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = 1e-7


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """CIoU of boxes x1, y1, x2, y2, pair by pair: (..., 4) and (..., 4) -> (...), from -1 or so to 1.

    IoU - distance^2 / diagonal^2 - alpha * v, where v compares aspect ratios (Zheng et al., arXiv 1911.08287, eq. 10).
    As there, alpha is a weight and not differentiated.
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1 + _EPS, bx2 - bx1, by2 - by1 + _EPS
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    iou = intersection / (aw * ah + bw * bh - intersection + _EPS)
    diagonal = (
        (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) ** 2
        + (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)) ** 2
        + _EPS
    )
    distance = ((bx1 + bx2 - ax1 - ax2) ** 2 + (by1 + by2 - ay1 - ay2) ** 2) / 4
    v = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + _EPS))
    return iou - (distance / diagonal + v * alpha)
