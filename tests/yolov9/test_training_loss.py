"""Assigner and loss against brute force: loops over images, boxes and points, written from the facts alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import yolov9.training.assigner as assigner
from yolov9.nn.head import RawOutputs
from yolov9.training.assigner import Assignment, Truth, assign
from yolov9.training.iou import ciou
from yolov9.training.loss import DetectionLoss, Gains

STRIDES = (8, 16, 32)
SIZE = 96


def _ciou(a: list[float], b: list[float]) -> float:
    """CIoU from the paper's formula, with the usual 1e-7 where something could be divided by zero."""
    eps = 1e-7
    aw, ah, bw, bh = a[2] - a[0], a[3] - a[1] + eps, b[2] - b[0], b[3] - b[1] + eps
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    iou = inter / (aw * ah + bw * bh - inter + eps)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2 + eps
    distance = ((b[0] + b[2] - a[0] - a[2]) ** 2 + (b[1] + b[3] - a[1] - a[3]) ** 2) / 4
    v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    return iou - distance / diagonal - v * v / (v - iou + 1 + eps)


def _points() -> tuple[Tensor, Tensor]:
    """Centres in pixels (A, 2) and strides (A,)."""
    rows = [
        ((x + 0.5) * s, (y + 0.5) * s, float(s)) for s in STRIDES for y in range(SIZE // s) for x in range(SIZE // s)
    ]
    table = torch.tensor(rows)
    return table[:, :2], table[:, 2]


def _brute_assign(
    scores: Tensor, boxes: Tensor, points: Tensor, truth: Truth
) -> dict[tuple[int, int], tuple[int, float]]:
    """{(image, anchor): (truth, target score)}"""
    best: dict[tuple[int, int], tuple[int, float]] = {}
    for b in range(scores.shape[0]):
        mine = [t for t in range(len(truth)) if int(truth.image[t]) == b]
        overlap = {
            (t, a): max(0.0, _ciou(truth.box[t].tolist(), boxes[b, a].tolist()))
            for t in mine
            for a in range(len(points))
        }
        align = {(t, a): float(scores[b, a, int(truth.cls[t])]) ** 0.5 * o**6 for (t, a), o in overlap.items()}
        claims: dict[int, list[int]] = {}
        for t in mine:
            x1, y1, x2, y2 = truth.box[t].tolist()
            inside = [a for a, (x, y) in enumerate(points.tolist()) if x1 < x < x2 and y1 < y < y2 and align[t, a] > 0]
            for a in sorted(inside, key=lambda a: -align[t, a])[:10]:
                claims.setdefault(a, []).append(t)
        owner = {a: ts[0] if len(ts) == 1 else max(mine, key=lambda t: overlap[t, a]) for a, ts in claims.items()}
        for t in mine:
            own = [a for a, o in owner.items() if o == t]
            if own:
                top, most = max(align[t, a] for a in own), max(overlap[t, a] for a in own)
                best |= {(b, a): (t, align[t, a] / (top + 1e-9) * most) for a in own}
    return best


def _case(seed: int, images: int, classes: int, count: int) -> tuple[Tensor, Tensor, Tensor, Truth]:
    g = torch.Generator().manual_seed(seed)
    points, _ = _points()
    a = len(points)
    truth = _truth(g, images, classes, count)
    boxes = torch.cat((points - 20, points + 20), 1).repeat(images, 1, 1) + 12 * torch.randn(images, a, 4, generator=g)
    return torch.rand(images, a, classes, generator=g), boxes, points, truth


def _truth(g: torch.Generator, images: int, classes: int, count: int) -> Truth:
    corner = torch.rand(count, 2, generator=g) * 60
    size = torch.rand(count, 2, generator=g) * 60 + 2
    return Truth(
        torch.randint(images, (count,), generator=g),
        torch.randint(classes, (count,), generator=g),
        torch.cat((corner, corner + size), 1),
    )


def _as_dict(found: Assignment) -> dict[tuple[int, int], tuple[int, float]]:
    return {(int(i), int(a)): (int(t), float(s)) for i, a, t, s in zip(*found, strict=True)}


@given(st.integers(0, 10_000))
@settings(max_examples=50)
def test_ciou_is_the_formula(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(20, 4, generator=g, dtype=torch.float64) * 50 for _ in range(2))  # slivers, too: in double
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    wanted = torch.tensor([_ciou(p, q) for p, q in zip(a.tolist(), b.tolist(), strict=True)], dtype=torch.float64)
    torch.testing.assert_close(ciou(a, b), wanted, atol=1e-9, rtol=0)
    fat = torch.cat((a[:, :2], a[:, 2:] + 1), 1)
    torch.testing.assert_close(ciou(fat, fat), torch.ones_like(wanted), atol=1e-6, rtol=0)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(0, 25))
