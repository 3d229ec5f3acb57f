"""What an export starts from: which file the weights came from, which pictures it is checked on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolov9 import packaged
from yolov9.bundle import SAFETENSORS
from yolov9.data.inputs import find_pictures, read_inputs, spread


def lineage_of(weights: str) -> dict[str, Any]:
    """Name and SHA-256 of the file that `yolov9.weights.load` reads for this. ModelNotFound, OSError."""
    path = packaged.resolve(weights)
    file = path / SAFETENSORS if path.is_dir() else path
    with file.open("rb") as stream:
        return {"weights": file.name, "weights_sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def real_pictures(
    data: str | Path, count: int, input_size: int, say: Callable[[str], None] = lambda line: None
) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """`count` of a data set's or a folder's, spread over it: name, and (1, H, W, 3) RGB as the server would see it.
    Without those that cannot be decoded. DataError."""
    some = spread(find_pictures(data, "val"), count)
    return [(path.name, pixels) for path in some for pixels in read_inputs([path], input_size, say)]
