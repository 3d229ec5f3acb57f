"""What a channel is worth: a number for each, from the weights alone or from pictures without labels.

| criterion | of each channel | needs |
|---|---|---|
| random | a draw: what every criterion must beat | |
| l1, l2 | norm of the weights that make it times norm of the weights that read it, normalisation folded in | |
| bn | the normalisation's scale ("network slimming", arXiv 1708.06519) | a model that is not fused |
| taylor | how the loss against the model's own hard decisions changes at first order without the channel | pictures |
| fisher | how far the model's answers move at second order without the channel | pictures |

The last two ask the same thing: put a gate on the channel wherever it is read, 1 with it and 0 without; what does
closing the gate do? The derivative by the gate is the sum of weight times gradient over all weights that read the
channel, taken picture by picture.

`fisher` is the one to use. A distance between the pruned model's answers and its own present ones is 0 now and at its
minimum, so every first derivative of it is 0: distilling a model from itself says nothing at first order. Its second
derivative is the Fisher information of the answers, the expected square of the derivative of their log-likelihood when
answers are drawn as the model itself expects them. It is estimated without drawing any: the logits' own Fisher matrix
is known (p(1-p) of a score, diag(p) - p p' of a side's distribution), and a random sign vector times its square root,
sent backwards, has the right covariance with less noise than drawn answers. A side's distribution counts as much as the
cell is sure that there is an object, since no box is read where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from yolov9.nn.channels import ConvolutionChannels
from yolov9.nn.head import REG_MAX, RawOutputs
from yolov9.nn.model import Detector
from yolov9.pruning.pictures import Pictures
from yolov9.pruning.selection import Normalisation, Scores
from yolov9.pruning.spaces import Network, PruneError

Criterion = Literal["fisher", "taylor", "l1", "l2", "bn", "random"]
DEFAULTS: dict[Criterion, Normalisation] = {
    "fisher": "none", "taylor": "none", "l1": "lamp", "l2": "lamp", "bn": "mean", "random": "none",
}  # fmt: skip
"""Every criterion, and what makes its scores comparable between layers. Those that measure a loss already are."""
NEED_PICTURES: tuple[Criterion, ...] = ("fisher", "taylor")

Progress = Callable[[int, int], None]
"""Called with pictures done and their number."""


def score(
    network: Network,
    criterion: Criterion,
    pictures: Pictures | None = None,
    *,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """What each channel is worth, not negative: float64 by channel number. PruneError if that cannot be had."""
    if criterion == "random":
        return np.random.default_rng(seed).random(network.channels.count)
    if criterion in ("l1", "l2"):
        return _magnitude(network, 1 if criterion == "l1" else 2)
    if criterion == "bn":
        return _slimming(network)
    if pictures is None:
        raise PruneError(f"the criterion {criterion} needs pictures: give --data or --images")
    return _gates(network, pictures, criterion == "fisher", seed, progress)


def _magnitude(network: Network, power: int) -> Scores:
    """A product, since a scale may move from one side to the other without any change of the output."""
    made = np.zeros(network.channels.count)
    read = np.zeros(network.channels.count)
    for name, conv, weight in _convolutions(network):
        absolute = np.abs(folded_weight(network.model, name, weight)) ** power
        np.add.at(made, conv.outputs, absolute.sum((1, 2, 3)))
        np.add.at(read, conv.inputs, by_input(absolute, conv))
    scores: Scores = (made * read) ** (1 / power)
    return scores


def _slimming(network: Network) -> Scores:
    modules = dict(network.model.named_modules())
    scores = np.zeros(network.channels.count)
    for name, ids in network.channels.norms.items():
        scale = modules[name].weight
        assert isinstance(scale, Tensor)
        np.add.at(scores, ids, scale.detach().abs().double().cpu().numpy())
    if not network.channels.norms:
        raise PruneError("the criterion bn needs a model whose batch normalisation is not fused")
    return scores


def _gates(network: Network, pictures: Pictures, fisher: bool, seed: int, progress: Progress) -> Scores:
    """Mean over pictures of the square (fisher) or the absolute value (taylor) of the derivative by each gate."""
    model = network.model
    convolutions = list(_convolutions(network))
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(network.channels.count)
    frozen = {p: p.requires_grad for p in model.parameters()}
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for _, _, weight in convolutions:
            weight.requires_grad_(True)
        for done, image in enumerate(pictures.batches(1), 1):
            logits = raw_outputs(model, image).main
            backward = [cotangent(level.detach(), fisher, generator) for level in logits]
            gradients = torch.autograd.grad(logits, [w for _, _, w in convolutions], backward, allow_unused=True)
            slope = np.zeros(network.channels.count)
            for (_, conv, weight), gradient in zip(convolutions, gradients, strict=True):
                if gradient is not None:
                    product = (weight.detach() * gradient).double().cpu().numpy()
                    np.add.at(slope, conv.inputs, by_input(product, conv))
            total += slope**2 if fisher else np.abs(slope)
            progress(done, len(pictures))
    finally:
        for parameter, needed in frozen.items():
            parameter.requires_grad_(needed)
    return total / len(pictures)


def raw_outputs(model: Detector, images: Tensor) -> RawOutputs:
    """The logits of both branches with batch normalisation as in eval mode. The model's own mode stays."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        for module in modes:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        raw = model(images)
    finally:
        for module, training in modes.items():
            module.training = training
    assert isinstance(raw, RawOutputs)
    return raw


