"""From a worker's configuration to an engine that has answered once. Raises whatever is in the way; see `describe`."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.inference.config import WorkerConfig
from yolov9.bundle import Bundle
from yolov9.engines import Choice, Engine, EngineError, choose, create, nvidia_gpu, usual_shape
from yolov9.engines.tensorrt.background import build_in_background
from yolov9.engines.tensorrt.engine import TensorRtEngine
from yolov9.engines.tensorrt.provide import NotBuilt, Site, site
from yolov9.geometry import Letterbox
from yolov9.postprocess import PredictionError, postprocess

Progress = Callable[[float, str], None]
"""Share that is done, 0..1, and what is being done."""


class Upgrade(NamedTuple):
    """A faster engine than the one that runs, which has to be built first."""

    engine: str
    precision: str
    build: Callable[[Progress, threading.Event], object]
    """Takes minutes. Raises whatever is in the way, and soon once the event is set. To be called once, in a thread."""
    make: Callable[[], Engine]
    """Once it is built."""


class Loaded(NamedTuple):
    """An engine that can run, and what Hello says of it."""

    engine: Engine
    why: str
    shape: tuple[int, int]
    """(height, width) to make warm first."""
    throughput: Callable[[], Engine] | None = None
    """Makes the same engine for throughput. None: there is no such choice."""
    upgrade: Upgrade | None = None


def load(config: WorkerConfig) -> Loaded:
    """The configured engine, ready for `shape`: one inference has succeeded."""
    loaded = _factory(config)(config)
    try_out(loaded.engine, loaded.shape)
    return loaded


def try_out(engine: Engine, shape: tuple[int, int]) -> None:
    """Prepare it for (height, width) and see that what it gives is a prediction."""
    height, width = shape
    engine.prepare(height, width)
    prediction = engine.infer([np.zeros((height, width, 3), np.uint8)])
    check_prediction(prediction, 1)
    postprocess(prediction[0], Letterbox.fit(width, height, width, height))


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
        return from_bundle
    module, _, function = config.engine_factory.partition(":")
    made: Callable[[WorkerConfig], Loaded] = getattr(importlib.import_module(module), function)
    return made


def from_bundle(config: WorkerConfig) -> Loaded:
    """The engine that the configuration asks for; not tried out yet. BundleError, EngineError."""
    bundle = Bundle.load(config.bundle)
    make = partial(create, bundle, threads=config.threads, max_batch=config.max_batch, cache_dir=config.cache_dir)
    choice, upgrade = _choose(bundle, config)
    engine, throughput = choice.engine, None
    if config.mode == "auto" and engine.name == "openvino":
        throughput = partial(make, engine.name, engine.precision, mode="throughput")
    return Loaded(engine, choice.why, usual_shape(bundle), throughput, upgrade)


def _choose(bundle: Bundle, config: WorkerConfig) -> tuple[Choice, Upgrade | None]:
    """The engine to begin with, and a faster one that is not there yet. TensorRT builds for minutes, in which cameras
    are not left alone: asked for by name, too, the next best serves until it is there."""
    choosing = partial(
        choose, bundle, threads=config.threads, max_batch=config.max_batch, cache_dir=config.cache_dir,
        mode="throughput" if config.mode == "throughput" else "latency",
    )  # fmt: skip
    if config.engine == "tensorrt":
        where = _site(bundle, config)
        with contextlib.suppress(NotBuilt):
            engine = TensorRtEngine(bundle, build=False, where=where)
            return Choice(engine, f"tensorrt {engine.precision}: asked for by name"), None
        stopgap = choosing("auto", "auto")
        return Choice(stopgap.engine, f"{stopgap.why}, until tensorrt has been built"), _upgrade(where, config)
    choice = choosing(config.engine, config.precision)
    if config.engine != "auto" or choice.engine.name == "tensorrt" or not nvidia_gpu():
        return choice, None
    try:
        where = _site(bundle, config)
    except EngineError:  # it cannot be had here: the choice says why
        return choice, None
    # Built, and not chosen: it does not work, and the choice says why.
    return choice, None if where.built else _upgrade(where, config)


def _site(bundle: Bundle, config: WorkerConfig) -> Site:
    """EngineError if TensorRT cannot run the bundle here."""
    return site(bundle, precision=config.precision, max_batch=config.max_batch, cache_dir=config.cache_dir)


def _upgrade(where: Site, config: WorkerConfig) -> Upgrade:
    def build(progress: Progress, cancelled: threading.Event) -> None:
        build_in_background(
            where.bundle.path, precision=config.precision, max_batch=config.max_batch, cache_dir=config.cache_dir,
            progress=progress, cancelled=cancelled,
        )  # fmt: skip

    make = partial(TensorRtEngine, where.bundle, build=False, where=where)
    return Upgrade("tensorrt", where.wanted.precision, build, make)
