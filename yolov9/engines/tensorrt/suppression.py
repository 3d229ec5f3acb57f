"""Thresholds and suppression on the device, appended to a model's graph as ordinary operators.

Raw predictions are 2.8 MB for a 640x640 picture of 80 classes; copying them and going through them on the CPU takes
longer than the model itself on a fast GPU. So the best candidates are picked and suppressed where they are, by the
rules of `yolov9.postprocess`: each box counts for its best class, thresholds are those of its picture (an input, so
streams of one batch may differ), boxes of one class that overlap a better one by more than the picture's IoU go.

Neither of TensorRT's own ways does that: its NMS layer has an output whose size depends on the data, which no CUDA
graph can hold, and one threshold for the whole batch; its plug-in bakes thresholds in and is missing from TensorRT for
RTX. Greedy suppression is instead written as the fixed point that it is: a box stays if no better box that stays
overlaps it. Starting from "all stay", each round settles at least one more link of every chain of overlaps, and once a
round changes nothing the result is exactly that of the greedy algorithm. Real pictures need few rounds (on coco128 4 at
a confidence of .25, 6 at .05); where the last round still changed something the summary says so, and the host, which
has the candidates, does the rest. Likewise when there are more candidates than were picked: the whole predictions stay
on the device and can be fetched.

Needs the package onnx; knows nothing of TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from yolov9.bundle import OUTPUT_NAME
from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.names import CANDIDATE_ROWS, CANDIDATES, MINIMUM, SHARE, SUMMARY, SUMMARY_COLUMNS

ROUNDS = 8
"""The last one only confirms. On coco128 down to a confidence of .01: 8 at most."""
_MAX_CANDIDATES = 2048
"""So many are counted exactly in half precision, in which the rounds compute."""
_PREFIX = "suppression/"
"""Of all names of nodes and tensors."""


def add_suppression(model: onnx.ModelProto, classes: int, candidates: int, rounds: int = ROUNDS) -> None:
    """Append it to `model`, in place, behind the output `predictions` (B, 4+classes, A) float32, which remains.

    Inputs that are added, float32: `minimum` (B, classes), the lowest score to report of each class; `share` (B, 1),
    t / (1 + t) for an IoU limit of t. Outputs that are added, float32: `candidates` (B, 7, `candidates`) with the rows
    x1, y1, x2, y2, score (-1: no candidate), class, 1 where it stays; best first. `summary` (B, 3): boxes that reach
    their thresholds, candidates that the last round changed, and the sum of all absolute predictions, which is finite
    if and only if all of them are.
    """
    if not 1 <= candidates <= _MAX_CANDIDATES:
        raise EngineError(f"{candidates} candidates, but 1 to {_MAX_CANDIDATES} are possible")
    graph = model.graph
    builder = _Builder()
    _select(builder, classes, candidates)
    _overlaps(builder, candidates)
    _settle(builder, rounds)
    builder.node("Concat", ["top_boxes", "top_score/row", "top_class/row", "stays"], [CANDIDATES], axis=1)
    builder.node("Concat", ["count", "changed", "total"], [SUMMARY], axis=1)
    graph.node.extend(builder.nodes)
    graph.initializer.extend(builder.constants)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param or None
    value = helper.make_tensor_value_info
    graph.input.append(value(MINIMUM, TensorProto.FLOAT, [batch, classes]))
    graph.input.append(value(SHARE, TensorProto.FLOAT, [batch, 1]))
    graph.output.append(value(CANDIDATES, TensorProto.FLOAT, [batch, CANDIDATE_ROWS, candidates]))
    graph.output.append(value(SUMMARY, TensorProto.FLOAT, [batch, SUMMARY_COLUMNS]))


class _Builder:
    """Nodes and constants whose names have the prefix; names of the graph's own inputs and outputs are left alone."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        self.nodes.append(
            helper.make_node(
                operator,
                [_full(name) for name in inputs],
                [_full(name) for name in outputs],
                name=f"{_PREFIX}{operator}_{len(self.nodes)}",
                **attributes,
            )
        )

    def constant(self, name: str, value: Any, dtype: type[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), _full(name)))
        return name


def _full(name: str) -> str:
    return name if name in (OUTPUT_NAME, MINIMUM, SHARE, CANDIDATES, SUMMARY) else f"{_PREFIX}{name}"


