"""The one small interface behind which every engine runs a model bundle.

An engine turns uint8 pictures into raw predictions. Thresholds and NMS are not its business (`yolov9.postprocess`), so
they can differ from stream to stream. One file for each engine; `yolov9.engines.create` chooses by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class EngineError(Exception):
    """The engine cannot be had here or cannot run the bundle: one sentence for people, with the cause."""


class Engine(Protocol):
    """`infer` may be called from `parallel` threads at once; everything else from one thread at a time."""

    name: str
    """openvino | onnxruntime | torch | tensorrt"""
    precision: str
    """What it really computes in: fp32 | fp16 | bf16 | int8"""
    device: str
    """For people, e.g. the CPU's or GPU's name."""
    parallel: int
    """Calls of `infer` that may run at once and pay."""
    max_batch: int
    """Largest batch that pays; larger ones are accepted and are cut."""

    def prepare(self, height: int, width: int) -> None:
        """Make an input shape (multiples of 32) ready and run it once. Does not disturb `infer` of other shapes."""
        ...

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Images (H, W, 3) uint8 RGB of one shape -> (B, 4+nc, A) float32.

        Rows 0..3 are x1, y1, x2, y2 in input pixels, the others class scores in 0..1 (after sigmoid). The array is
        valid until the same thread calls `infer` again: an engine may hand out its own output buffer.
        Raises EngineError if the device failed.
        """
        ...

    def close(self) -> None: ...
