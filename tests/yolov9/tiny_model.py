"""Two tiny ONNX models that obey the bundle's contract, built by hand: tests of engines need no torch and no weights.

`colour_model` is a real, if modest, detector: it reports every 32x32 cell that is clearly red (class 0) or blue
(class 1), with the cell as the box, so tests know the right answer. `random_model` has convolutions with random
weights, on which engines must agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolov9.bundle import Bundle, write_bundle

COLOURS = ("red", "blue")


def colour_model() -> bytes:
    """Score of a cell: how far its mean red (blue) stands above both other channels, 0..1."""
    nodes = [
        helper.make_node("AveragePool", ["nchw"], ["mean"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Split", ["mean"], ["r", "g", "b"], axis=1, num_outputs=3),
        helper.make_node("Max", ["g", "b"], ["not_red"]),
        helper.make_node("Max", ["r", "g"], ["not_blue"]),
        helper.make_node("Sub", ["r", "not_red"], ["red"]),
        helper.make_node("Sub", ["b", "not_blue"], ["blue"]),
        helper.make_node("Concat", ["red", "blue"], ["raw"], axis=1),
        helper.make_node("Relu", ["raw"], ["scores"]),
    ]
    return _model(nodes, [], classes=2)


def random_model(classes: int = 3, width: int = 8, seed: int = 0) -> bytes:
    """Five 3x3 convolutions of stride 2 with SiLU, then a 1x1 with sigmoid for the scores."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    previous, channels = "nchw", 3
    for i in range(5):
        weights.append(_tensor(f"w{i}", rng.normal(0, (9 * channels) ** -0.5 * 2, (width, channels, 3, 3))))
        weights.append(_tensor(f"c{i}", rng.normal(0, 0.1, width)))
        nodes += [
            helper.make_node("Conv", [previous, f"w{i}", f"c{i}"], [f"conv{i}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", [f"conv{i}"], [f"gate{i}"]),
            helper.make_node("Mul", [f"conv{i}", f"gate{i}"], [f"act{i}"]),
        ]
        previous, channels = f"act{i}", width
    weights.append(_tensor("head", rng.normal(0, 1, (classes, width, 1, 1))))
    nodes += [
        helper.make_node("Conv", [previous, "head"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    return _model(nodes, weights, classes)


def nan_model() -> bytes:
    """As the colour model, but its scores are no numbers: a training that went wrong."""
    nodes = [
        helper.make_node("AveragePool", ["nchw"], ["mean"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Slice", ["mean", "zero", "two", "one"], ["two_planes"]),
        helper.make_node("Sub", ["two_planes", "32f"], ["negative"]),
        helper.make_node("Sqrt", ["negative"], ["scores"]),
    ]
    return _model(nodes, [numpy_helper.from_array(np.array([2]), "two")], classes=2)


def slow_model(layers: int = 40, width: int = 48) -> bytes:
    """Two classes, and convolutions at full resolution before them: tens of milliseconds for the smallest picture."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    previous, channels = "nchw", 3
    for i in range(layers):
        weights.append(_tensor(f"w{i}", rng.normal(0, (9 * channels) ** -0.5, (width, channels, 3, 3))))
        nodes.append(helper.make_node("Conv", [previous, f"w{i}"], [f"conv{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"act{i}"]))
        previous, channels = f"act{i}", width
    weights.append(_tensor("head", rng.normal(0, 1, (2, width, 1, 1))))
    nodes += [
        helper.make_node("AveragePool", [previous], ["mean"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Conv", ["mean", "head"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    return _model(nodes, weights, classes=2)


def tiny_bundle(folder: Path, model: bytes | None = None, names: Any = COLOURS, **options: Any) -> Bundle:
    options = {"name": "tiny", "input_size": 128, "precision": "fp32", **options}
    return write_bundle(folder, names=names, onnx=model or colour_model(), **options)


def _model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], classes: int) -> bytes:
    """`nchw` (RGB, 0..1) is given to `nodes`, which yield `scores` (B, classes, H/32, W/32)."""
    before = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "1/255"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["nchw"], perm=[0, 3, 1, 2]),
    ]
    after = [  # the cells' corners, by counting along each axis
        helper.make_node("Slice", ["scores", "zero", "one", "one"], ["plane"]),
        helper.make_node("Mul", ["plane", "0f"], ["zeros"]),
        helper.make_node("Add", ["zeros", "32f"], ["steps"]),
        helper.make_node("CumSum", ["steps", "axis_x"], ["x2"]),
        helper.make_node("CumSum", ["steps", "axis_y"], ["y2"]),
        helper.make_node("Sub", ["x2", "32f"], ["x1"]),
        helper.make_node("Sub", ["y2", "32f"], ["y1"]),
        helper.make_node("Concat", ["x1", "y1", "x2", "y2", "scores"], ["grid"], axis=1),
        helper.make_node("Reshape", ["grid", "flat"], ["predictions"]),
    ]
    constants = [
        _tensor("1/255", np.array(1 / 255)),
        _tensor("0f", np.array(0)),
        _tensor("32f", np.array(32)),
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array(3), "axis_x"),
        numpy_helper.from_array(np.array(2), "axis_y"),
        numpy_helper.from_array(np.array([0, 4 + classes, -1]), "flat"),
    ]
    # Slice takes starts, ends, axes: channel 0 to 1 of axis 1.
    graph = helper.make_graph(
        before + nodes + after,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", "h", "w", 3])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["b", 4 + classes, "a"])],
        constants + weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _tensor(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)
