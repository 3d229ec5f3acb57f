"""Statistics of batch normalisation, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from yolov9.nn.model import Detector


@torch.no_grad()
def measure_statistics(model: Detector, batches: Iterable[Tensor]) -> None:
    """Set the running statistics to the plain means over `batches`, (B, 3, H, W) in 0..1, of both branches.

    The model is in eval mode afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    model.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean
        m.train()
    # Only in training mode does the auxiliary branch run, which has statistics, too.
    model.training = model.head.training = True
    try:
        for images in batches:
            model(images)
    finally:
        model.eval()
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
