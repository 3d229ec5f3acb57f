"""Reversible connections between columns: RevCol (arXiv 2212.11696).

Columns are backbones side by side. Level `l` of a column is

    x[l] = F(lower levels of this column, higher levels of the column before) + gamma * previous[l]

so the column before can be had back from this one, top level first, with nothing lost on the way:

    previous[l] = (x[l] - F(...)) / gamma

That is RevCol's reversible multi-level fusion unit. In an architecture its F is written out as ordinary layers: one
that halves the size of the level below, CBLinear and CBFuse for higher levels of the column before, then a stage.
`Reversible` is the sum that makes it reversible.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INITIAL_GAMMA = 0.5
MINIMAL_GAMMA = 1e-3
"""Nearer to zero a channel of the column before would be lost: gamma never scales by less, whatever is learned."""


class Reversible(nn.Module):
    """`transformed + gamma * previous`, with a learnable gamma for each channel: invertible for any transform."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), INITIAL_GAMMA))

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        """Two maps of one shape (B, C, H, W): this level of the column before, and F of the other levels."""
        previous, transformed = sources
        return transformed + self._scale() * previous

    def inverse(self, out: Tensor, transformed: Tensor) -> Tensor:
        """The level of the column before, from what `forward` gave and the same transform."""
        return (out - transformed) / self._scale()

    def _scale(self) -> Tensor:
        """gamma, kept away from zero on its own side. Its gradient passes unchanged, so that it can come back."""
        floor = torch.where(self.gamma < 0, -MINIMAL_GAMMA, MINIMAL_GAMMA)
        bounded = torch.where(self.gamma.abs() < MINIMAL_GAMMA, floor, self.gamma)
        return self.gamma + (bounded - self.gamma).detach()
