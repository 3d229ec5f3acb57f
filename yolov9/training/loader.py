"""Batches of training pictures, the same for the same seed whatever the number of workers and whenever it is resumed.

A sampler yields (epoch, index); every example draws its chance from (seed, epoch, index) alone. So an epoch can be
entered at any batch, and workers keep no state that could be lost.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from yolov9.training.assigner import Truth
from yolov9.training.augment import Example, example
from yolov9.training.recipe import Augmentation
from yolov9.training.samples import Pictures

_GRACE_S = 60
"""A worker lives so long after SIGTERM: the main process ends it earlier."""
Key = tuple[int, int]
"""(epoch, index)"""


class Batch(NamedTuple):
    images: Tensor
    """(B, S, S, 3) uint8 RGB."""
    image: Tensor
    """(T,) int64: which picture each box is in."""
    cls: Tensor
    """(T,) int64."""
    box: Tensor
    """(T, 4) float32: x1, y1, x2, y2 in input pixels."""
    known: Tensor
    """(B, classes) bool: what is labelled in a picture."""

    @property
    def truth(self) -> Truth:
        return Truth(self.image, self.cls, self.box)


class Examples(TorchDataset[Example]):
    """Training pictures by (epoch, index)."""

    def __init__(self, pictures: Pictures, size: int, how: Augmentation, seed: int, mosaic_epochs: int) -> None:
        """`mosaic_epochs`: from this epoch on there is no mosaic, and no mixup or copy-paste with it."""
        self._pictures = pictures
        self._size = size
        self._how = how
        self._closed = how.model_copy(update={"mosaic": 0.0, "mixup": 0.0, "copy_paste": 0.0})
        self._seed = seed
        self._mosaic_epochs = mosaic_epochs

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: Key) -> Example:
        epoch, index = key
        how = self._how if epoch < self._mosaic_epochs else self._closed
        return example(self._pictures, index, self._size, how, np.random.default_rng((self._seed, epoch, index)))


class EpochSampler(Sampler[list[Key]]):
    """Batches of one epoch in random order, of which each of `world` processes gets its share.

    Every process has the same number of batches, all of one size: the last ones are filled up from the beginning, so
    that nobody waits for ever for one who has none.
    """

    def __init__(self, count: int, batch: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        self._count = count
        self._batch = batch
        self._seed = seed
        self._rank = rank
        self._world = world
        self.epoch = 0
        self.start = 0
        """Batches of the epoch that are done already."""

    @property
    def batches(self) -> int:
        """In a whole epoch."""
        return -(-self._count // (self._batch * self._world))

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count)
        whole = np.resize(order, self.batches * self._batch * self._world)
        mine = whole.reshape(self.batches, self._world, self._batch)[self.start :, self._rank]
        return iter([[(self.epoch, int(i)) for i in batch] for batch in mine])


def make_loader(examples: Examples, sampler: EpochSampler, workers: int, *, pin: bool = False) -> DataLoader[Batch]:
    """`workers`: processes that make examples; 0 makes them in this one."""
    return DataLoader(
        examples,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        # Forked: the workers share the cache of decoded pictures. They run no torch operation but collate.
        multiprocessing_context=multiprocessing.get_context("fork") if workers else None,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def collate(examples: Sequence[Example]) -> Batch:
    counts = torch.tensor([len(e.boxes) for e in examples])
    return Batch(
        torch.from_numpy(np.stack([e.image for e in examples])),
        torch.repeat_interleave(torch.arange(len(examples)), counts),
        torch.from_numpy(np.concatenate([e.classes for e in examples])),
        torch.from_numpy(np.concatenate([e.boxes for e in examples]).astype(np.float32)),
        torch.from_numpy(np.stack([e.known for e in examples])),
    )


def _start_worker(_: int) -> None:
    # A terminal or a supervisor signals the whole group, but the main process wants its batches until it has saved.
    # So a worker goes on for a while; for good would not do: multiprocessing waits for those that it terminates.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the processes are the parallelism
    torch.set_num_threads(1)
