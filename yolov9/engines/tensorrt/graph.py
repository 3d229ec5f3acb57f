"""What the builder is fed: a bundle's graph in the precision that is wanted, with suppression behind it.

The precision of an engine is that of its graph: half precision stands in the graph as casts (`half`), int8 as the
quantisers of the bundle's `int8.onnx`. Nothing is left to flags of the builder, so the same file can be run and
measured with ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolov9.bundle import Bundle
from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.recipe import INT8_ONNX, Precision
from yolov9.onnx_header import OnnxFormatError, read_header

if TYPE_CHECKING:
    import onnx


def engine_graph(bundle: Bundle, precision: Precision, candidates: int) -> bytes:
    """A serialised ONNX model. Inputs and outputs as `suppression.add_suppression` says. EngineError."""
    try:
        import onnx
    except ImportError as error:
        raise EngineError("to build a TensorRT engine takes the package onnx: pip install onnx") from error
    from yolov9.engines.tensorrt.half import to_half
    from yolov9.engines.tensorrt.suppression import add_suppression

    path = _source(bundle, precision)
    data = path.read_bytes()
    try:
        if read_header(data).external_data:
            raise EngineError(f"{path}: keeps weights in other files")  # of anybody's choice, outside the bundle
    except OnnxFormatError as error:
        raise EngineError(f"{path}: {error}") from None
    model = onnx.load_from_string(data)
    if precision == "int8":
        check_symmetric(model, path)
        fold_biases(model)
    if precision != "fp32":
        model = to_half(model)
    add_suppression(model, len(bundle.names), candidates)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def check_symmetric(model: onnx.ModelProto, path: Path) -> None:
    """EngineError unless every quantiser is signed and symmetric (zero point 0): TensorRT knows no other."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        source = constants.get(node.input[0])
        if source is not None and source.data_type == TensorProto.INT32:
            continue  # a bias, see `fold_biases`
        if zero is None or zero.data_type != TensorProto.INT8 or np.any(numpy_helper.to_array(zero)):
            raise EngineError(
                f"{path}: node {node.name!r} is not quantised symmetrically to int8 (zero point 0), as TensorRT needs"
            )


def fold_biases(model: onnx.ModelProto) -> None:
    """Biases that are quantised to int32 as floating point, in place: TensorRT adds them in it anyway and cannot read
    the others."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        bias = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if bias is None or bias.data_type != TensorProto.INT32:
            kept.append(node)
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        values = numpy_helper.to_array(bias).astype(np.float64) * scale
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _source(bundle: Bundle, precision: Precision) -> Path:
    if precision != "int8":
        return bundle.onnx
    return bundle.file(INT8_ONNX) or bundle.onnx
