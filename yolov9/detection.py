"""`model.detect`: pictures of any size through a PyTorch model to detections in their own pixels.

For notebooks and scripts. Letterbox and suppression are those of the server, so that results agree with it; video and
speed are the engines' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from yolov9.geometry import Letterbox, input_shape
from yolov9.images import read_image, to_rgb
from yolov9.letterbox import Letterboxer
from yolov9.postprocess import postprocess

if TYPE_CHECKING:
    from yolov9.nn.model import Detector

Picture = npt.NDArray[np.uint8] | PIL.Image.Image | str | PathLike[str]
"""(h, w, 3) uint8 RGB, a Pillow image, or the path of an image file (turned upright as its EXIF says)."""
_BATCH = 8
"""Pictures of one input shape that run together."""


def detect(
    model: Detector, pictures: Sequence[Picture], confidence: float, iou: float, input_size: int
) -> list[npt.NDArray[np.float32]]:
    """For each picture (n, 6): x1, y1, x2, y2 in its pixels, confidence, class id; best first.

    Runs on the model's device in its precision, in eval mode, and leaves its mode as it was.
    """
    letterboxer = Letterboxer()
    waiting: dict[tuple[int, int], list[tuple[int, Letterbox, npt.NDArray[np.uint8]]]] = {}
    for number, picture in enumerate(pictures):
        image = _rgb(picture)
        shape = input_shape(input_size, image.shape[1], image.shape[0])
        canvas = np.empty((*shape, 3), np.uint8)
        waiting.setdefault(shape, []).append((number, letterboxer.write_rgb(image, canvas), canvas))
    found: dict[int, npt.NDArray[np.float32]] = {}
    for group in waiting.values():
        for start in range(0, len(group), _BATCH):
            batch = group[start : start + _BATCH]
            predictions = _predict(model, np.stack([canvas for _, _, canvas in batch]))
            for (number, box, _), prediction in zip(batch, predictions, strict=True):
                found[number] = postprocess(prediction, box, confidence, iou)
    return [found[number] for number in range(len(pictures))]


def _predict(model: Detector, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    weight = next(model.parameters())
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            tensor = torch.from_numpy(images).to(weight.device).to(weight.dtype) * (1 / 255)
            predictions: npt.NDArray[np.float32] = model(tensor.permute(0, 3, 1, 2)).float().cpu().numpy()
    finally:
        model.train(was_training)
    return predictions


def _rgb(picture: Picture) -> npt.NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB. ValueError for an array that is something else, ImageError for what is no picture."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"picture of shape {picture.shape} and type {picture.dtype}, not (h, w, 3) uint8 RGB")
        return picture
    return to_rgb(picture) if isinstance(picture, PIL.Image.Image) else read_image(picture)
