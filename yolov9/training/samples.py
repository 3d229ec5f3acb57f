"""The pictures of a training set, small and ready: read once, scaled to the input's long side, kept packed.

Pure data and decoding; what happens to a picture afterwards is `augment`'s business.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from yolov9.data import Dataset
from yolov9.data.dataset import Polygon
from yolov9.images import ImageError, read_image

Cache = Literal["ram", "disk", "none"]
_READERS = 4
"""Threads that decode while the cache is filled: decoders release the GIL, disks answer late."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture with its objects. Arrays have one row a box; crowds are left out, since nobody is to learn them."""

    path: Path
    width: int
    height: int
    """Pixels of what boxes and outlines are measured in."""
    boxes: npt.NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2."""
    classes: npt.NDArray[np.int64]
    """(n,)"""
    polygons: tuple[tuple[Polygon, ...], ...]
    """Outlines a box, () where there is none."""
    known: npt.NDArray[np.bool_]
    """(classes,): labelled in this picture. What is not may be there without a box."""

    def scaled(self, width: int, height: int) -> Sample:
        """The same objects on a picture of another size."""
        factor = np.array([width / self.width, height / self.height], np.float32)
        return replace(
            self,
            width=width,
            height=height,
            boxes=self.boxes * np.tile(factor, 2),
            polygons=tuple(tuple(part * factor for part in parts) for parts in self.polygons),
        )


def samples_of(data: Dataset, classes: int, to_class: dict[int, int] | None = None) -> list[Sample]:
    """Samples of a data set in a model of `classes` classes. `to_class`: {the data's class: the model's}, None for the
    same ids. Objects of other classes are left out; classes of the model that the data lacks are unknown there."""
    mapping = {i: i for i in data.names} if to_class is None else to_class
    known = np.zeros(classes, np.bool_)
    known[list(mapping.values())] = True
    samples = []
    for item in data.items:
        keep = np.array([c in mapping for c in item.classes.tolist()], np.bool_) & ~item.crowd
        outlines = item.polygons or ((),) * len(item.boxes)
        ids = np.array([mapping[c] for c in item.classes[keep].tolist()], np.int64)
        polygons = tuple(parts for parts, kept in zip(outlines, keep, strict=True) if kept)
        samples.append(Sample(item.image, item.width, item.height, item.boxes[keep], ids, polygons, known))
    return samples


class Pictures:
    """Training pictures by index, each scaled so that its long side is `size`. Safe to read from several processes.

    `ram`: decoded now and kept in memory, which forked workers share. `disk`: the same in an unnamed file in `folder`,
    mapped, which the system may page out. `none`: decoded each time. Pictures that cannot be decoded are dropped from
    `samples`, and `problems` says so; with `none` that takes a first pass over headers only, and a picture that fails
    later is an ImageError.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        cache: Cache = "ram",
        *,
        folder: str | Path | None = None,
        step: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.size = size
        self.problems: list[str] = []
        self.samples: Sequence[Sample] = []
        self._offsets: npt.NDArray[np.int64] | None = None
        self._bytes: npt.NDArray[np.uint8] | None = None
        if cache == "none":
            self.samples = [s.scaled(*_fitted(s.width, s.height, size)) for s in samples]
            return
        self._fill(samples, cache, folder, step)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def partners(self) -> list[npt.NDArray[np.int64]]:
        """For each sample the indices of those in which the same classes are labelled. A mosaic of others would know
        only what all of its parts know."""
        groups: dict[bytes, list[int]] = {}
        for index, sample in enumerate(self.samples):
            groups.setdefault(sample.known.tobytes(), []).append(index)
        arrays = {key: np.array(indices, np.int64) for key, indices in groups.items()}
        return [arrays[sample.known.tobytes()] for sample in self.samples]

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB, as large as `samples[index]` says. Not to be written to."""
        sample = self.samples[index]
        if self._bytes is None or self._offsets is None:
            return _read(sample.path, self.size, (sample.width, sample.height))
        start = int(self._offsets[index])
        return self._bytes[start : start + sample.width * sample.height * 3].reshape(sample.height, sample.width, 3)

    def _fill(
        self, samples: Sequence[Sample], cache: Cache, folder: str | Path | None, step: Callable[[int, int], None]
    ) -> None:
        sizes = [_fitted(s.width, s.height, self.size) for s in samples]
        offsets = np.cumsum([0] + [w * h * 3 for w, h in sizes], dtype=np.int64)
        total = max(int(offsets[-1]), 1)
        if cache == "ram":
            store = np.empty(total, np.uint8)
        else:
            with tempfile.TemporaryFile(dir=folder) as file:  # no name: nothing is left, however the process ends
                os.posix_fallocate(file.fileno(), 0, total)  # a full disk says so now, not by SIGBUS in epoch 40
                store = np.memmap(file, np.uint8, "r+", shape=(total,))

        def load(position: int) -> str | None:
            try:
                picture = _read(samples[position].path, self.size, sizes[position])
            except (ImageError, OSError) as error:
                return str(error)
            store[offsets[position] : offsets[position + 1]] = picture.reshape(-1)
            return None

        kept: list[int] = []
        with ThreadPoolExecutor(_READERS) as pool:
            for position, problem in enumerate(pool.map(load, range(len(samples)))):
                if problem is None:
                    kept.append(position)
                else:
                    self.problems.append(problem)
                step(position + 1, len(samples))
        self.samples = [samples[position].scaled(*sizes[position]) for position in kept]
        self._bytes, self._offsets = store, offsets[kept]


def _fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height scaled so that the long side is `size`."""
    factor = size / max(width, height)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def _read(path: Path, size: int, wanted: tuple[int, int]) -> npt.NDArray[np.uint8]:
    picture = read_image(path)
    if (picture.shape[1], picture.shape[0]) == wanted:
        return picture
    shrinks = max(picture.shape[:2]) > size
    # By area where it shrinks: bilinear would skip lines, and a small object with them.
    return np.asarray(cv2.resize(picture, wanted, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
