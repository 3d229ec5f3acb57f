"""ONNX Runtime: for machines without OpenVINO, and for any of its providers (CUDA, CoreML, TensorRT, ...).

One session serves all shapes. `run` may be called from several threads and releases the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from yolov9.bundle import INPUT_NAME, Bundle
from yolov9.engines.base import EngineError, batch_shape, check_shape
from yolov9.engines.cpu import available_cpus

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_PREFERRED = (CUDA, "CoreMLExecutionProvider", CPU)
"""Used if the installed build has them. TensorRT, which builds for minutes, only if asked for."""
_GPU_BATCH = 8


class OnnxRuntimeEngine:
    """See `Engine`. `mode`: latency (one inference on all threads) or throughput (`parallel` of one thread each)."""

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str = "auto",
        threads: int | None = None,
        max_batch: int | None = None,
        cache_dir: str | Path | None = None,
        mode: Literal["latency", "throughput"] = "latency",
        providers: Sequence[str] | None = None,
    ) -> None:
        """`providers` in order of preference, by ONNX Runtime's names; what it cannot use falls to the next, the CPU at
        last. The graph decides what is computed in, so `precision` can only confirm it. `cache_dir` is not used.
        EngineError.
        """
        if precision not in ("auto", bundle.precision):
            raise EngineError(f"onnxruntime: {precision} was asked for, but the bundle is {bundle.precision}")
        self.precision: str = bundle.precision
        available = ort.get_available_providers()
        unknown = [p for p in providers or () if p not in available]
        if unknown:
            raise EngineError(f"onnxruntime: no provider {unknown[0]!r} here (there are {', '.join(available)})")
        wanted = [*providers] if providers else [p for p in _PREFERRED if p in available]
        threads = threads if threads is not None else available_cpus()
        self.parallel = threads if mode == "throughput" else 1
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1 if mode == "throughput" else threads
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(bundle.onnx), options, providers=wanted)
        except Exception as error:  # its exceptions have no common base below Exception
            raise EngineError(f"{bundle.onnx}: onnxruntime cannot run it: {error}") from error
        provider = self._session.get_providers()[0]
        self.device = provider.removesuffix("ExecutionProvider")
        self.max_batch = max_batch if max_batch is not None else 1 if provider == CPU else _GPU_BATCH

    def prepare(self, height: int, width: int) -> None:
        check_shape(height, width)
        self._run([np.full((height, width, 3), 114, np.uint8)])

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        batch_shape(images)
        parts = [self._run(images[i : i + self.max_batch]) for i in range(0, len(images), self.max_batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """The session goes with the engine."""

    def _run(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        batch = images[0][None] if len(images) == 1 else np.stack(images)
        try:
            predictions: npt.NDArray[np.float32] = self._session.run(None, {INPUT_NAME: batch})[0]
        except Exception as error:  # see above
            raise EngineError(f"onnxruntime: {error}") from error
        return predictions
