"""What an ONNX file says of itself, read without the onnx package and without loading any weights.

A bundle may come from anywhere, and an ONNX file may name other files as the place of its weights: whoever opens such
a model reads them, wherever they lie. So the whole file is walked here before any engine sees it. The walk follows the
protobuf wire format over the few messages that can hold a tensor; weights are skipped, so it takes milliseconds.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

UINT8 = 2
FLOAT = 1
"""Element types, as ONNX numbers them."""
_MAX_DEPTH = 32
"""Messages within messages; control flow inside control flow is the only way to go deep."""

# Message -> {field number: message}: all ways from a model to a tensor (onnx.proto, IR version 13).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Function": {7: "Node", 11: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12


class OnnxFormatError(ValueError):
    """The bytes are not an ONNX model; one sentence says what is wrong."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of the graph. `shape` has None where a dimension is dynamic."""

    name: str
    element_type: int
    shape: tuple[int | None, ...]


@dataclass(slots=True)
class OnnxHeader:
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    external_data: bool = False
    """Some tensor lies in another file."""


def read_header(model: bytes | mmap.mmap) -> OnnxHeader:
    """Walk a whole ONNX model. Raises OnnxFormatError if it is cut short or is not one."""
    header = OnnxHeader()
    with memoryview(model) as data:
        _walk(data, "Model", header, 0)
    if not header.outputs:
        raise OnnxFormatError("not an ONNX model: it has no graph with outputs")
    return header


def _walk(data: memoryview, message: str, header: OnnxHeader, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OnnxFormatError(f"messages are nested deeper than {_MAX_DEPTH}")
    children = _CHILDREN[message]
    for number, value in _fields(data):
        if isinstance(value, int):
            if message == "Tensor" and number == _TENSOR_DATA_LOCATION and value != 0:
                header.external_data = True
        elif number in children:
            _walk(value, children[number], header, depth + 1)
        elif message == "Tensor" and number == _TENSOR_EXTERNAL_DATA:
            header.external_data = True
        elif message == "Graph" and depth == 1 and number == _GRAPH_INPUT:
            header.inputs.append(_value_info(value))
        elif message == "Graph" and depth == 1 and number == _GRAPH_OUTPUT:
            header.outputs.append(_value_info(value))


def _value_info(data: memoryview) -> TensorInfo:
    """ValueInfoProto: 1 name, 2 type { 1 tensor_type { 1 elem_type, 2 shape { 1 dim { 1 value | 2 name } } } }."""
    name, element_type, shape = "", 0, []
    for number, value in _fields(data):
        if number == 1:
            name = bytes(_message(value)).decode("utf-8", "replace")
        elif number == 2:
            for tensor in _submessages(value, 1):
                for tensor_number, tensor_value in _fields(tensor):
                    if tensor_number == 1 and isinstance(tensor_value, int):
                        element_type = tensor_value
                    elif tensor_number == 2:
                        shape = [_dimension(d) for d in _submessages(tensor_value, 1)]
    return TensorInfo(name, element_type, tuple(shape))


def _dimension(data: memoryview) -> int | None:
    return next((value for number, value in _fields(data) if number == 1 and isinstance(value, int)), None)


def _submessages(data: memoryview | int, wanted: int) -> Iterator[memoryview]:
    return (_message(value) for number, value in _fields(_message(data)) if number == wanted)


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise OnnxFormatError("a number stands where a message should")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value): a view for length-delimited fields, a number for all others (fixed-size ones as 0)."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
        elif wire == 2:
            length, position = _varint(data, position)
            if length > end - position:
                raise OnnxFormatError("the file is cut short")
            yield number, data[position : position + length]
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
            if position > end:
                raise OnnxFormatError("the file is cut short")
            yield number, 0
        else:
            raise OnnxFormatError(f"not protobuf: wire type {wire}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise OnnxFormatError("the file is cut short")
        if shift > 63:
            raise OnnxFormatError("not protobuf: a number longer than 64 bits")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
