"""Quantisers in an ONNX graph: signed, symmetric int8 (zero point 0), weights by channel, as TensorRT takes it.

Everything between the first and the last convolutions becomes int8: the convolutions, and also the activations, sums,
pools and concatenations between them. ONNX Runtime computes a node in integers only if all of its inputs and its output
are quantised. The rest stays in floating point:

- the convolutions that read the picture: symmetric int8 would take every other of its 256 levels,
- the last convolution of each tower, and all that follows it: box distances, decoding, scores.

Needs the package onnx; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from yolov9 import onnx_paths
from yolov9.quantization.ranges import STEPS

_COMPUTE = frozenset({"Conv"})
_SAME_VALUES = frozenset({"MaxPool", "Split", "Resize", "Slice", "Reshape", "Transpose", "Flatten", "Identity"})
"""They give values that they were given, so that input and output share a scale and the integers pass through."""
_LEAST_OPSET = 13
"""Scales by channel exist since."""
ZERO = "int8/zero"
"""The initialiser that is the zero point of all activations; `yolov9.engines.onnxruntime` looks for it."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What of a graph becomes int8."""

    tensors: tuple[str, ...]
    """Activations that are quantised, in the order in which they are computed."""
    convolutions: tuple[str, ...]
    """Outputs (tensors) of the convolutions whose weights become int8."""
    scale_of: Mapping[str, str]
    """Tensor -> the one whose scale it takes; itself for most."""
    nodes: frozenset[int]
    """Positions of the nodes that read quantised tensors: they compute in int8, or are the last convolutions."""


def plan(model: onnx.ModelProto) -> Plan:
    """ValueError if there is no convolution between the first and the last ones."""
    nodes = list(model.graph.node)
    floats = _float_tensors(model)
    reached, leading = onnx_paths.reached(nodes, _COMPUTE), onnx_paths.leading(nodes, _COMPUTE)
    weights = {tensor.name for tensor in model.graph.initializer}
    # The picture's convolutions compute in floating point, but what they give is stored in int8.
    stored = [
        i for i, node in enumerate(nodes)
        if i in leading and (i in reached or node.op_type == "Conv") and any(name in floats for name in node.output)
    ]  # fmt: skip
    if not stored:
        raise ValueError("no convolution between the first and the last ones: there is nothing to quantise")
    convolutions = [
        nodes[i].output[0] for i in stored
        if nodes[i].op_type == "Conv" and i in reached and nodes[i].input[1] in weights
    ]  # fmt: skip
    scale_of: dict[str, str] = {}
    for i in stored:
        node = nodes[i]
        source = node.input[0] if node.op_type in _SAME_VALUES else None
        for name in node.output:
            if name in floats:
                scale_of[name] = scale_of.get(source, name) if source is not None else name
    readers = frozenset(i for i, node in enumerate(nodes) if i in reached and scale_of.keys() & set(node.input))
    return Plan(tuple(scale_of), tuple(convolutions), scale_of, readers)


