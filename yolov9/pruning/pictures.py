"""Pictures without labels, as a model sees them: letterboxed, in batches of one shape, 0..1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolov9.data.files import pictures
from yolov9.data.inputs import read_inputs, spread
from yolov9.geometry import PAD_VALUE
from yolov9.pruning.spaces import PruneError

_BATCH = 8

Say = Callable[[str], None]


def find(folder: Path) -> list[Path]:
    """Every picture in a folder and below, sorted; a text file lists one a line. PruneError if there is none."""
    if folder.is_file():
        lines = folder.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [folder.parent / line.strip() for line in lines if line.strip()]
    else:
        found = pictures(folder)
    if not found:
        raise PruneError(f"{folder}: no pictures there")
    return found


class Pictures:
    """A set of pictures in memory, scaled once. Iterated as often as needed."""

    def __init__(self, files: Sequence[Path], input_size: int, limit: int, say: Say = lambda line: None) -> None:
        """`limit` of `files` at even distances. Those that cannot be read are left out, and named by `say`."""
        found = read_inputs(spread(files, limit), input_size, say)
        self._canvases = [torch.from_numpy(images[0]) for images in found]
        if not self._canvases:
            raise PruneError("none of the pictures can be read")
        self._canvases.sort(key=lambda c: tuple(c.shape))

    def __len__(self) -> int:
        return len(self._canvases)

    def batches(self, size: int = _BATCH) -> Iterator[Tensor]:
        """(B, 3, H, W) float32 in 0..1, B up to `size`, one shape a batch."""
        start = 0
        while start < len(self._canvases):
            shape = self._canvases[start].shape
            batch = [c for c in self._canvases[start : start + size] if c.shape == shape]
            start += len(batch)
            yield torch.stack(batch).permute(0, 3, 1, 2).float() * (1 / 255)

    def windows(self, side: int, limit: int, seed: int = 0) -> Tensor:
        """(N, 3, side, side) float32 in 0..1: a square cut at random from each of up to `limit` pictures, unscaled."""
        random = np.random.default_rng(seed)
        cut = []
        for canvas in self._canvases[:: max(-(-len(self._canvases) // limit), 1)]:
            height, width = canvas.shape[:2]
            top, left = (int(random.integers(max(n - side, 0) + 1)) for n in (height, width))
            piece = torch.full((side, side, 3), PAD_VALUE, dtype=torch.uint8)
            inside = canvas[top : top + side, left : left + side]
            piece[: inside.shape[0], : inside.shape[1]] = inside
            cut.append(piece)
        return torch.stack(cut).permute(0, 3, 1, 2).float() * (1 / 255)
