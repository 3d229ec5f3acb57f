"""A model ready for use: pictures and decoded frames of any size in, detections in their own pixels out.

It joins letterbox, engine and suppression exactly as the server does, one picture at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from yolov9.engines import Engine
from yolov9.geometry import Letterbox, input_shape, input_shapes
from yolov9.letterbox import Letterboxer, displayed_size
from yolov9.postprocess import postprocess

EXCLUDED = 2.0
"""Threshold of a class that is not wanted: above every score."""

Rgb = npt.NDArray[np.uint8]
Detections = npt.NDArray[np.float32]


class PredictError(Exception):
    """The command cannot be carried out at all. One sentence."""


class Predictor:
    """One model with its thresholds, for one thread. Detections are (n, 6): x1, y1, x2, y2 in source pixels,
    confidence, class id; best first."""

    def __init__(
        self,
        engine: Engine,
        names: Mapping[int, str],
        input_size: int = 640,
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        classes: Sequence[str] | None = None,
    ) -> None:
        """`classes`: names to report, None for all. PredictError for an unknown name or an impossible input size."""
        self.names = dict(names)
        self._engine = engine
        self._input_size = input_size
        self._confidence = confidence
        self._iou = iou
        self._thresholds = _class_thresholds(self.names, classes, confidence)
        self._letterboxer = Letterboxer()
        self._inputs: dict[tuple[int, int], Rgb] = {}
        try:
            input_shapes(input_size)
        except ValueError as error:
            raise PredictError(str(error)) from None

    def image(self, image: Rgb) -> Detections:
        """Of an RGB image (h, w, 3) uint8. EngineError, PredictionError."""
        pixels = self._input(image.shape[1], image.shape[0])
        return self._detect(pixels, self._letterboxer.write_rgb(image, pixels))

    def frame(self, frame: av.VideoFrame) -> Detections:
        """Of a decoded frame, in pixels of the upright picture. EngineError, PredictionError."""
        pixels = self._input(*displayed_size(frame))
        return self._detect(pixels, self._letterboxer.write(frame, pixels))

    def picture(self, frame: av.VideoFrame) -> Rgb:
        """A decoded frame in its own size, upright, to be drawn on."""
        return self._letterboxer.picture(frame)

    def messages(self, found: Detections) -> list[dict[str, Any]]:
        """Detections as the server sends them: boxes to .01 pixel, confidence to .0001."""
        rows = found.astype(np.float64)
        return [
            {"class": self.names[int(row[5])], "class_id": int(row[5]), "confidence": round(row[4], 4),
             "box": [round(x, 2) for x in row[:4]]}
            for row in rows.tolist()
        ]  # fmt: skip

    def _input(self, width: int, height: int) -> Rgb:
        shape = input_shape(self._input_size, width, height)
        if shape not in self._inputs:
            self._inputs[shape] = np.empty((*shape, 3), np.uint8)
        return self._inputs[shape]

    def _detect(self, pixels: Rgb, box: Letterbox) -> Detections:
        prediction = self._engine.infer([pixels])[0]
        return postprocess(prediction, box, self._confidence, self._iou, self._thresholds)


def _class_thresholds(
    names: Mapping[int, str], classes: Sequence[str] | None, confidence: float
) -> npt.NDArray[np.float32] | None:
    if classes is None:
        return None
    unknown = [c for c in classes if c not in names.values()]
    if unknown:
        raise PredictError(f"the model has no class {unknown[0]!r} (it has {', '.join(names.values())})")
    return np.array([confidence if names[i] in classes else EXCLUDED for i in range(len(names))], np.float32)
