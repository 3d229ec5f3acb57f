"""Pictures without their labels, letterboxed to the input shapes that they have in the server: what models are
calibrated, checked and pruned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from yolov9.data import ALL, DataError, find_source, open_dataset
from yolov9.data.files import pictures
from yolov9.geometry import input_shape
from yolov9.images import ImageError, read_image
from yolov9.letterbox import Letterboxer

Inputs = list[npt.NDArray[np.uint8]]
"""(1, H, W, 3) RGB each, of several shapes."""

_Thing = TypeVar("_Thing")


def spread(things: Sequence[_Thing], count: int) -> list[_Thing]:
    """`count` of them at even distances: the first ones of a folder are often of one scene. All if there are fewer."""
    if count >= len(things):
        return list(things)
    return [things[i * len(things) // count] for i in range(count)]


def find_pictures(data: str | Path, split: str) -> list[Path]:
    """Of that split of a data set, of all of it if it has no such split; or of a folder of pictures without labels.
    DataError if it is neither."""
    try:
        source = find_source(data)
    except DataError:
        found = pictures(Path(data)) if Path(data).is_dir() else []
        if not found:
            raise
        return found
    return [item.image for item in open_dataset(data, split if split in source.splits else ALL).items]


def read_inputs(images: Sequence[Path], input_size: int, say: Callable[[str], None] = lambda line: None) -> Inputs:
    """As the server would see them. Pictures that cannot be decoded are left out, and said.

    ValueError for an input size that is not a multiple of 32.
    """
    letterboxer = Letterboxer()
    inputs: Inputs = []
    for path in images:
        try:
            image = read_image(path)
        except (ImageError, OSError) as error:
            say(f"left out: {error}")
            continue
        pixels = np.empty((1, *input_shape(input_size, image.shape[1], image.shape[0]), 3), np.uint8)
        letterboxer.write_rgb(image, pixels[0])
        inputs.append(pixels)
    return inputs