def insert(
    model: onnx.ModelProto,
    chosen: Plan,
    thresholds: Mapping[str, float],
    corrections: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """A quantised copy. `thresholds`: of every tensor that has a scale of its own. `corrections`: by the output of a
    convolution, what is added to its bias."""
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _LEAST_OPSET:
        raise ValueError(f"the graph has opset {opset}: scales by channel exist since {_LEAST_OPSET}")
    return _Writer(model, chosen, thresholds, corrections or {}).run()


def scales(weight: Array) -> Array:
    """(out,) step of each output channel of a convolution's weight. A channel of zeros gets 1."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    return np.where(largest > 0, largest / STEPS, 1).astype(np.float32)


def rounded(values: Array, scale: Array) -> npt.NDArray[np.int8]:
    """To the nearest step, half to even as ONNX does; -127..127."""
    return np.clip(np.round(values / scale), -STEPS, STEPS).astype(np.int8)


def deviations(
    model: onnx.ModelProto, chosen: Plan, thresholds: Mapping[str, float]
) -> tuple[onnx.ModelProto, list[str]]:
    """A graph that also gives, for each convolution of the plan, how far rounding its input and weights moves the mean
    of each output channel, (channels,): and the names of these outputs, in the plan's order.

    Each convolution gets the exact input, so that what one does is not blamed on the next.
    """
    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    graph = measuring.graph
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = {node.output[0]: node for node in model.graph.node if node.op_type == "Conv"}
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), ZERO))
    names = []
    for name in chosen.convolutions:
        node = NodeProto()
        node.CopyFrom(convolutions[name])
        source, prefix = node.input[0], f"{name}/deviation"
        weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        steps = scales(weight).reshape(-1, *[1] * (weight.ndim - 1))
        step = np.array(thresholds[chosen.scale_of[source]] / STEPS, np.float32)
        graph.initializer.extend([
            numpy_helper.from_array(rounded(weight, steps) * steps, f"{prefix}/weight"),
            numpy_helper.from_array(step, f"{prefix}/scale"),
        ])  # fmt: skip
        node.input[0], node.input[1], node.output[0] = f"{prefix}/input", f"{prefix}/weight", f"{prefix}/output"
        node.name = prefix
        graph.node.extend([
            helper.make_node("QuantizeLinear", [source, f"{prefix}/scale", ZERO], [f"{prefix}/stored"]),
            helper.make_node("DequantizeLinear", [f"{prefix}/stored", f"{prefix}/scale", ZERO], [node.input[0]]),
            node,
            helper.make_node("Sub", [node.output[0], name], [f"{prefix}/difference"]),
            helper.make_node("ReduceMean", [f"{prefix}/difference"], [prefix], axes=[0, 2, 3], keepdims=0),
        ])  # fmt: skip
        names.append(prefix)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return measuring, names


class _Writer:
    """Goes through the nodes once, in order, and puts a pair of quantisers behind each tensor of the plan."""

    def __init__(
        self, model: onnx.ModelProto, chosen: Plan, thresholds: Mapping[str, float], corrections: Mapping[str, Array]
    ) -> None:
        self._model = model
        self._plan = chosen
        self._steps = {name: np.array(thresholds[chosen.scale_of[name]] / STEPS, np.float32) for name in chosen.tensors}
        self._corrections = corrections
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._added: list[TensorProto] = [
            numpy_helper.from_array(np.array(0, np.int8), ZERO),
            *(
                numpy_helper.from_array(self._steps[name], f"{name}/scale")
                for name in dict.fromkeys(chosen.scale_of.values())
            ),
        ]
        self._nodes: list[NodeProto] = []

    def run(self) -> onnx.ModelProto:
        convolutions = set(self._plan.convolutions)
        for i, node in enumerate(self._model.graph.node):
            written = NodeProto()
            written.CopyFrom(node)
            if node.op_type == "Conv" and node.output[0] in convolutions:
                self._weights(written)
            if i in self._plan.nodes:
                for position, name in enumerate(node.input):
                    if name in self._steps:
                        written.input[position] = f"{name}/int8"
            self._nodes.append(written)
            for name in node.output:
                if name in self._steps:
                    self._pair(name, f"{self._plan.scale_of[name]}/scale")
        quantised = onnx.ModelProto()
        quantised.CopyFrom(self._model)
        used = {name for node in self._nodes for name in node.input}
        del quantised.graph.node[:], quantised.graph.value_info[:], quantised.graph.initializer[:]
        quantised.graph.node.extend(self._nodes)
        kept = [tensor for tensor in self._constants.values() if tensor.name in used]
        quantised.graph.initializer.extend([*kept, *self._added])
        onnx.checker.check_model(quantised, full_check=True)
        return quantised

    def _pair(self, name: str, scale: str) -> None:
        """`name` -> integers -> `name/int8`, which the readers take."""
        stored = f"{name}/stored"
        self._nodes += [
            helper.make_node("QuantizeLinear", [name, scale, ZERO], [stored], name=f"{name}/QuantizeLinear"),
            helper.make_node(
                "DequantizeLinear", [stored, scale, ZERO], [f"{name}/int8"], name=f"{name}/DequantizeLinear"
            ),
        ]

    def _weights(self, node: NodeProto) -> None:
        """Weights as int8 by channel; the bias as int32 in steps of input times weight, as integer kernels add it."""
        name = node.output[0]
        weight = numpy_helper.to_array(self._constants[node.input[1]]).astype(np.float32)
        steps = scales(weight)
        values = rounded(weight, steps.reshape(-1, *[1] * (weight.ndim - 1)))
        node.input[1] = self._constant(f"{name}/weight", values, steps)
        source = node.input[0]
        bias = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        if bias is None or source not in self._steps:
            return
        exact = numpy_helper.to_array(bias).astype(np.float64) + self._corrections.get(name, np.float32(0))
        products = steps.astype(np.float64) * self._steps[source]
        limit = np.iinfo(np.int32).max
        integers = np.clip(np.round(exact / products), -limit, limit).astype(np.int32)
        node.input[2] = self._constant(f"{name}/bias", integers, products.astype(np.float32))

    def _constant(self, name: str, values: npt.NDArray[np.integer], steps: Array) -> str:
        """The dequantised tensor of integers that stand in the file."""
        self._added += [
            numpy_helper.from_array(values, f"{name}/stored"),
            numpy_helper.from_array(steps, f"{name}/scale"),
            numpy_helper.from_array(np.zeros(len(steps), values.dtype), f"{name}/zero"),
        ]
        inputs = [f"{name}/{part}" for part in ("stored", "scale", "zero")]
        self._nodes.append(
            helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/DequantizeLinear", axis=0)
        )
        return name


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
