"""A fake engine for tests: no model, quick to start, and its pictures tell it what to do, or what to do wrong.

    config = WorkerConfig(bundle=fake_bundle(seconds=0.01), engine_factory=FACTORY)

A picture's first pixel is (behaviour, class id, confidence in 1/255); see `mark`. Each picture has one object, in the
box `BOX` of the input.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from server.inference.config import WorkerConfig
from server.inference.loading import Loaded, Progress, Upgrade
from yolov9.engines.base import Engine, EngineError, Limits
from yolov9.geometry import Letterbox
from yolov9.postprocess import postprocess

FACTORY = "server.testing.engines:load"
CLASSES = 4
ANCHORS = 400
BOX = (32.0, 64.0, 96.0, 160.0)
"""x1, y1, x2, y2 in input pixels."""
BAD_HEIGHT = 96
"""Inputs of this height cannot be prepared."""
_POLL_S = 0.01


class Behaviour(IntEnum):
    DETECT = 0
    RAISE = 1
    NAN = 2
    HANG = 3
    CRASH = 4
    """A real SIGSEGV, as of a native library."""
    CROWD = 5
    """An object in every anchor, none of which overlap."""


class FakeSettings(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float = 0.0
    """What a picture takes, asleep and without the GIL, like a native call."""
    parallel: int = 1
    max_batch: int = 8
    throughput_seconds: float | None = None
    """What a picture takes in throughput mode, two of them side by side. None: there is no such mode."""
    prepare_seconds: float = 0.0
    fails_while: str | None = None
    """The engine cannot be started as long as there is a file of this path."""
    hangs_while: str | None = None
    """The start hangs if there is a file of this path."""
    upgrade: str | None = None
    """A faster engine, which suppresses on its device, is built as soon as there is a file of this path. What the file
    says goes wrong: `build`, `make`, `prepare`; empty: nothing. None: there is no faster one."""


def fake_bundle(**settings: object) -> str:
    """`WorkerConfig.bundle` for a fake engine with these `FakeSettings`."""
    return msgspec.json.encode(msgspec.convert(settings, FakeSettings)).decode()


def mark(
    image: npt.NDArray[np.uint8], behaviour: Behaviour = Behaviour.DETECT, class_id: int = 0, confidence: int = 255
) -> None:
    """Tell the engine what to do with the picture `image` (H, W, 3)."""
    image[0, 0] = (behaviour, class_id, confidence)


def load(config: WorkerConfig) -> Loaded:
    """The factory."""
    settings = msgspec.json.decode(config.bundle, type=FakeSettings)
    if settings.hangs_while is not None and Path(settings.hangs_while).exists():
        time.sleep(3600)
    if settings.fails_while is not None and Path(settings.fails_while).exists():
        raise EngineError("the fake engine was told not to start")
    other = None
    if settings.throughput_seconds is not None:
        other = partial(FakeEngine, msgspec.structs.replace(settings, seconds=settings.throughput_seconds, parallel=2))
    upgrade = None
    if settings.upgrade is not None:
        upgrade = _upgrade(settings, Path(settings.upgrade))
    return Loaded(FakeEngine(settings), "it is the only one", (384, 640), other, upgrade)


def _upgrade(settings: FakeSettings, path: Path) -> Upgrade:
    def fail_if(what: str) -> None:
        if path.read_text() == what:
            raise EngineError(f"the fake upgrade was told to fail ({what})")

    def build(progress: Progress, cancelled: threading.Event) -> None:
        progress(0.5, "waiting")
        while not path.exists() and not cancelled.wait(_POLL_S):
            pass
        fail_if("build")

    def make() -> Engine:
        fail_if("make")
        return SuppressingFakeEngine(settings, partial(fail_if, "prepare"))

    return Upgrade("faster", "fp16", build, make)


class FakeEngine:
    name = "fake"
    precision = "fp32"
    device = "none"

    def __init__(self, settings: FakeSettings) -> None:
        self._settings = settings
        self.parallel = settings.parallel
        self.max_batch = settings.max_batch
        self.closed = False

    def prepare(self, height: int, width: int) -> None:
        if height == BAD_HEIGHT:
            raise EngineError(f"the fake engine was told not to prepare {width}x{height}")
        time.sleep(self._settings.prepare_seconds)

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        time.sleep(self._settings.seconds * len(images))
        if self.closed:
            raise EngineError("the fake engine is closed")
        predictions = np.zeros((len(images), 4 + CLASSES, ANCHORS), np.float32)
        for image, prediction in zip(images, predictions, strict=True):
            self._look(image, prediction)
        return predictions

    def close(self) -> None:
        self.closed = True

    def _look(self, image: npt.NDArray[np.uint8], prediction: npt.NDArray[np.float32]) -> None:
        behaviour, class_id, confidence = (int(value) for value in image[0, 0])
        match behaviour:
            case Behaviour.RAISE:
                raise EngineError("the fake engine was told to fail")
            case Behaviour.NAN:
                prediction[4:, 7] = np.nan
            case Behaviour.HANG:
                time.sleep(3600)
            case Behaviour.CRASH:
                ctypes.string_at(0)
            case Behaviour.CROWD:
                top, left = np.divmod(np.arange(ANCHORS, dtype=np.float32) * 8, 640)
                prediction[:4] = (left, 64 + top * 8, left + 8, 72 + top * 8)
                prediction[4 + class_id] = 1.0
            case _:
                prediction[:4, 0] = BOX
                prediction[4 + class_id, 0] = confidence / 255


class SuppressingFakeEngine(FakeEngine):
    """What the others become. It finds things twice as likely, up to certainty, so that its results can be told."""

    name = "faster"
    precision = "fp16"
    classes = CLASSES

    def __init__(self, settings: FakeSettings, before_prepare: Callable[[], None]) -> None:
        super().__init__(settings)
        self.parallel, self.max_batch = 2 * settings.parallel, 2 * settings.max_batch
        self._before_prepare = before_prepare

    def prepare(self, height: int, width: int) -> None:
        self._before_prepare()
        super().prepare(height, width)

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        predictions = super().infer(images)
        predictions[:, 4:] = np.minimum(2 * predictions[:, 4:], 1)
        return predictions

    def detect(
        self, images: Sequence[npt.NDArray[np.uint8]], limits: Sequence[Limits]
    ) -> list[npt.NDArray[np.float32]]:
        height, width, _ = images[0].shape
        whole = Letterbox.fit(width, height, width, height)
        return [
            postprocess(
                prediction, whole, limit.confidence, limit.iou, limit.class_thresholds,
                max_detections=limit.max_detections,
            )
            for prediction, limit in zip(self.infer(images), limits, strict=True)
        ]  # fmt: skip
