"""PyTorch without CUDA graphs of our own, to be compared with the engine `torch`: as it is, and compiled by inductor.

For comparison only: the server runs `yolov9.engines.torch`, which on a GPU is one graph for each shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from yolov9.bundle import SAFETENSORS, Bundle
from yolov9.engines.base import EngineError, batch_shape
from yolov9.weights import WeightsError, load

MODES: dict[str, str | None] = {
    "torch-eager": None,
    "torch-compile": "default",
    "torch-compile-graphs": "reduce-overhead",
}
"""Engine's name -> mode of `torch.compile`; reduce-overhead is inductor's kernels in CUDA graphs."""
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_AUTOMATIC = {"cpu": "fp32", "cuda": "fp16"}


class TorchVariant:
    """See `Engine`. channels_last everywhere; on the CPU bf16 is autocast, on a GPU the weights are of that type."""

    parallel = 1

    def __init__(self, bundle: Bundle, name: str, *, precision: str, device: str, threads: int, max_batch: int) -> None:
        self.name, self.max_batch = name, max_batch
        self.precision = _AUTOMATIC[device] if precision == "auto" else precision
        if self.precision not in _TYPES or (device == "cpu" and self.precision == "fp16"):
            raise EngineError(f"{name}: no {self.precision} on {device}")
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"{name}: no CUDA device here, or a build of PyTorch without CUDA")
        if bundle.safetensors is None:
            raise EngineError(f"{bundle.path}: has no {SAFETENSORS}, which {name} needs")
        try:
            model = load(bundle.safetensors)
        except WeightsError as error:
            raise EngineError(str(error)) from error
        torch.set_num_threads(threads)
        model = model.eval().prune_auxiliary().fuse().requires_grad_(False).to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        self._type = torch.float32 if device == "cpu" else _TYPES[self.precision]
        self._autocast = device == "cpu" and self.precision == "bf16"
        self._device = device
        self.device = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        model.to(self._type)
        mode = MODES[name]
        self._model: Any = model if mode is None else torch.compile(model, mode=mode, dynamic=False)

    def prepare(self, height: int, width: int) -> None:
        self.infer([np.full((height, width, 3), 114, np.uint8)] * self.max_batch)

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        batch_shape(images)
        cast: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self._autocast else nullcontext()
        try:
            with torch.inference_mode(), cast:
                given = torch.from_numpy(np.stack(images)).to(self._device).permute(0, 3, 1, 2).to(self._type) / 255
                output: npt.NDArray[np.float32] = self._model(given).float().cpu().numpy()
        except RuntimeError as error:  # the device's and the compiler's errors alike
            raise EngineError(f"{self.name}: {str(error).splitlines()[0]}") from error
        return output

    def close(self) -> None:
        self._model = None
