"""NVIDIA GPUs: an engine that was built for the model, in half precision or int8, with suppression on the device.

Building takes minutes, so engines are cached (`cache`). The server never waits for it: it asks for engines that are
there (`build=False`) and has a process of its own build what is not (`background`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from yolov9.bundle import Bundle
from yolov9.engines.base import EngineError, Limits, batch_shape, check_shape
from yolov9.engines.tensorrt.provide import NotBuilt, Site, provide, site
from yolov9.engines.tensorrt.recipe import Recipe
from yolov9.engines.tensorrt.runtime import LANES, Batch, Floats, Images, Session, Thresholds
from yolov9.geometry import Letterbox
from yolov9.postprocess import PredictionError, postprocess, suppress

log = logging.getLogger("yolov9.engines.tensorrt")

_NOTHING = 2.0
"""No score reaches it."""


class TensorRtEngine:
    """See `Engine` and `SuppressingEngine`."""

    name = "tensorrt"
    parallel = LANES

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str = "auto",
        threads: int | None = None,
        max_batch: int | None = None,
        cache_dir: str | Path | None = None,
        mode: Literal["latency", "throughput"] = "latency",
        device: str | None = None,
        build: bool = True,
        where: Site | None = None,
    ) -> None:
        """`precision`: auto takes int8 where the bundle is quantised, else fp16. `cache_dir`: by default a folder of
        the user's. `device`: cuda or cuda:N. `build`: if there is no engine yet, build it now, which takes minutes;
        else NotBuilt is raised. `where`: instead of this machine's TensorRT and GPU. `threads` and `mode` change
        nothing. EngineError.
        """
        where = where or site(bundle, precision=precision, max_batch=max_batch, cache_dir=cache_dir, device=device)
        self._site = where
        self._recipe, plan = _engine(where, build)
        self.precision: str = self._recipe.precision
        self.classes = self._recipe.classes
        self.max_batch = self._recipe.max_batch
        self.device = f"{where.cuda.name} ({where.api})"
        kernels = where.cache.kernels(self._recipe) if where.api.portable else None
        self._session = Session(where.api, where.cuda, self._recipe, plan, kernels=kernels)
        self._kernels = len(kernels or b"")

    def prepare(self, height: int, width: int) -> None:
        check_shape(height, width)
        self._session.prepare(height, width)
        compiled = self._session.compiled()
        if compiled is not None and len(compiled) != self._kernels:
            self._kernels = len(compiled)
            with contextlib.suppress(OSError):  # a folder that cannot be written costs the next start some seconds
                self._site.cache.add_kernels(self._recipe, compiled)

    def infer(self, images: Images) -> Floats:
        batch_shape(images)
        parts = []
        for part in self._parts(images):
            nothing = Thresholds(
                np.full((len(part), self._recipe.classes), _NOTHING, np.float32), np.zeros((len(part), 1), np.float32)
            )
            with self._session.run(part, nothing) as batch:
                parts.append(self._session.predictions(batch, 0, len(part)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def detect(self, images: Images, limits: Sequence[Limits]) -> list[Floats]:
        height, width = batch_shape(images)
        found: list[Floats] = []
        for part in self._parts(images):
            mine = limits[len(found) : len(found) + len(part)]
            with self._session.run(part, _thresholds(mine, self._recipe)) as batch:
                found += [self._finish(batch, i, limit, height, width) for i, limit in enumerate(mine)]
        return found

    def close(self) -> None:
        self._session.close()

    def _parts(self, images: Images) -> list[Images]:
        return [images[i : i + self.max_batch] for i in range(0, len(images), self.max_batch)]

    def _finish(self, batch: Batch, index: int, limit: Limits, height: int, width: int) -> Floats:
        """What the device found for one image; the host does what the device could not (see `suppression`)."""
        count, changed, total = batch.summary[index]
        if not np.isfinite(total):
            raise PredictionError("the engine returned NaN or infinity")
        if count > self._recipe.candidates:
            (prediction,) = self._session.predictions(batch, index, 1)
            input_itself = Letterbox.fit(width, height, width, height)
            return postprocess(
                prediction, input_itself, limit.confidence, limit.iou, limit.class_thresholds,
                max_detections=limit.max_detections,
            )  # fmt: skip
        return pick(batch.candidates[index], bool(changed), limit)


def pick(candidates: Floats, unsettled: bool, limit: Limits) -> Floats:
    """The rows (x1, y1, x2, y2, score, class, stays) of one image (7, K) -> what stays of it, (n, 6)."""
    *_, scores, classes, stays = candidates
    kept: npt.NDArray[np.intp]
    if unsettled:
        valid = int((scores >= 0).sum())
        kept = suppress(candidates[:4, :valid], classes[:valid].astype(np.intp), limit.iou, limit.max_detections)
    else:
        kept = np.flatnonzero(stays > 0.5)[: limit.max_detections]
    return np.ascontiguousarray(candidates[:6, kept].T)


def _engine(where: Site, build: bool) -> tuple[Recipe, bytes]:
    found = where.find()
    if found is not None:
        return found
    if not build:
        raise NotBuilt(f"there is no engine of {where.wanted} in {where.cache.folder} yet")
    # Not for the log alone: without any logging set up it is shown, and it explains minutes of silence.
    log.warning("building the TensorRT engine of %s: this takes minutes, once; kept in %s", where.wanted,
                where.cache.folder)  # fmt: skip
    try:
        return provide(where, progress=lambda share, what: log.info("building %.0f %% %s", 100 * share, what))
    except OSError as error:
        raise EngineError(f"{where.cache.folder}: {error.strerror or error}") from error


def _thresholds(limits: Sequence[Limits], recipe: Recipe) -> Thresholds:
    minimum = np.empty((len(limits), recipe.classes), np.float32)
    share = np.empty((len(limits), 1), np.float32)
    for row, limit in enumerate(limits):
        if limit.class_thresholds is not None and limit.class_thresholds.shape != (recipe.classes,):
            raise ValueError(f"class_thresholds of shape {limit.class_thresholds.shape} for {recipe.classes} classes")
        minimum[row] = limit.confidence if limit.class_thresholds is None else limit.class_thresholds
        share[row] = np.float32(limit.iou / (1 + limit.iou))
    return Thresholds(minimum, share)
