"""Training pictures out of samples: mosaic, mixup, copy-paste, colour, affine, flips. Pure: all chance is `rng`'s.

A mosaic joins four pictures around a random centre of a canvas twice the input's size, of which a random affine view
is taken. Both are one affine map a tile, so each tile is warped once, straight into the result: no canvas, and pixels
are interpolated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from yolov9.training.recipe import Augmentation
from yolov9.training.samples import Sample

PAD = 114
"""Grey around pictures, as at inference."""
_LEAST_SIDE = 2.0
_LEAST_SHARE = 0.1
_LARGEST_ASPECT = 100.0
"""A box is kept whose sides stay above _LEAST_SIDE pixels, of whose area (scaled) _LEAST_SHARE is still in view, and
that is not a sliver."""
_MIXUP_BETA = 32.0
_CROWDED = 0.3
"""An object is pasted only where it hides less than this share of any other."""

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
"""(2, 3): from pixels of a tile to pixels of the result."""


@dataclass(frozen=True, slots=True)
class Example:
    """What the network learns from: a square picture and its boxes."""

    image: Image
    """(size, size, 3) uint8 RGB."""
    boxes: npt.NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2 in its pixels."""
    classes: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]
    """(classes,): labelled in all of its parts."""


class Source(Protocol):
    """Where tiles come from (`Pictures`)."""

    @property
    def samples(self) -> Sequence[Sample]: ...

    @property
    def partners(self) -> Sequence[npt.NDArray[np.int64]]:
        """For each sample those that it may be joined with: where the same classes are labelled."""
        ...

    def __getitem__(self, index: int) -> Image: ...

    def __len__(self) -> int: ...


def example(source: Source, index: int, size: int, how: Augmentation, rng: np.random.Generator) -> Example:
    """The training picture of sample `index`."""
    if rng.random() < how.mosaic:
        made = _mosaic(source, index, size, how, rng)
        if rng.random() < how.mixup:
            other = int(rng.choice(source.partners[index]))
            made = _mixed(made, _mosaic(source, other, size, how, rng), rng)
    else:
        made = _single(source, index, size, how, rng)
    image = _coloured(made.image, how, rng)
    boxes = made.boxes
    if rng.random() < how.flip:
        image, boxes = image[:, ::-1], np.stack((size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]), 1)
    if rng.random() < how.flip_vertical:
        image, boxes = image[::-1], np.stack((boxes[:, 0], size - boxes[:, 3], boxes[:, 2], size - boxes[:, 1]), 1)
    return Example(np.ascontiguousarray(image), boxes, made.classes, made.known)


