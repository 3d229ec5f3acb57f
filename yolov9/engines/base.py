"""The one small interface behind which every engine runs a model bundle.

An engine turns uint8 pictures into raw predictions. Thresholds and NMS are not its business (`yolov9.postprocess`), so
they can differ from stream to stream; one that applies them on its device gets them with each picture
(`SuppressingEngine`). One file or folder for each engine; `yolov9.engines.create` chooses by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from yolov9.geometry import STRIDE


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


class Limits(NamedTuple):
    """What is to be reported of one picture, see `yolov9.postprocess.postprocess`."""

    confidence: float = 0.25
    iou: float = 0.7
    class_thresholds: npt.NDArray[np.float32] | None = None
    max_detections: int = 300


@runtime_checkable
class SuppressingEngine(Engine, Protocol):
    """An engine that suppresses on its device: raw predictions, megabytes for each picture, need not leave it."""

    classes: int

    def detect(
        self, images: Sequence[npt.NDArray[np.uint8]], limits: Sequence[Limits]
    ) -> list[npt.NDArray[np.float32]]:
        """As `infer` and then `postprocess` (without `multi_label`), but in input pixels: for each image (n, 6), x1,
        y1, x2, y2, confidence, class id, best first; boxes may reach beyond the input. The arrays are the caller's.
        Raises EngineError if the device failed, PredictionError for NaN or infinity in any prediction.
        """
        ...


def batch_shape(images: Sequence[npt.NDArray[np.uint8]]) -> tuple[int, int]:
    """(height, width) of a batch. EngineError for an empty one, and where an image is not (H, W, 3) uint8 of one shape
    with sides that are multiples of 32."""
    if not images:
        raise EngineError("an empty batch")
    shape = images[0].shape
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise EngineError(f"image of shape {image.shape} and type {image.dtype}, not (H, W, 3) uint8")
        if image.shape != shape:
            raise EngineError(f"images of shapes {shape} and {image.shape} in one batch")
    check_shape(shape[0], shape[1])
    return shape[0], shape[1]


def check_shape(height: int, width: int) -> None:
    """EngineError if it is not an input shape."""
    if height <= 0 or width <= 0 or height % STRIDE or width % STRIDE:
        raise EngineError(f"input of {width}x{height} pixels: the sides are not multiples of {STRIDE}")


def buckets(max_batch: int) -> list[int]:
    """Batch sizes that an engine with static shapes makes ready: powers of two, and `max_batch` itself."""
    return sorted({1 << i for i in range(max_batch.bit_length()) if 1 << i <= max_batch} | {max_batch})
