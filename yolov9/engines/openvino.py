"""OpenVINO: the default on CPUs, two to four times as fast as PyTorch there.

Every (height, width, batch) of a small set is compiled with static shapes, which folds the anchors away and lets the
memory be planned. Threads are never pinned: the decoders of the cameras live on the same cores. What it computes in is
always stated, since OpenVINO's own choice differs from CPU to CPU: bf16 where the CPU multiplies it natively (here 1.6
to 1.9 times the images of fp32, boxes within a pixel), fp32 elsewhere; int8 where the bundle has it.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import openvino as ov

from yolov9 import openvino_core
from yolov9.bundle import OPENVINO_MODEL, OPENVINO_WEIGHTS, Bundle
from yolov9.engines.base import EngineError, batch_shape, buckets, check_shape
from yolov9.engines.cpu import available_cpus, limited

log = logging.getLogger("yolov9.engines")

DEVICE = "CPU"
_QUANTISER = b'type="FakeQuantize"'
"""Stands in the XML of a quantised model."""
_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}
"""What the CPU must be able to do; fp32 always works."""

_Key = tuple[int, int, int]


class OpenVinoEngine:
    """See `Engine`. `mode`: latency (one inference on all threads) or throughput (several side by side, `parallel`)."""

    name = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str = "auto",
        threads: int | None = None,
        max_batch: int | None = None,
        cache_dir: str | Path | None = None,
        mode: Literal["latency", "throughput"] = "latency",
    ) -> None:
        """Read the model; shapes are compiled by `prepare`. `cache_dir` keeps compiled models for the next start.

        `max_batch` is 1 by default: at 640 pixels larger batches bring nothing on a CPU. EngineError.
        """
        self.max_batch = 1 if max_batch is None else max_batch
        self.parallel = 1
        """In throughput mode known only after the first `prepare`."""
        self._core = openvino_core.core()
        self.device = str(self._core.get_property(DEVICE, "FULL_DEVICE_NAME")).strip()
        self.precision = _choose_precision(
            bundle, precision, self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        )
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": mode.upper(),
            # A quantised graph says itself what is int8; the hint is for the rest of it.
            "INFERENCE_PRECISION_HINT": _TYPES.get(self.precision, "f32"),
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None or limited():
            self._config["INFERENCE_NUM_THREADS"] = threads if threads is not None else available_cpus()
        if cache_dir is not None:
            self._config["CACHE_DIR"] = str(cache_dir)
        self._model = _read(self._core, bundle, self.precision)
        self._compiled: dict[_Key, ov.CompiledModel] = {}
        self._compiling = threading.Lock()
        self._requests = threading.local()

    def prepare(self, height: int, width: int) -> None:
        """Compile the shape for every batch size and run each once. `infer` of other shapes goes on meanwhile."""
        check_shape(height, width)
        blank = np.full((height, width, 3), 114, np.uint8)
        for batch in buckets(self.max_batch):
            self._infer([blank] * batch, height, width)

    def infer(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """See `Engine`. A shape that has not been prepared is compiled now, which takes a second."""
        height, width = batch_shape(images)
        if len(images) <= self.max_batch:
            return self._infer(images, height, width)
        parts = (images[i : i + self.max_batch] for i in range(0, len(images), self.max_batch))
        return np.concatenate([self._infer(part, height, width).copy() for part in parts])

    def close(self) -> None:
        self._compiled.clear()
        self._requests = threading.local()

    def _infer(self, images: Sequence[npt.NDArray[np.uint8]], height: int, width: int) -> npt.NDArray[np.float32]:
        batch = next(b for b in buckets(self.max_batch) if b >= len(images))
        request, own_input = self._request((height, width, batch))
        try:
            if batch == 1 and images[0].flags.c_contiguous and images[0].flags.writeable:
                # The picture is read where it lies. `images` keeps it alive until the inference is done.
                request.set_input_tensor(ov.Tensor(images[0][None], shared_memory=True))
            else:
                np.stack(images, out=own_input.data[: len(images)])  # what is behind them is computed and left out
                request.set_input_tensor(own_input)
            request.infer()  # releases the GIL
            output: npt.NDArray[np.float32] = request.get_output_tensor().data
        except RuntimeError as error:
            raise EngineError(f"openvino: {_first_line(error)}") from error
        return output[: len(images)]

    def _request(self, key: _Key) -> tuple[ov.InferRequest, ov.Tensor]:
        """This thread's request of a compiled shape, and an input tensor of its own."""
        mine = cast(dict[_Key, tuple[ov.InferRequest, ov.Tensor]], self._requests.__dict__)
        if key not in mine:
            request = self._compile(key).create_infer_request()
            mine[key] = request, request.get_input_tensor()
        return mine[key]

    def _compile(self, key: _Key) -> ov.CompiledModel:
        with self._compiling:
            if key in self._compiled:
                return self._compiled[key]
            height, width, batch = key
            began = time.monotonic()
            model = self._model.clone()
            try:
                model.reshape([batch, height, width, 3])
                compiled = self._core.compile_model(model, DEVICE, self._config)
            except RuntimeError as error:
                raise EngineError(f"openvino cannot compile {width}x{height}: {_first_line(error)}") from error
            self.parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
            self._compiled[key] = compiled
            log.info(
                "compiled engine=openvino precision=%s shape=%dx%d batch=%d seconds=%.2f",
                self.precision, width, height, batch, time.monotonic() - began,
            )  # fmt: skip
            return compiled