def cotangent(logits: Tensor, fisher: bool, generator: torch.Generator) -> Tensor:
    """What goes backwards from one level's logits (B, 64 + classes, H, W)."""
    sides, classes = logits[:, : 4 * REG_MAX], logits[:, 4 * REG_MAX :]
    scores = classes.sigmoid()
    bins = torch.unflatten(sides, 1, (4, REG_MAX)).softmax(2)
    sure = scores.amax(1, keepdim=True).unsqueeze(1)
    if fisher:
        roots = bins.sqrt() * _signs(bins, generator)
        # Square root of diag(p) - p p', applied to signs e: sqrt(p) e - p (sqrt(p) . e).
        box = (roots - bins * roots.sum(2, keepdim=True)) * sure.sqrt()
        cls = (scores * (1 - scores)).sqrt() * _signs(scores, generator)
    else:
        decided = nn.functional.one_hot(bins.argmax(2), REG_MAX).movedim(-1, 2)
        box, cls = (bins - decided) * sure, scores - (scores > 0.5).to(scores.dtype)
    return torch.cat((box.flatten(1, 2), cls), 1)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def _convolutions(network: Network) -> list[tuple[str, ConvolutionChannels, Tensor]]:
    modules = dict(network.model.named_modules())
    found = []
    for name, conv in network.channels.convolutions.items():
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        found.append((name, conv, weight))
    return found


def folded_weight(model: Detector, name: str, weight: Tensor) -> npt.NDArray[np.float64]:
    """The weight of a convolution times what the normalisation beside it makes of it in eval mode."""
    values: npt.NDArray[np.float64] = weight.detach().double().cpu().numpy()
    norm = getattr(model.get_submodule(name.rpartition(".")[0]), "bn", None)
    if not isinstance(norm, nn.BatchNorm2d):
        return values
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    folded: npt.NDArray[np.float64] = values * scale.cpu().numpy()[:, None, None, None]
    return folded


def by_input(values: npt.NDArray[np.float64], conv: ConvolutionChannels) -> npt.NDArray[np.float64]:
    """(out, in / groups, k, k) summed for each input channel: (in,)."""
    if conv.depthwise:  # each weight reads the channel that it makes
        summed: npt.NDArray[np.float64] = values.sum((1, 2, 3))
    else:
        summed = np.concatenate([part.sum((0, 2, 3)) for part in np.split(values, conv.groups)])
    return summed