@settings(max_examples=25)
def test_assigns_what_brute_force_does(seed: int, images: int, classes: int, count: int) -> None:
    case = _case(seed, images, classes, count)
    found, wanted = _as_dict(assign(*case)), _brute_assign(*case)
    assert {k: t for k, (t, _) in found.items()} == {k: t for k, (t, _) in wanted.items()}
    for key, (_, score) in wanted.items():
        assert found[key][1] == pytest.approx(score, abs=2e-4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(5, 3, 4, 40)
    whole = _as_dict(assign(*case))
    monkeypatch.setattr(assigner, "CHUNK", 500)
    assert _as_dict(assign(*case)) == whole
    assert len(whole) > 40


def test_a_contested_point_may_go_to_a_box_that_did_not_claim_it() -> None:
    """The largest CIoU over all boxes of the image decides, whoever claimed."""
    points = torch.tensor([[50.0, 50.0]])
    boxes = torch.tensor([[[40.0, 40.0, 90.0, 90.0]]])
    claiming = [[45.0, 45.0, 80.0, 80.0], [48.0, 48.0, 100.0, 100.0]]
    beside = [52.0, 40.0, 90.0, 90.0]  # the point is not inside, yet this is what its prediction fits best
    truth = Truth(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long), torch.tensor([*claiming, beside]))
    overlaps = ciou(truth.box, boxes[0])
    assert overlaps.argmax() == 2
    found = assign(torch.full((1, 1, 1), 0.5), boxes, points, truth)
    assert found.truth.tolist() == [2]
    assert float(found.score) == pytest.approx(float(overlaps[2]), abs=1e-5)


def test_a_thousand_boxes_in_every_picture_stay_within_bounds() -> None:
    """The dense way would hold 16 x 1000 x 2100 pairs several times over: gigabytes."""
    g = torch.Generator().manual_seed(0)
    points = torch.cat(
        [torch.cartesian_prod(torch.arange(s / 2, 320, s), torch.arange(s / 2, 320, s)) for s in STRIDES]
    )
    boxes = torch.cat((points - 30, points + 30), 1).repeat(4, 1, 1)
    corner = torch.rand(4000, 2, generator=g) * 200
    truth = Truth(torch.arange(4000) % 4, torch.randint(3, (4000,), generator=g), torch.cat((corner, corner + 100), 1))
    scores = torch.rand(4, len(points), 3, generator=g)
    with _Largest() as largest:
        found = assign(scores, boxes, points, truth)
    assert len(found.truth) > 1000
    assert largest.bytes <= 2 * 8 * assigner.CHUNK  # the two int64 indices of every pair of a chunk


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result


