"""From a worker's configuration to an engine that has answered once. Raises whatever is in the way; see `describe`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.inference.config import WorkerConfig
from yolov9.bundle import Bundle
from yolov9.engines import Engine, choose, create, usual_shape
from yolov9.geometry import Letterbox
from yolov9.postprocess import PredictionError, postprocess


class Loaded(NamedTuple):
    """An engine that can run, and what Hello says of it."""

    engine: Engine
    why: str
    shape: tuple[int, int]
    """(height, width) to make warm first."""
    throughput: Callable[[], Engine] | None = None
    """Makes the same engine for throughput. None: there is no such choice."""


def load(config: WorkerConfig) -> Loaded:
    """The configured engine, ready for `shape`: one inference has succeeded."""
    loaded = _factory(config)(config)
    height, width = loaded.shape
    loaded.engine.prepare(height, width)
    prediction = loaded.engine.infer([np.zeros((height, width, 3), np.uint8)])
    check_prediction(prediction, 1)
    postprocess(prediction[0], Letterbox.fit(width, height, width, height))
    return loaded


def check_prediction(prediction: npt.NDArray[np.float32], images: int) -> None:
    """PredictionError unless there is one prediction for each image. What is inside is checked by `postprocess`."""
    if prediction.ndim != 3 or len(prediction) != images:
        raise PredictionError(f"the engine gave predictions of shape {prediction.shape} for {images} images")


def describe(error: Exception) -> str:
    """An exception as one line for people."""
    text = " ".join(str(error).split()) or "no message"
    known = type(error).__module__.partition(".")[0] in ("server", "yolov9")
    return text if known else f"{type(error).__name__}: {text}"


def _factory(config: WorkerConfig) -> Callable[[WorkerConfig], Loaded]:
    if config.engine_factory is None:
        return _from_bundle
    module, _, function = config.engine_factory.partition(":")
    made: Callable[[WorkerConfig], Loaded] = getattr(importlib.import_module(module), function)
    return made


def _from_bundle(config: WorkerConfig) -> Loaded:
    """BundleError, EngineError."""
    bundle = Bundle.load(config.bundle)
    make = partial(create, bundle, threads=config.threads, max_batch=config.max_batch, cache_dir=config.cache_dir)
    choice = choose(
        bundle, config.engine, config.precision, threads=config.threads, max_batch=config.max_batch,
        cache_dir=config.cache_dir, mode="throughput" if config.mode == "throughput" else "latency",
    )  # fmt: skip
    engine, throughput = choice.engine, None
    if config.mode == "auto" and engine.name == "openvino":
        throughput = partial(make, engine.name, engine.precision, mode="throughput")
    return Loaded(engine, choice.why, usual_shape(bundle), throughput)
