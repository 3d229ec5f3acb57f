"""int8 for ONNX Runtime and TensorRT: one symmetric QDQ graph, `int8.onnx` in the bundle's root.

Two passes over the pictures: histograms of the activations give the thresholds (`ranges`); then each convolution is
run rounded beside exact, and what that moves the mean of its channels goes into its bias.

All quantisers of activations share one zero point, the initialiser `int8/zero`. ONNX Runtime's fast kernels on x86
take unsigned activations only (signed ones: 220 ms of CPU for GELAN-T at 640x480 instead of 46): whoever runs it
there exchanges that one tensor, see `yolov9.engines.onnxruntime`; TensorRT reads the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from yolov9.bundle import INPUT_NAME
from yolov9.data.inputs import Inputs, spread
from yolov9.engines.cpu import available_cpus
from yolov9.quantization import QuantizeError, qdq
from yolov9.quantization.ranges import Histogram

_CORRECTION_PICTURES = 32
"""The means of channels need fewer pictures than the ends of histograms."""
_REPORT = 16
"""Pictures between two lines of progress."""

Array = npt.NDArray[np.float32]
Say = Callable[[str], None]


def quantize_onnx(graph: bytes, inputs: Inputs, say: Say = lambda line: None) -> bytes:
    """The quantised graph, for the same inputs and outputs. QuantizeError."""
    model = onnx.load_from_string(graph)
    try:
        chosen = qdq.plan(model)
        thresholds = _thresholds(model, chosen, inputs, say)
        corrections = _corrections(model, chosen, thresholds, inputs, say)
        quantised = qdq.insert(model, chosen, thresholds, corrections)
    except ValueError as error:
        raise QuantizeError(f"the ONNX graph cannot be quantised: {error}") from None
    say(f"onnx: {len(chosen.convolutions)} convolutions and {len(chosen.tensors)} activations in int8")
    return bytes(quantised.SerializeToString())


def _thresholds(model: onnx.ModelProto, chosen: qdq.Plan, inputs: Inputs, say: Say) -> dict[str, float]:
    names = sorted(set(chosen.scale_of.values()))
    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    measuring.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    run = _runner(measuring, names)
    histograms = [Histogram() for _ in names]
    for number, images in enumerate(inputs, 1):
        for name, histogram, values in zip(names, histograms, run(images), strict=True):
            try:
                histogram.add(values)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if number % _REPORT == 0 or number == len(inputs):
            say(f"onnx: ranges from {number}/{len(inputs)} images")
    return {name: histogram.threshold() for name, histogram in zip(names, histograms, strict=True)}


def _corrections(
    model: onnx.ModelProto, chosen: qdq.Plan, thresholds: dict[str, float], inputs: Inputs, say: Say
) -> dict[str, Array]:
    measuring, names = qdq.deviations(model, chosen, thresholds)
    run = _runner(measuring, names)
    some = spread(inputs, _CORRECTION_PICTURES)
    sums: list[Array] | None = None
    for number, images in enumerate(some, 1):
        found = run(images)
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        if number % _REPORT == 0 or number == len(some):
            say(f"onnx: biases from {number}/{len(some)} images")
    assert sums is not None
    count = np.float32(len(some))
    return {name: -total / count for name, total in zip(chosen.convolutions, sums, strict=True)}


def _runner(model: onnx.ModelProto, names: list[str]) -> Callable[[npt.NDArray[np.uint8]], list[Array]]:
    """Images (1, H, W, 3) -> these tensors of the graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cpus()
    options.enable_mem_pattern = False  # shapes change from picture to picture
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(names, {INPUT_NAME: images})