def _outputs(g: torch.Generator, images: int, classes: int) -> list[Tensor]:
    return [torch.randn(images, 64 + classes, SIZE // s, SIZE // s, generator=g).requires_grad_() for s in STRIDES]


def _brute_loss(levels: list[Tensor], truth: Truth, known: Tensor | None = None) -> tuple[float, float, float]:
    """Box, class, DFL with gains, from the definition: a target for every point and class."""
    points, strides = _points()
    joined = torch.cat([x.detach().flatten(2) for x in levels], 2).transpose(1, 2)
    images, count, width = joined.shape
    classes = width - 64
    softmax = joined[..., :64].reshape(images, count, 4, 16).softmax(3)
    distance = (softmax * torch.arange(16.0)).sum(3)
    grid = points / strides[:, None]
    boxes = torch.cat((grid - distance[..., :2], grid + distance[..., 2:]), 2)
    found = _brute_assign(joined[..., 64:].sigmoid(), boxes * strides[:, None], points, truth)
    target = torch.zeros(images, count, classes)
    for (b, a), (t, score) in found.items():
        target[b, a, int(truth.cls[t])] = score
    weight = torch.ones(images, 1, classes) if known is None else known[:, None].float()
    total = max(float((target * weight).sum()), 1.0)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(joined[..., 64:], target, reduction="none")
    box = dfl = 0.0
    for (b, a), (t, score) in found.items():
        score *= 1.0 if known is None else float(known[b, int(truth.cls[t])])
        wanted = (truth.box[t] / strides[a]).tolist()
        box += (1 - _ciou(boxes[b, a].tolist(), wanted)) * score
        x, y = grid[a].tolist()
        for side, d in enumerate((x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y)):
            d = min(max(d, 0), 14.99)
            low = int(d)
            logs = softmax[b, a, side].log()
            dfl -= float(logs[low] * (low + 1 - d) + logs[low + 1] * (d - low)) * score / 4
    return 7.5 * box / total, 0.5 * float((bce * weight).sum()) / total, 1.5 * dfl / total


@pytest.mark.parametrize("seed", range(6))
def test_the_loss_is_what_brute_force_says(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    main, auxiliary = _outputs(g, 2, 3), _outputs(g, 2, 3)
    truth = _truth(g, 2, 3, 3 * seed)  # none at all for seed 0
    losses = DetectionLoss(STRIDES)(RawOutputs(main, auxiliary), truth)
    wanted, more = _brute_loss(main, truth), sum(_brute_loss(auxiliary, truth))
    assert [float(x) for x in (losses.box, losses.cls, losses.dfl)] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert float(losses.auxiliary) == pytest.approx(more, rel=1e-3)
    assert float(losses.total.detach()) == pytest.approx(2 * (sum(wanted) + 0.25 * more), rel=1e-3)


def test_classes_that_are_not_labelled_in_a_picture_cost_nothing_there() -> None:
    g = torch.Generator().manual_seed(3)
    main, truth = _outputs(g, 2, 3), _truth(g, 2, 3, 8)
    known = torch.tensor([[True, True, False], [True, True, True]])
    losses = DetectionLoss(STRIDES)(RawOutputs(main, []), truth, known)
    wanted = _brute_loss(main, truth, known)
    assert [float(x) for x in (losses.box, losses.cls, losses.dfl)] == pytest.approx(wanted, rel=1e-3)
    losses.total.backward()
    for level in main:
        assert level.grad is not None
        assert not level.grad[0, 66].any()
        assert level.grad[1, 66].any()


def test_gradients_are_finite_and_reach_every_level_without_any_box() -> None:
    g = torch.Generator().manual_seed(1)
    main = _outputs(g, 2, 3)
    DetectionLoss(STRIDES, Gains(box=1))(RawOutputs(main, []), _truth(g, 2, 3, 0)).total.backward()
    for level in main:
        assert level.grad is not None
        assert torch.isfinite(level.grad).all()
        assert level.grad[:, 64:].any()
        assert not level.grad[:, :64].any()


def test_two_processes_with_a_common_mean_give_the_gradients_of_one() -> None:
    g = torch.Generator().manual_seed(9)
    main, truth = _outputs(g, 4, 3), _truth(g, 4, 3, 20)
    DetectionLoss(STRIDES)(RawOutputs(main, []), truth).total.backward()
    halves = [[x.detach()[part].clone().requires_grad_() for x in main] for part in (slice(0, 2), slice(2, 4))]
    truths = [
        Truth(truth.image[mine] - 2 * rank, truth.cls[mine], truth.box[mine])
        for rank, mine in ((r, truth.image // 2 == r) for r in (0, 1))
    ]
    sums: list[Tensor] = []

    def note(total: Tensor) -> Tensor:
        sums.append(total)
        return total

    for half, part in zip(halves, truths, strict=True):
        DetectionLoss(STRIDES, reduce=note)(RawOutputs(half, []), part)
    for half, part in zip(halves, truths, strict=True):
        losses = DetectionLoss(STRIDES, reduce=lambda _: (sums[0] + sums[1]) / 2)(RawOutputs(half, []), part)
        losses.total.backward()
    for level, (a, b) in zip(main, zip(*halves, strict=True), strict=True):
        assert level.grad is not None
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(torch.cat((a.grad, b.grad)), level.grad, rtol=1e-4, atol=1e-6)
