"""ONNX Runtime: for machines without OpenVINO, and for any of its providers (CUDA, CoreML, TensorRT, ...).

One session serves all shapes. `run` may be called from several threads and releases the GIL.

int8 is signed and symmetric in the file, as TensorRT and ARM want it. On x86 the fast kernels take unsigned activations
only: there the zero point that all of them share, 0, is exchanged for its unsigned twin, 128, before the session is
made, which changes no value (GELAN-T at 640x480, one thread: 46 ms instead of 220; 74 in fp32).
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from yolov9.bundle import INPUT_NAME, INT8_ONNX, Bundle
from yolov9.engines.base import EngineError, batch_shape, check_shape
from yolov9.engines.cpu import available_cpus, cpu_flags

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_PREFERRED = (CUDA, "CoreMLExecutionProvider", CPU)
"""Used if the installed build has them. TensorRT, which builds for minutes, only if asked for."""
_GPU_BATCH = 8
_X86 = ("x86_64", "amd64")
_SIGNED_ZERO = b"\x10\x03B\x09int8/zeroJ\x01\x00"
_UNSIGNED_ZERO = b"\x10\x02B\x09int8/zeroJ\x01\x80"
"""The zero point as ONNX writes the tensor (type, name, value): int8 0 and uint8 128. Of equal length, so that the one
can stand for the other in the file."""


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
        last. `precision`: what the bundle's graphs hold; auto takes int8, if there is a graph in it, on the CPU alone.
        `cache_dir` is not used. EngineError.
        """
        available = ort.get_available_providers()
        unknown = [p for p in providers or () if p not in available]
        if unknown:
            raise EngineError(f"onnxruntime: no provider {unknown[0]!r} here (there are {', '.join(available)})")
        wanted = [*providers] if providers else [p for p in _PREFERRED if p in available]
        self.precision = _choose_precision(bundle, precision, wanted[0])
        threads = threads if threads is not None else available_cpus()
        self.parallel = threads if mode == "throughput" else 1
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1 if mode == "throughput" else threads
        options.log_severity_level = 3
        path = bundle.onnx
        if self.precision == "int8":
            path = bundle.file(INT8_ONNX) or path
        graph = path.read_bytes()
        if self.precision == "int8" and wanted[0] == CPU and platform.machine().lower() in _X86:
            graph = graph.replace(_SIGNED_ZERO, _UNSIGNED_ZERO, 1)
            if _saturates():
                options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = ort.InferenceSession(graph, options, providers=wanted)
        except Exception as error:  # its exceptions have no common base below Exception
            raise EngineError(f"{path}: onnxruntime cannot run it: {error}") from error
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


def _choose_precision(bundle: Bundle, asked: str, provider: str) -> str:
    held = {str(bundle.precision)} | ({"int8"} if bundle.file(INT8_ONNX) is not None else set())
    if asked == "auto":
        return "int8" if "int8" in held and provider == CPU else bundle.precision
    if asked not in held:
        raise EngineError(f"onnxruntime: {asked} was asked for, but the bundle is {' and '.join(sorted(held))}")
    return asked


def _saturates() -> bool:
    """Whether this x86 CPU adds products of bytes in 16 bits, which overflow: all do that lack the VNNI instructions.
    False where that cannot be told."""
    flags = cpu_flags()
    return bool(flags) and not any("_vnni" in flag for flag in flags)
