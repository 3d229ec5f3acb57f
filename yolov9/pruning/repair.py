"""What the remaining weights can make up for, without labels and without training: least squares, layer by layer.

The whole model and the pruned one see the same pictures. Layer by layer, from the picture to the head, with everything
before already repaired, the weights of a convolution are set so that it makes of the maps that it gets now what it made
of the maps that it got before:

    maps before ~ A maps now + c,  A and c by ridge regression over sampled pixels;  weights now = weights before * A

where A begins as "the kept channels are themselves, the others are gone", so that without evidence nothing changes. c
goes into the mean of the normalisation that follows. With `weights` false only a scale and a shift are fitted to each
channel after its normalisation.

Why not the usual renewal of batch statistics? It makes each channel as strong as it was, noise included: where little
was removed it costs accuracy instead of bringing some. And in checkpoints whose normalisation was folded once (RepConvN
of converted ones) the statistics are no statistics at all, and renewing them destroys the model. On gelan-t with COCO's
weights, a fifth of its operations removed (fisher; 64 pictures to fit, 64 others to measure, at 320 pixels; AP .404
before): .293 as cut, .285 with each channel's mean and deviation restored, .310 with scale and shift, .330 with
weights. At 640 pixels (.472 before) .415, .433 with scale and shift, .414 with weights; l2 instead of fisher .109, .250
and .309: the worse the cut, the more there is to gain, and weights gain most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from yolov9.nn.channels import Channels, Ids
from yolov9.nn.model import Detector
from yolov9.pruning.criteria import raw_outputs
from yolov9.pruning.surgery import Kept

_PIXELS = 128
"""Taken of each map of each picture: with 64 pictures 8,192 for at most some hundred unknowns an output."""
_RIDGE = 0.1
"""Of the mean variance. From .001 to .1 nothing changes but noise; more is safer with few pictures."""
_SCALES = 0.25, 4.0
"""What a channel's scale may change by."""
_Hook = Callable[[str, nn.Module, Tensor], Tensor | None]


def repair(pruned: Detector, whole: Detector, channels: Channels, kept: Kept, images: Tensor, *, weights: bool) -> None:
    """Fit the weights of `pruned` in place, from those of `whole`, which stays as it is.

    `channels`: of `whole`. `kept`: which of them `pruned` still has. `images`: (N, 3, H, W) in 0..1, run as one batch.
    `weights`: fit every weight (and every mean); else a scale and a shift for each channel.
    """
    if weights:
        _fit_weights(pruned, whole, channels, kept, images)
    else:
        _fit_scales(pruned, whole, kept, images)


def _fit_weights(pruned: Detector, whole: Detector, channels: Channels, kept: Kept, images: Tensor) -> None:
    modules = dict(whole.named_modules())
    # Depthwise convolutions mix no channels, so there is nothing that they could make up for.
    names = [n for n, c in channels.convolutions.items() if not c.depthwise]
    before: dict[str, Tensor] = {}
    with _watching(whole, names, lambda name, _, x: before.update({name: _sample(x)}), inputs=True):
        raw_outputs(whole, images)

    def fit(name: str, conv: nn.Module, x: Tensor) -> None:
        old = modules[name]
        assert isinstance(old, nn.Conv2d)
        assert isinstance(conv, nn.Conv2d)
        rows = torch.from_numpy(kept[name].outputs)
        weight, shift = _solve(old, before.pop(name).double(), _sample(x).double(), kept[name].inputs, rows)
        conv.weight.copy_(weight)
        _move(pruned, whole, name, shift, rows)

    with torch.no_grad(), _watching(pruned, names, fit, inputs=True):
        raw_outputs(pruned, images)