def _select(b: _Builder, classes: int, candidates: int) -> None:
    """`top_boxes` (B, 4, K), `top_score/row`, `top_class/row` (B, 1, K), `count` and `total` (B, 1)."""
    one, both = b.constant("axis_1", [1], np.int64), b.constant("axes_1_2", [1, 2], np.int64)
    b.node("Split", [OUTPUT_NAME, b.constant("parts", [4, classes], np.int64)], ["boxes", "scores"], axis=1)
    b.node("TopK", ["scores", b.constant("k_1", [1], np.int64)], ["best/row", "class/row"], axis=1)
    b.node("Squeeze", ["best/row", one], ["best"])
    b.node("Squeeze", ["class/row", one], ["class"])
    b.node("GatherElements", [MINIMUM, "class"], ["threshold"], axis=1)
    b.node("GreaterOrEqual", ["best", "threshold"], ["passes"])
    b.node("Cast", ["passes"], ["passes/float"], to=TensorProto.FLOAT)
    b.node("ReduceSum", ["passes/float", one], ["count"], keepdims=1)
    b.node("Where", ["passes", "best", b.constant("none", -1.0, np.float32)], ["ranked"])
    # Small pictures have fewer boxes than are picked: what is missing is found behind the last box.
    rows, planes = [0, 0, 0, candidates], [0, 0, 0, 0, 0, candidates]
    b.node("Pad", ["ranked", b.constant("pad_rows", rows, np.int64), "none"], ["ranked/padded"])
    b.node("Pad", ["boxes", b.constant("pad_planes", planes, np.int64)], ["boxes/padded"])
    b.node("Cast", ["class"], ["class/float"], to=TensorProto.FLOAT)
    b.node("Pad", ["class/float", "pad_rows"], ["class/padded"])
    b.node("TopK", ["ranked/padded", b.constant("k", [candidates], np.int64)], ["top_score", "index"], axis=1)
    b.node("GatherElements", ["class/padded", "index"], ["top_class"], axis=1)
    b.node("Unsqueeze", ["index", one], ["index/row"])
    b.node("Concat", ["index/row"] * 4, ["index/rows"], axis=1)
    b.node("GatherElements", ["boxes/padded", "index/rows"], ["top_boxes"], axis=2)
    b.node("Unsqueeze", ["top_score", one], ["top_score/row"])
    b.node("Unsqueeze", ["top_class", one], ["top_class/row"])
    b.node("Abs", [OUTPUT_NAME], ["absolute"])
    b.node("ReduceSum", ["absolute", both], ["total/flat"], keepdims=0)
    b.node("Unsqueeze", ["total/flat", one], ["total"])


def _overlaps(b: _Builder, candidates: int) -> None:
    """`strikes` (B, K, K) fp16: 1 where the row's box, if it stays, strikes out the column's. The arithmetic is that of
    `yolov9.postprocess`, so that both draw the line at the same place."""
    zero = b.constant("zero", 0.0, np.float32)
    b.node("Split", ["top_boxes", b.constant("ones", [1, 1, 1, 1], np.int64)], ["x1", "y1", "x2", "y2"], axis=1)
    b.node("Sub", ["x2", "x1"], ["width/any"])
    b.node("Sub", ["y2", "y1"], ["height/any"])
    b.node("Max", ["width/any", zero], ["width"])
    b.node("Max", ["height/any", zero], ["height"])
    b.node("Mul", ["width", "height"], ["area"])
    b.node("Unsqueeze", [SHARE, "axis_1"], ["share/row"])
    b.node("Mul", ["area", "share/row"], ["part"])
    for name in ("x1", "y1", "x2", "y2", "part", "top_class/row"):
        b.node("Transpose", [name], [f"{name}/column"], perm=[0, 2, 1])
    for low, high, side in (("x1", "x2", "inner_width"), ("y1", "y2", "inner_height")):
        b.node("Min", [f"{high}/column", high], [f"{side}/end"])
        b.node("Max", [f"{low}/column", low], [f"{side}/start"])
        b.node("Sub", [f"{side}/end", f"{side}/start"], [side])
    # One clamp is enough: a negative height gives a negative product, never above the parts.
    b.node("Max", ["inner_width", zero], ["inner_width/clamped"])
    b.node("Mul", ["inner_width/clamped", "inner_height"], ["inner"])
    b.node("Add", ["part/column", "part"], ["limit"])
    b.node("Greater", ["inner", "limit"], ["over"])
    b.node("Equal", ["top_class/row/column", "top_class/row"], ["same"])
    better = b.constant("better", np.triu(np.ones((1, candidates, candidates)), 1), np.bool_)
    b.node("And", ["over", "same"], ["over/same"])
    b.node("And", ["over/same", better], ["strikes/bool"])
    b.node("Cast", ["strikes/bool"], ["strikes"], to=TensorProto.FLOAT16)


def _settle(b: _Builder, rounds: int) -> None:
    """`stays` (B, 1, K) after the last round, and `changed` (B, 1), how many it changed."""
    half = b.constant("half", 0.5, np.float16)
    b.node("GreaterOrEqual", ["top_score/row", "zero"], ["valid"])
    b.node("Cast", ["valid"], ["stays_0"], to=TensorProto.FLOAT16)
    for i in range(rounds):
        b.node("MatMul", [f"stays_{i}", "strikes"], [f"struck_{i}"])
        b.node("Less", [f"struck_{i}", half], [f"free_{i}"])
        b.node("And", [f"free_{i}", "valid"], [f"stays_{i + 1}/bool"])
        b.node("Cast", [f"stays_{i + 1}/bool"], [f"stays_{i + 1}"], to=TensorProto.FLOAT16)
    b.node("Cast", [f"stays_{rounds}"], ["stays"], to=TensorProto.FLOAT)
    b.node("Cast", [f"stays_{rounds - 1}"], ["stays/before"], to=TensorProto.FLOAT)
    b.node("Sub", ["stays", "stays/before"], ["change"])
    b.node("Abs", ["change"], ["change/absolute"])
    b.node("ReduceSum", ["change/absolute", "axes_1_2"], ["changed/flat"], keepdims=0)
    b.node("Unsqueeze", ["changed/flat", "axis_1"], ["changed"])
