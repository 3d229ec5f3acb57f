"""An ONNX graph in half precision: casts and weights in the graph itself, as strongly typed builders want it.

Half precision is what the body of a network computes in: convolutions and all that lies between them. What comes
before the first (pixels to 0..1) and after the last (distances, boxes, scores) stays in fp32: a coordinate above 512
moves in steps of half a pixel in fp16, and these parts cost next to nothing. Which inputs of a node follow its type,
and whether it exists in fp16 at all, is read from the operators' own definitions, not from lists kept here.

Quantised graphs (QDQ) keep their integers; what they are dequantised to becomes fp16.

Needs the package onnx; knows nothing of TensorRT. Converters that one can install work by lists of operators and put a
pair of casts around each that is left out, which a strongly typed engine obeys: boxes would be rounded to fp16 between
two operators of the tail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from yolov9.engines.base import EngineError
from yolov9.onnx_paths import leading, reached

_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What is worth half precision, and marks the body."""
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TYPED_QUANTISERS = 19
"""Since this opset scales may be fp16 and what comes out has their type."""
_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose body computes in fp16; inputs and outputs keep their types. EngineError names what cannot
    be converted."""
    model = _with_typed_quantisers(model)
    _constants_to_initializers(model.graph)
    rewritten = _Rewriter(onnx.shape_inference.infer_shapes(model)).run()
    onnx.checker.check_model(rewritten, full_check=True)
    return rewritten


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def body(nodes: Iterable[NodeProto]) -> set[int]:
    """Positions of the nodes (in topological order) between the first and the last convolutions, these included.

    Quantisers before a convolution belong to it, wherever their input comes from: a cast between them and the
    convolution would keep an engine from computing it in integers.
    """
    nodes = list(nodes)
    after, before = reached(nodes, _COMPUTE), leading(nodes, _COMPUTE)
    return {
        i
        for i, node in enumerate(nodes)
        if node.op_type in _COMPUTE or (i in before and (i in after or node.op_type in _QUANTISERS))
    }


class _Rewriter:
    """Goes through the nodes once, in order, and writes them anew with the casts that they need before them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._opset = opset(model)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._float = {name for name, tensor in self._constants.items() if tensor.data_type == TensorProto.FLOAT}
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                self._float.add(value.name)
        self._half: set[str] = set()  # tensors that are fp16 now, under their old names
        self._casts: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []
        self._copies: list[TensorProto] = []

    def run(self) -> onnx.ModelProto:
        graph = self._model.graph
        inside = body(graph.node)
        for i, node in enumerate(graph.node):
            self._write(node, i in inside)
        self._restore_outputs()
        rewritten = onnx.ModelProto()
        rewritten.CopyFrom(self._model)
        used = {name for node in self._nodes for name in node.input}
        del rewritten.graph.node[:], rewritten.graph.value_info[:], rewritten.graph.initializer[:]
        rewritten.graph.node.extend(self._nodes)
        kept = [tensor for tensor in self._constants.values() if tensor.name in used]
        rewritten.graph.initializer.extend([*kept, *self._copies])
        return rewritten

    def _write(self, node: NodeProto, inside: bool) -> None:
        written = NodeProto()
        written.CopyFrom(node)
        inputs, outputs = self._following(node) if inside else ([], [])
        for position, name in enumerate(node.input):
            if position in inputs:
                written.input[position] = self._as(name, TensorProto.FLOAT16)
            elif name in self._half and self._typed(node, position):
                written.input[position] = self._as(name, TensorProto.FLOAT)
        self._half.update(node.output[position] for position in outputs)
        if outputs:
            _retype(written)
        self._nodes.append(written)

    def _following(self, node: NodeProto) -> tuple[list[int], list[int]]:
        """Inputs and outputs of a node that become fp16; none if the operator does not exist in fp16."""
        schema = _schema(node, self._opset)
        halves = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if {"tensor(float16)", "tensor(float)"} <= set(constraint.allowed_type_strs)
        }
        inputs, outputs = _types(schema.inputs, node.input), _types(schema.outputs, node.output)
        results = [i for i, name in enumerate(node.output) if name in self._float and outputs[i] in halves]
        # An optional input of a type of its own (the region of Resize) is no value that flows through; a scale is.
        if node.op_type not in _QUANTISERS:
            halves &= {inputs[0], *(outputs[i] for i in results)}
        return [i for i, name in enumerate(node.input) if name in self._float and inputs[i] in halves], results

    def _typed(self, node: NodeProto, position: int) -> bool:
        """Whether the type of this input matters: Shape and Cast take any."""
        return not (node.op_type in ("Shape", "Size", "Cast") and position == 0)

    def _as(self, name: str, kind: int) -> str:
        """The name under which tensor `name` is to be had as `kind`."""
        if (name in self._half) == (kind == TensorProto.FLOAT16) or not name:
            return name
        key = (name, kind)
        if key not in self._casts:
            suffix = "half" if kind == TensorProto.FLOAT16 else "float"
            self._casts[key] = f"{name}/{suffix}"
            if name in self._constants:
                self._copies.append(_halved(self._constants[name], self._casts[key]))
            else:
                self._nodes.append(
                    helper.make_node("Cast", [name], [self._casts[key]], name=f"{name}/to_{suffix}", to=kind)
                )
        return self._casts[key]

    def _restore_outputs(self) -> None:
        """An output that became fp16 is cast back under its name."""
        for output in self._model.graph.output:
            if output.name not in self._half:
                continue
            inner = f"{output.name}/half"
            for node in self._nodes:
                for names in (node.input, node.output):
                    for position, name in enumerate(names):
                        if name == output.name:
                            names[position] = inner
            self._nodes.append(
                helper.make_node("Cast", [inner], [output.name], name=f"{output.name}/to_float", to=TensorProto.FLOAT)
            )


def _schema(node: NodeProto, version: int) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        raise EngineError(
            f"node {node.name!r}: there is no operator {node.op_type} in opset {version} to be had in half precision"
        ) from None


def _types(formal: Sequence[onnx.defs.OpSchema.FormalParameter], actual: Sequence[str]) -> list[str]:
    """The name of each input's or output's type; the last one of a variadic operator stands for all that follow."""
    return [formal[min(position, len(formal) - 1)].type_str for position in range(len(actual))]


def _retype(node: NodeProto) -> None:
    """Nodes that state the type of what they give."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif node.op_type == "ConstantOfShape" and attribute.name == "value":
            attribute.t.CopyFrom(_halved(attribute.t, attribute.t.name))


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if not largest <= _LARGEST:
        raise EngineError(f"weight {tensor.name!r} reaches {largest:g}, more than half precision can hold")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Constant nodes as initialisers: one kind of constant is enough to look after."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def _with_typed_quantisers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, of an opset whose quantisers exist in fp16 if there are any."""
    if opset(model) >= _TYPED_QUANTISERS or not any(node.op_type in _QUANTISERS for node in model.graph.node):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    return onnx.version_converter.convert_version(model, _TYPED_QUANTISERS)
