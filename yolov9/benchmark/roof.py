"""The most that this machine can do: a chain of 3x3 convolutions that keeps every core busy and fits into the caches.

OpenVINO on a CPU, PyTorch on a GPU, at a given precision. No model of convolutions can be faster than that, so its
share of the roof says how much is left to be gained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from yolov9 import openvino_core
from yolov9.engines.base import EngineError

CHANNELS, SIDE, LAYERS = 256, 40, 8
"""As in the middle of YOLOv9-C at 640 pixels. 15 GFLOP: some 20 to 70 ms on two cores."""
_GPU_BATCH = 32
"""A GPU is not filled by one picture."""
_OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class Roof:
    """Has of `Engine` what a measurement needs. `infer` pays no heed to the images."""

    name = "roof"
    parallel = 1
    max_batch = 1

    def __init__(self, precision: str, threads: int, device: str) -> None:
        """EngineError if the device does not compute in `precision`."""
        self.precision = precision
        self.device = device
        if device == "cpu":
            self._run, batch = _on_cpu(precision, threads), 1
        else:
            self._run, batch = _on_gpu(precision, device), _GPU_BATCH
        self.operations = 2 * 9 * CHANNELS**2 * SIDE**2 * LAYERS * batch
        """Of one `infer`; a multiply-add counts two."""

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        self._run()
        return np.zeros((len(images), 0, 0), np.float32)

    def close(self) -> None:
        self._run = lambda: None


def _on_cpu(precision: str, threads: int) -> Callable[[], None]:
    import openvino as ov
    from openvino import opset13 as ops

    core = openvino_core.core()
    capability = {"bf16": "BF16", "fp16": "FP16", "int8": "INT8"}.get(precision)
    if precision not in _OPENVINO_TYPES or (
        capability and capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    ):
        raise EngineError(f"roof: this CPU does not compute in {precision}")
    random = np.random.default_rng(0)

    def limited(node: Any, low: float, high: float, levels: int) -> Any:
        """A tensor as int8 stores it, if that is asked for."""
        if precision != "int8":
            return node
        bounds = [ops.constant(np.full((1, 1, 1, 1), v, np.float32)) for v in (low, high)]
        return ops.fake_quantize(node, *bounds, *bounds, levels)

    image = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    node = limited(image, 0, 6, 256)
    for _ in range(LAYERS):
        weights = random.normal(0, (9 * CHANNELS) ** -0.5, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        kernel = limited(ops.constant(weights), -0.1, 0.1, 255)
        node = ops.convolution(node, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
        node = limited(ops.clamp(node, 0, 6), 0, 6, 256)
    config = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[precision],
        "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    request = core.compile_model(ov.Model([node], [image]), "CPU", config).create_infer_request()
    request.get_input_tensor().data[:] = random.uniform(0, 6, (1, CHANNELS, SIDE, SIDE))

    def run() -> None:
        request.infer()

    return run


def _on_gpu(precision: str, device: str) -> Callable[[], None]:
    import torch
    from torch import nn

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in types:
        raise EngineError(f"roof: PyTorch's convolutions do not compute in {precision}")
    if not torch.cuda.is_available():
        raise EngineError("roof: no CUDA device here, or a build of PyTorch without CUDA")
    layers = nn.Sequential(*(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(LAYERS)))
    image = torch.rand(_GPU_BATCH, CHANNELS, SIDE, SIDE, device=device, dtype=types[precision])
    image = image.contiguous(memory_format=torch.channels_last)
    layers.to(device, types[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated

    def run() -> None:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            layers(image)
            torch.cuda.synchronize(device)

    return run
