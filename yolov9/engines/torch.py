"""PyTorch: the reference on any device, and the engine for NVIDIA GPUs without TensorRT.

On the CPU it runs the model as it is (fp32, or bf16 by autocast). On a GPU it runs fp16 in channels_last, and each
(height, width, batch) of a small set becomes a CUDA graph: one launch instead of some three hundred. Boxes are decoded
in fp32 everywhere: in fp16 a coordinate above 512 moves in steps of half a pixel, in bf16 of four.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolov9.bundle import SAFETENSORS, Bundle
from yolov9.engines.base import EngineError, batch_shape, buckets, check_shape
from yolov9.engines.cpu import available_cpus, limited
from yolov9.nn.model import Detector

_GPU_BATCH = 16
_WARM_UP_RUNS = 3
"""Before a graph is captured: cuDNN chooses its kernels in the first, and no allocation must be left to do."""
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp16", "fp32", "bf16")}
"""By kind of device, the automatic choice first: on the CPU this engine is the reference."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Images = Sequence[npt.NDArray[np.uint8]]
Predictions = npt.NDArray[np.float32]
P = ParamSpec("P")
T = TypeVar("T")


class TorchEngine:
    """See `Engine`."""

    name = "torch"
    parallel = 1

    def __init__(
        self,
        source: Bundle | Detector,
        *,
        precision: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        max_batch: int | None = None,
        cache_dir: str | Path | None = None,
        mode: Literal["latency", "throughput"] = "latency",
    ) -> None:
        """`source`: a bundle with `model.safetensors`, or a model, which is copied. `device`: cpu, cuda, cuda:1, ...;
        None takes a GPU where there is one. One inference runs at a time in either `mode`; nothing is cached.
        `threads` holds for PyTorch in the whole process. EngineError.
        """
        self._device = _device(device)
        kind = self._device.type
        self.precision = _PRECISIONS[kind][0] if precision == "auto" else precision
        if self.precision not in _PRECISIONS[kind]:
            raise EngineError(f"torch: no {precision} on {kind} (there are {', '.join(_PRECISIONS[kind])})")
        self.max_batch = max_batch if max_batch is not None else _GPU_BATCH if kind == "cuda" else 1
        if threads is not None or (kind == "cpu" and limited()):
            torch.set_num_threads(threads if threads is not None else available_cpus())
        model = _model(source).to(self._device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        if kind == "cuda":
            self.device = torch.cuda.get_device_name(self._device)
            self._runner: _Runner = _CudaRunner(model.to(_DTYPES[self.precision]), self._device, self.max_batch)
        else:
            self.device = "CPU"
            self._runner = _CpuRunner(model, self.precision)

    def prepare(self, height: int, width: int) -> None:
        check_shape(height, width)
        _translated(self._runner.prepare, height, width)

    def infer(self, images: Images) -> Predictions:
        batch_shape(images)
        parts = [images[i : i + self.max_batch] for i in range(0, len(images), self.max_batch)]
        if len(parts) == 1:
            return _translated(self._runner.run, images)
        return np.concatenate([_translated(self._runner.run, part).copy() for part in parts])

    def close(self) -> None:
        self._runner.close()


class _CpuRunner:
    """PyTorch is safe to be called from several threads; shapes need no preparation beyond a first run."""

    def __init__(self, model: Detector, precision: str) -> None:
        self._model = model
        self._bf16 = precision == "bf16"

    def prepare(self, height: int, width: int) -> None:
        self.run([np.full((height, width, 3), 114, np.uint8)])

    def run(self, images: Images) -> Predictions:
        autocast: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode(), autocast:
            output: Predictions = self._model(_normalised(torch.from_numpy(np.stack(images)), torch.float32)).numpy()
        return output

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Graph:
    """A captured inference of one shape. `input` and `output` lie on the device, `staging` in pinned memory."""

    graph: torch.cuda.CUDAGraph
    staging: Tensor
    input: Tensor
    output: Tensor


class _CudaRunner:
    """One stream for inference; graphs are captured on another, so a new shape does not stop the running ones."""

    def __init__(self, model: Detector, device: torch.device, max_batch: int) -> None:
        self._model = model
        self._device = device
        self._buckets = buckets(max_batch)
        self._graphs: dict[tuple[int, int, int], _Graph] = {}
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._capturing = threading.Lock()
        self._running = threading.Lock()
        self._results = threading.local()

    def prepare(self, height: int, width: int) -> None:
        for batch in self._buckets:
            self.run([np.full((height, width, 3), 114, np.uint8)] * batch)

    def run(self, images: Images) -> Predictions:
        height, width, _ = images[0].shape
        batch = next(b for b in self._buckets if b >= len(images))
        key = (height, width, batch)
        captured = self._graphs.get(key) or self._capture(key)
        result = self._result(key, captured)
        # inference_mode: the captured tensors were made in it, and may be written in it alone.
        with self._running, torch.inference_mode(), torch.cuda.stream(self._stream):
            np.stack(images, out=captured.staging.numpy()[: len(images)])
            captured.input.copy_(captured.staging, non_blocking=True)
            captured.graph.replay()
            result.copy_(captured.output, non_blocking=True)
            self._stream.synchronize()
        output: Predictions = result.numpy()[: len(images)]
        return output

    def _result(self, key: tuple[int, int, int], captured: _Graph) -> Tensor:
        """Pinned memory for the result, this thread's own: another may infer while this one still reads."""
        mine = cast(dict[tuple[int, int, int], Tensor], self._results.__dict__)
        if key not in mine:
            mine[key] = torch.empty(captured.output.shape, dtype=torch.float32).pin_memory()
        return mine[key]

    def _capture(self, key: tuple[int, int, int]) -> _Graph:
        height, width, batch = key
        with self._capturing:
            if key in self._graphs:
                return self._graphs[key]
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # Kernels are chosen by trial; fp32 means fp32, not TF32. Both are fixed in the graph.
            kernels = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
            with torch.inference_mode(), torch.cuda.stream(stream), kernels:
                images = torch.zeros((batch, height, width, 3), dtype=torch.uint8, device=self._device)
                for _ in range(_WARM_UP_RUNS):
                    output = self._forward(images)
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                # thread_local: what other threads do on the device meanwhile does not break the capture.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    output = self._forward(images)
            staging = torch.zeros(images.shape, dtype=torch.uint8).pin_memory()
            captured = _Graph(graph, staging, images, output)
            self._graphs[key] = captured
            return captured

    def _forward(self, images: Tensor) -> Tensor:
        output: Tensor = self._model(_normalised(images, next(self._model.parameters()).dtype)).float()
        return output

    def close(self) -> None:
        with self._running, self._capturing:
            self._graphs.clear()


_Runner = _CpuRunner | _CudaRunner


def _normalised(images: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) 0..1. The permuted tensor is channels_last as it lies: nothing is moved."""
    return images.permute(0, 3, 1, 2).to(dtype) * (1 / 255)


def _model(source: Bundle | Detector) -> Detector:
    """The model for inference: without its auxiliary branch, fused, in eval mode, fp32, a copy of its own."""
    if isinstance(source, Detector):
        model = copy.deepcopy(source)
    else:
        if source.safetensors is None:
            raise EngineError(f"{source.path}: has no {SAFETENSORS}, which torch needs")
        from yolov9.weights import WeightsError, load

        try:
            model = load(source.safetensors)
        except WeightsError as error:
            raise EngineError(str(error)) from error
    return model.float().eval().prune_auxiliary().fuse().requires_grad_(False)


def _device(asked: str | None) -> torch.device:
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise EngineError(f"torch: unknown device {asked!r}") from error
    if device.type not in _PRECISIONS:
        raise EngineError(f"torch: device {device.type!r} is not served (there are {', '.join(_PRECISIONS)})")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError("torch: no CUDA device here, or a build of PyTorch without CUDA")
    return device


def _translated(run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return run(*args, **kwargs)
    except RuntimeError as error:  # out of memory and device errors are RuntimeErrors too
        raise EngineError(f"torch: {str(error).splitlines()[0]}") from error