def _choose_precision(bundle: Bundle, asked: str, capabilities: Sequence[str]) -> str:
    if asked in ("auto", "int8") and (bundle.precision == "int8" or _quantised(bundle)):
        return "int8"
    if bundle.precision == "int8":
        raise EngineError(f"openvino: {asked} was asked for, but the bundle is int8")
    if asked == "int8":
        raise EngineError(f"openvino: int8 was asked for, but {bundle.path} has no model in int8; to make it one: "
                          f"python -m yolov9.quantize --weights {bundle.path} --data DATA --out BUNDLE")  # fmt: skip
    if asked == "auto":
        return "bf16" if "BF16" in capabilities else "fp32"
    if asked not in _TYPES:
        raise EngineError(f"openvino: unknown precision {asked!r} (auto, {', '.join(_TYPES)}, int8)")
    if asked in _CAPABILITIES and _CAPABILITIES[asked] not in capabilities:
        raise EngineError(f"openvino: this CPU does not compute in {asked}")
    return asked


def _quantised(bundle: Bundle) -> bool:
    """Whether the bundle's own OpenVINO files are in int8."""
    path = bundle.file(OPENVINO_MODEL)
    return path is not None and _QUANTISER in path.read_bytes()


def _read(core: ov.Core, bundle: Bundle, precision: str) -> ov.Model:
    """The bundle's own OpenVINO files if there are any in that precision, else its ONNX graph."""
    own = bundle.file(OPENVINO_MODEL)
    path = own if own is not None and (precision == "int8" or not _quantised(bundle)) else bundle.onnx
    if path == own and bundle.file(OPENVINO_WEIGHTS) is None:
        raise EngineError(f"{path}: {OPENVINO_WEIGHTS} is not listed in the bundle")
    try:
        model = core.read_model(str(path))
        images, predictions = model.inputs, model.outputs
        rows = predictions[0].partial_shape[1] if len(predictions) == 1 else None
    except RuntimeError as error:
        raise EngineError(f"{path}: openvino cannot read it: {_first_line(error)}") from error
    fits = len(images) == 1 and images[0].element_type == ov.Type.u8 and rows is not None
    if not fits or rows != 4 + len(bundle.names):
        raise EngineError(f"{path}: is not a graph from uint8 (B, H, W, 3) to (B, {4 + len(bundle.names)}, A)")
    return model


def to_files(model: ov.Model, metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Content of the .xml and .bin files that a bundle may hold. `metadata` goes into rt_info under `yolov9`."""
    for key, value in metadata.items():
        model.set_rt_info(value, ["yolov9", key])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _first_line(error: Exception) -> str:
    """OpenVINO's messages are stacks of source lines; the last one says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