def _solve(old: nn.Conv2d, before: Tensor, now: Tensor, columns: Ids, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(new weight, what each output lacks because of the means). `before`, `now`: (pixels, channels)."""
    width, kept_width = before.shape[1] // old.groups, now.shape[1] // old.groups
    rows_of = [rows[rows // (old.out_channels // old.groups) == g] for g in range(old.groups)]
    pieces, shifts = [], []
    for g, group_rows in enumerate(rows_of):
        x, y = now[:, g * kept_width : (g + 1) * kept_width], before[:, g * width : (g + 1) * width]
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        square = x.T @ x / len(x)
        start = torch.zeros(width, kept_width, dtype=torch.float64)
        start[torch.from_numpy(columns[g * kept_width : (g + 1) * kept_width]) - g * width] = torch.eye(
            kept_width, dtype=torch.float64
        )
        ridge = (_RIDGE * square.diagonal().mean() + 1e-12) * torch.eye(kept_width, dtype=torch.float64)
        mixing = start + torch.linalg.solve(square + ridge, x.T @ (y - x @ start.T) / len(x)).T
        weight = old.weight.detach()[group_rows].double()
        pieces.append(torch.einsum("oihw,ik->okhw", weight, mixing))
        shifts.append(torch.einsum("oihw,i->o", weight, mean_y - mixing @ mean_x))
    return torch.cat(pieces), torch.cat(shifts)


def _move(pruned: Detector, whole: Detector, name: str, shift: Tensor, rows: Tensor) -> None:
    """Add `shift` to what convolution `name` gives: in its bias, or in the mean that is subtracted after it."""
    block = name.rpartition(".")[0]
    norm, old_norm = (getattr(m.get_submodule(block), "bn", None) for m in (pruned, whole))
    if isinstance(norm, nn.BatchNorm2d) and isinstance(old_norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert old_norm.running_mean is not None
        norm.running_mean.copy_(old_norm.running_mean[rows].double() - shift)
        return
    bias, old_bias = pruned.get_submodule(name).bias, whole.get_submodule(name).bias
    if isinstance(bias, Tensor) and isinstance(old_bias, Tensor):
        bias.copy_(old_bias.detach()[rows].double() + shift)


def _fit_scales(pruned: Detector, whole: Detector, kept: Kept, images: Tensor) -> None:
    names = [n for n, m in pruned.named_modules() if n in kept and getattr(m, "bias", None) is not None]
    before: dict[str, Tensor] = {}

    def store(name: str, _: nn.Module, y: Tensor) -> None:
        before[name] = _sample(y)[:, torch.from_numpy(kept[name].outputs)]

    with _watching(whole, names, store, inputs=False):
        raw_outputs(whole, images)

    def fit(name: str, module: nn.Module, y: Tensor) -> Tensor:
        assert isinstance(module, nn.BatchNorm2d | nn.Conv2d)
        target, now = before.pop(name).double(), _sample(y).double()
        mean, wanted = now.mean(0), target.mean(0)
        scale = torch.ones_like(mean)
        if _is_norm(module):  # outputs of the head and of CBLinear are shifted only
            variance = (now - mean).square().mean(0)
            common = ((now - mean) * (target - wanted)).mean(0)
            ridge = _RIDGE * variance.mean() + 1e-12
            scale = ((common + ridge) / (variance + ridge)).clamp(*_SCALES)
            module.weight.mul_(scale)
        shift = wanted - scale * mean
        assert module.bias is not None
        module.bias.copy_(module.bias.double() * scale + shift if _is_norm(module) else module.bias.double() + shift)
        return y * scale.to(y)[:, None, None] + shift.to(y)[:, None, None]

    with torch.no_grad(), _watching(pruned, names, fit, inputs=False):
        raw_outputs(pruned, images)


@contextmanager
def _watching(model: Detector, names: list[str], call: _Hook, *, inputs: bool) -> Iterator[None]:
    """`call(name, module, map)` with what a module reads, before it computes; or with what it makes, to replace it."""
    modules, handles = dict(model.named_modules()), []
    for name in names:
        if inputs:

            def before(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                call(name, module, args[0])

            handles.append(modules[name].register_forward_pre_hook(before))
        else:

            def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> Tensor | None:
                return call(name, module, out)

            handles.append(modules[name].register_forward_hook(after))
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _sample(x: Tensor) -> Tensor:
    """(pixels, channels) of (B, C, H, W): the same places of every map of one shape, hence of both models."""
    batch, channels, height, width = x.shape
    generator = torch.Generator().manual_seed(height * 65_537 + width)
    at = torch.randint(0, height * width, (batch, min(_PIXELS, height * width)), generator=generator)
    taken = x.detach().flatten(2).gather(2, at.to(x.device)[:, None].expand(-1, channels, -1))
    return taken.movedim(1, 2).reshape(-1, channels).cpu()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)
