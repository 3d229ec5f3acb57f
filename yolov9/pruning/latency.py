"""What a model takes in the engine that will serve it, in milliseconds, on a machine that is not quiet.

The pruned model and the whole one run in turns, and the ratio of their times is what counts: another process on the
same cores slows both, and an absolute figure of a shared machine wanders by a quarter.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolov9.bundle import BundleError
from yolov9.engines import Engine, EngineError, choose
from yolov9.export import ExportError, export, pictures
from yolov9.nn.model import Detector
from yolov9.pruning.spaces import PruneError

_SECONDS = 3.0
_TURNS = 5, 60
"""At least and at most, whatever they take."""
_RUNS = 3
"""Of each model in a turn, of which the fastest counts: the first one finds the caches full of the other model."""


class Stopwatch:
    """Measures models against a whole one, at batch 1 on a square of `input_size` pixels. Close it."""

    def __init__(self, whole: Detector, engine: str, precision: str, input_size: int) -> None:
        """`engine`, `precision`: as in `yolov9.engines.choose`. PruneError if there is none."""
        self._engine_name, self._precision, self._size = engine, precision, input_size
        self._image = pictures(1, input_size, input_size, seed=0)[0]
        self._open = self.running(whole)
        self._whole = self._open.__enter__()
        self.whole_ms = statistics.median(self._turn(self._whole) for _ in range(_TURNS[0]))
        """Of the whole model."""

    @property
    def engine(self) -> str:
        """For people: openvino bf16 on ..."""
        return f"{self._whole.name} {self._whole.precision} on {self._whole.device}"

    def __call__(self, model: Detector) -> float:
        """Milliseconds of `model`: the whole one's times the median ratio. PruneError if the engine fails."""
        with self.running(model) as engine:
            ratios: list[float] = []
            end = time.perf_counter() + _SECONDS
            while len(ratios) < _TURNS[0] or (len(ratios) < _TURNS[1] and time.perf_counter() < end):
                ratios.append(self._turn(engine) / self._turn(self._whole))
        return self.whole_ms * statistics.median(ratios)

    @contextmanager
    def running(self, model: Detector) -> Iterator[Engine]:
        """An engine that runs `model`, ready for the square. PruneError if there is none."""
        with tempfile.TemporaryDirectory(prefix="yolov9-prune-") as scratch:
            try:
                bundle = export(model, Path(scratch) / "model", input_size=self._size, check=False)
                engine = choose(bundle, self._engine_name, self._precision).engine
                engine.prepare(self._size, self._size)
            except (ExportError, BundleError, EngineError) as e:
                raise PruneError(f"the model cannot be run: {e}") from e
            try:
                yield engine
            finally:
                engine.close()

    def close(self) -> None:
        self._open.__exit__(None, None, None)

    def _turn(self, engine: Engine) -> float:
        """Milliseconds of the fastest of some runs."""
        times = []
        for _ in range(_RUNS):
            begin = time.perf_counter()
            try:
                engine.infer([self._image])
            except EngineError as e:
                raise PruneError(f"the model cannot be run: {e}") from e
            times.append(time.perf_counter() - begin)
        return min(times) * 1e3
