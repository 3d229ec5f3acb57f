"""What a batch of predictions costs: class, box and distribution focal loss of the main and of the auxiliary branch.

Each branch has an assignment of its own. The auxiliary branch (paper, section 3.2) counts `auxiliary` times; it is
there for its gradients, which reach the shared layers through paths that kept more of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from yolov9.nn.head import REG_MAX, RawOutputs, anchors
from yolov9.training.assigner import Truth, assign
from yolov9.training.iou import ciou


@dataclass(frozen=True)
class Gains:
    """What each part of the loss is multiplied by."""

    box: float = 7.5
    cls: float = 0.5
    dfl: float = 1.5
    auxiliary: float = 0.25
    """The auxiliary branch's share of the total."""


class Losses(NamedTuple):
    """`total` is what to call backward on; the others are for people, without gradient."""

    total: Tensor
    """Scalar: all parts with their gains, times the batch size."""
    box: Tensor
    cls: Tensor
    dfl: Tensor
    """Of the main branch, with gains, a picture."""
    auxiliary: Tensor
    """Sum of the auxiliary branch's three parts, before its share; 0 without one."""


Reduce = Callable[[Tensor], Tensor]
"""Mean over all processes, of a scalar."""


class DetectionLoss:
    """Loss of a `Detector` in training mode.

    `reduce` makes the sum of target scores the mean over W processes. The gradients of `total`, summed over them, are
    then those of one process with all pictures; so they are, too, where a process has no box at all.
    """

    def __init__(
        self,
        strides: Sequence[int],
        gains: Gains | None = None,
        *,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        reduce: Reduce | None = None,
    ) -> None:
        self.strides = tuple(strides)
        self.gains = gains or Gains()
        self._assigner = {"topk": topk, "alpha": alpha, "beta": beta}
        self._reduce = reduce or (lambda total: total)

    def __call__(self, outputs: RawOutputs, truth: Truth, known: Tensor | None = None) -> Losses:
        """`known` (B, C) bool: classes that are labelled in a picture; those that are not cost nothing there, be they
        seen or not. None: all of them are."""
        batch = outputs.main[0].shape[0]
        main = self._branch(outputs.main, truth, known)
        total = torch.stack(main).sum()
        auxiliary = total.new_zeros(())
        if outputs.auxiliary:
            auxiliary = torch.stack(self._branch(outputs.auxiliary, truth, known)).sum()
            total = total + self.gains.auxiliary * auxiliary
        box, cls, dfl = (part.detach() for part in main)
        return Losses(total * batch, box, cls, dfl, auxiliary.detach())

    def _branch(self, levels: Sequence[Tensor], truth: Truth, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Box, class and DFL part of one branch, with gains, divided by the sum of target scores."""
        grid, strides = anchors(levels, self.strides)
        points, strides = grid.T, strides.T  # (A, 2) in strides, (A, 1)
        # float32 whatever the network computes in: powers of 6 and sums over 8,400 points do not fit half precision.
        joined = torch.cat([x.flatten(2) for x in levels], 2).float().transpose(1, 2)
        bins, logits = torch.split(joined, [4 * REG_MAX, joined.shape[2] - 4 * REG_MAX], 2)
        sides = torch.arange(REG_MAX, dtype=torch.float32, device=bins.device)
        with torch.no_grad():
            distance = torch.unflatten(bins, 2, (4, REG_MAX)).softmax(3) @ sides
            boxes = _corners(points, distance) * strides
        found = assign(logits.detach().sigmoid(), boxes, points * strides, truth, **self._assigner)  # type: ignore[arg-type]
        score = found.score if known is None else found.score * known[found.image, truth.cls[found.truth]]
        total = self._reduce(score.sum()).clamp(min=1)

        # Binary cross entropy with soft targets, without a target for each of B x A x C: softplus(x) - target * x.
        background = F.softplus(logits).sum(1)
        background = (background if known is None else background * known).sum()
        positive = logits[found.image, found.anchor]
        wanted = positive.gather(1, truth.cls[found.truth, None]).squeeze(1)
        cls = (background - (wanted * score).sum()) / total

        chosen = torch.unflatten(bins[found.image, found.anchor], 1, (4, REG_MAX))
        point, stride = points[found.anchor], strides[found.anchor]
        target = truth.box[found.truth] / stride
        predicted = _corners(point, chosen.softmax(2) @ sides)
        box = ((1 - ciou(predicted, target)) * score).sum() / total
        dfl = (
            _distribution(chosen, torch.cat((point - target[:, :2], target[:, 2:] - point), 1)) * score
        ).sum() / total
        gains = self.gains
        return gains.box * box, gains.cls * cls, gains.dfl * dfl


def _corners(points: Tensor, distance: Tensor) -> Tensor:
    """(..., 2) and left, top, right, bottom (..., 4) -> x1, y1, x2, y2."""
    left_top, right_bottom = torch.split(distance, [2, 2], -1)
    return torch.cat((points - left_top, points + right_bottom), -1)


def _distribution(bins: Tensor, distance: Tensor) -> Tensor:
    """Distribution focal loss (arXiv 2006.04388, eq. 6): bins (P, 4, 16) logits, distance (P, 4) in strides -> (P,),
    the mean of the sides. Cross entropy with the two bins around the distance, weighted by nearness."""
    distance = distance.clamp(0, REG_MAX - 1 - 0.01)
    low = distance.floor()
    share = distance - low
    logs = bins.log_softmax(2)
    index = low.long().unsqueeze(2)
    at_low, at_high = logs.gather(2, index).squeeze(2), logs.gather(2, index + 1).squeeze(2)
    return -((1 - share) * at_low + share * at_high).mean(1)
