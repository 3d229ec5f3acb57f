"""The pictures on which an export is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from yolov9.data.inputs import find_pictures, read_inputs, spread


def real_pictures(
    data: str | Path, count: int, input_size: int, say: Callable[[str], None] = lambda line: None
) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """`count` of a data set's or a folder's, spread over it: name, and (1, H, W, 3) RGB as the server would see it.
    Without those that cannot be decoded. DataError."""
    some = spread(find_pictures(data, "val"), count)
    return [(path.name, pixels) for path in some for pixels in read_inputs([path], input_size, say)]
