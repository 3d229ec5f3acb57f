"""An engine that can be told to fail: the real one, and a file that says how.

The file's path is in the environment variable YOLOV9_CHAOS_ENGINE; it holds `raise`, `hang` or `nan`, and there is none
as long as the engine works. Processes that were started after the file was written work, as a new process does in a
driver's bad hour, unless it says `always` too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from server.inference.config import WorkerConfig
from server.inference.loading import Loaded, from_bundle
from yolov9.engines import Engine, EngineError

FACTORY = "server.chaos.engine:load"
VARIABLE = "YOLOV9_CHAOS_ENGINE"
_FOREVER_S = 3600.0


def load(config: WorkerConfig) -> Loaded:
    """The factory."""
    loaded = from_bundle(msgspec.structs.replace(config, engine_factory=None))
    # One engine throughout: which one fails is not the question.
    return loaded._replace(engine=_Failing(loaded.engine), throughput=None, upgrade=None)


class _Failing:
    """Everything but `infer` is the real engine's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told = Path(os.environ[VARIABLE])
        self._born = time.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        try:
            fault, _, always = self._told.read_text().partition(" ")
            if self._told.stat().st_mtime < self._born and not always:
                return self._engine.infer(images)
        except FileNotFoundError:
            return self._engine.infer(images)
        if fault == "raise":
            raise EngineError("the engine was told to fail")
        if fault == "hang":
            time.sleep(_FOREVER_S)
        return np.full_like(self._engine.infer(images), np.nan)