def plain(source: Source, index: int, size: int) -> Example:
    """Centred, without any chance: what evaluation sees."""
    sample = source.samples[index]
    shift = np.array([[1, 0, (size - sample.width) // 2], [0, 1, (size - sample.height) // 2]], np.float64)
    return _joined([(source[index], sample, shift)], size)


def _mosaic(source: Source, index: int, size: int, how: Augmentation, rng: np.random.Generator) -> Example:
    """Four tiles that meet at a point within the middle half of a canvas of 2 x 2 inputs."""
    centre = rng.uniform(0.5 * size, 1.5 * size, 2)
    view = _view(2 * size, size, how, rng)
    order = [index, *rng.choice(source.partners[index], 3).tolist()]
    rng.shuffle(order)
    tiles = []
    for place, i in enumerate(order):
        image, sample = _pasted(source[i], source.samples[i], how, rng)
        corner = centre - np.array([sample.width * (place % 2 == 0), sample.height * (place < 2)])
        tiles.append((image, sample, _then(np.array([[1, 0, corner[0]], [0, 1, corner[1]]]), view)))
    return _joined(tiles, size)


def _single(source: Source, index: int, size: int, how: Augmentation, rng: np.random.Generator) -> Example:
    sample = source.samples[index]
    shift = np.array([[1, 0, (size - sample.width) / 2], [0, 1, (size - sample.height) / 2]])
    return _joined([(source[index], sample, _then(shift, _view(size, size, how, rng)))], size)


def _view(canvas: int, size: int, how: Augmentation, rng: np.random.Generator) -> Matrix:
    """Random scale, rotation and shear about the canvas' middle, which lands within `translate` of the view's."""
    angle = np.deg2rad(rng.uniform(-how.rotate, how.rotate))
    scale = rng.uniform(1 - how.scale, 1 + how.scale)
    shear = np.tan(np.deg2rad(rng.uniform(-how.shear, how.shear, 2)))
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = np.array([[1, shear[0]], [shear[1], 1]]) @ turn
    target = rng.uniform(0.5 - how.translate, 0.5 + how.translate, 2) * size
    return np.hstack((linear, (target - linear @ np.full(2, canvas / 2))[:, None]))


def _then(first: Matrix, second: Matrix) -> Matrix:
    """The map `first`, followed by `second`."""
    return np.hstack((second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2:] + second[:, 2:]))


def _joined(tiles: Sequence[tuple[Image, Sample, Matrix]], size: int) -> Example:
    """All tiles in one picture of size x size, with the boxes that are still to be seen."""
    image = np.full((size, size, 3), PAD, np.uint8)
    boxes, classes = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)]
    for pixels, sample, matrix in tiles:
        # Pixel centres: x is pixel x - .5 for OpenCV.
        centred = matrix.copy()
        centred[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5
        # BORDER_TRANSPARENT leaves what lies outside of the tile as it is.
        cv2.warpAffine(pixels, centred, (size, size), image, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)
        moved, keep = _moved(sample, matrix, size)
        boxes.append(moved[keep])
        classes.append(sample.classes[keep])
    known = np.logical_and.reduce([sample.known for _, sample, _ in tiles])
    return Example(image, np.concatenate(boxes), np.concatenate(classes), known)


def _moved(sample: Sample, matrix: Matrix, size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Boxes after the map, cut to the picture, and which of them are still worth learning."""
    if not len(sample.boxes):
        return sample.boxes, np.zeros(0, np.bool_)
    corners = sample.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    places = corners @ matrix[:, :2].T + matrix[:, 2]
    low, high = places.min(1), places.max(1)
    if matrix[0, 1] or matrix[1, 0]:  # turned: an outline gives a tighter box than the turned corners
        for i, parts in enumerate(sample.polygons):
            if parts:
                outline = np.concatenate(parts) @ matrix[:, :2].T + matrix[:, 2]
                low[i], high[i] = outline.min(0), outline.max(0)
    whole = np.prod(high - low, 1)
    low, high = low.clip(0, size), high.clip(0, size)
    side = high - low
    aspect = side.max(1) / np.maximum(side.min(1), 1e-9)
    keep = (side > _LEAST_SIDE).all(1) & (side.prod(1) > _LEAST_SHARE * whole) & (aspect < _LARGEST_ASPECT)
    return np.concatenate((low, high), 1).astype(np.float32), keep


def _mixed(a: Example, b: Example, rng: np.random.Generator) -> Example:
    """A blend of two pictures with the boxes of both (mixup, arXiv 1710.09412)."""
    share = rng.beta(_MIXUP_BETA, _MIXUP_BETA)
    image = cv2.addWeighted(a.image, share, b.image, 1 - share, 0)
    return Example(
        np.asarray(image, np.uint8),
        np.concatenate((a.boxes, b.boxes)),
        np.concatenate((a.classes, b.classes)),
        a.known & b.known,
    )


def _pasted(image: Image, sample: Sample, how: Augmentation, rng: np.random.Generator) -> tuple[Image, Sample]:
    """Outlined objects once more, mirrored, where they hide little (copy-paste, arXiv 2012.07177)."""
    chosen = [i for i, parts in enumerate(sample.polygons) if parts and rng.random() < how.copy_paste]
    if not chosen:
        return image, sample
    image = image.copy()
    boxes, classes, polygons = list(sample.boxes), list(sample.classes), list(sample.polygons)
    mirror = np.array([sample.width, 0, sample.width, 0], np.float32)
    for i in chosen:
        box = np.abs(mirror - sample.boxes[i][[2, 1, 0, 3]])
        if _hidden(box, np.array(boxes)) >= _CROWDED:
            continue
        mask = np.zeros(image.shape[:2], np.uint8)
        parts = tuple(np.abs(part - np.array([sample.width, 0], np.float32)) for part in sample.polygons[i])
        cv2.fillPoly(mask, [np.rint(part).astype(np.int32) for part in parts], 1)
        image[mask > 0] = image[:, ::-1][mask > 0]
        boxes.append(box)
        classes.append(sample.classes[i])
        polygons.append(parts)
    more = Sample(
        sample.path, sample.width, sample.height, np.array(boxes, np.float32), np.array(classes, np.int64),
        tuple(polygons), sample.known,
    )  # fmt: skip
    return image, more


def _hidden(box: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float:
    """The largest share of any of `others` that `box` covers."""
    side = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    area = (others[:, 2:] - others[:, :2]).prod(1)
    return float((side.clip(0).prod(1) / area).max())


def _coloured(image: Image, how: Augmentation, rng: np.random.Generator) -> Image:
    """Hue, saturation and value, each by a random amount, through look-up tables."""
    shift = rng.uniform(-1, 1, 3) * (how.hue, how.saturation, how.value)
    if not shift.any():
        return image
    levels = np.arange(256)
    hue = ((levels + shift[0] * 180) % 180).astype(np.uint8)
    saturation = (levels * (1 + shift[1])).clip(0, 255).astype(np.uint8)
    value = (levels * (1 + shift[2])).clip(0, 255).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    table = np.stack((hue, saturation, value), 1)[None]
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB), np.uint8)
