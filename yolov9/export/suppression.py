"""Non-maximum suppression behind an ONNX graph, of standard operators alone: any runtime of ONNX can run it.

Its results are those of `yolov9.postprocess`: a box counts for its best class; within a class, boxes that overlap a
better one are dropped; the best of all classes together come out, best first. Boxes are not clipped to the picture.

Each box is of one class, so what `NonMaxSuppression` keeps is written back as one score a box, 0 for what is dropped:
a TopK over that gives a tensor of fixed size, whatever was found. Needs the package onnx; runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from yolov9.bundle import OUTPUT_NAME

DETECTIONS = "detections"
OUTPUT = (
    "float32 (batch, {limit}, 6): x1, y1, x2, y2 in input pixels, score, class, best first; rows of zeros when there "
    "are fewer; score from {confidence}, IoU up to {iou} within a class"
)
_PREFIX = "nms/"


@dataclass(frozen=True)
class Suppression:
    """What is written into the graph. ValueError for what cannot be."""

    confidence: float = 0.25
    iou: float = 0.7
    max_detections: int = 300

    def __post_init__(self) -> None:
        if not 0 < self.confidence <= 1:
            raise ValueError(f"confidence {self.confidence} is not above 0 and at most 1")
        if not 0 < self.iou <= 1:  # at 0, some runtimes drop boxes that only do not overlap at all
            raise ValueError(f"IoU {self.iou} is not above 0 and at most 1")
        if self.max_detections < 1:
            raise ValueError(f"{self.max_detections} detections are less than 1")

    @property
    def output(self) -> str:
        """For people, of the output."""
        return OUTPUT.format(limit=self.max_detections, confidence=self.confidence, iou=self.iou)


def add_suppression(model: onnx.ModelProto, classes: int, chosen: Suppression) -> None:
    """In place: the output `predictions` (B, 4 + classes, A) becomes `detections` (B, max_detections, 6)."""
    graph = _Nodes(model)
    boxes = graph.one("Transpose", graph.rows(OUTPUT_NAME, 0, 4), perm=[0, 2, 1])  # (B, A, 4)
    scores = graph.rows(OUTPUT_NAME, 4, 4 + classes)  # (B, C, A)
    label = graph.one("ArgMax", scores, axis=1, keepdims=1)  # of equal scores the first, as numpy does
    best = graph.one("GatherElements", scores, label, axis=1)  # (B, 1, A)
    own = graph.one("Equal", label, graph.constant(np.arange(classes).reshape(1, classes, 1)))
    enough = graph.one("GreaterOrEqual", best, graph.constant(np.float32(chosen.confidence)))
    nothing = graph.constant(np.float32(0))
    candidates = graph.one("Where", graph.one("And", own, enough), scores, nothing)
    limit = graph.constant(np.array([chosen.max_detections]))
    overlap = graph.constant(np.array([chosen.iou], np.float32))
    # (n, 3): picture, class, box. Its own threshold is exclusive, so only what is 0 above falls under it.
    kept = graph.one("NonMaxSuppression", boxes, candidates, limit, overlap, graph.constant(np.zeros(1, np.float32)))
    places = graph.one("Gather", kept, graph.constant(np.array([0, 2])), axis=1)
    axis = graph.constant(np.array([1]))
    flat = graph.one("Squeeze", best, axis)  # (B, A)
    shape = graph.one("Shape", flat)
    zeros = graph.one("ConstantOfShape", shape)
    left = graph.one("ScatterND", zeros, places, graph.one("GatherND", flat, places))
    count = graph.one("Min", graph.one("Gather", shape, axis, axis=0), limit)
    values, indices = graph.add("TopK", [left, count], 2, axis=1)
    last = graph.constant(np.array([2]))
    places = graph.one("Unsqueeze", indices, last)
    labels = graph.one("Cast", graph.one("Squeeze", label, axis), to=TensorProto.FLOAT)
    columns = [
        graph.one("GatherND", boxes, places, batch_dims=1),
        graph.one("Unsqueeze", values, last),
        graph.one("Unsqueeze", graph.one("GatherND", labels, places, batch_dims=1), last),
    ]
    rows = graph.one("Concat", *columns, axis=2)
    found = graph.one("Unsqueeze", graph.one("Greater", values, nothing), last)
    rows = graph.one("Where", found, rows, nothing)
    # Of a small picture there may be fewer boxes than rows.
    padding = graph.one(
        "Concat", graph.constant(np.zeros(4, np.int64)), graph.one("Sub", limit, count),
        graph.constant(np.zeros(1, np.int64)), axis=0,
    )  # fmt: skip
    graph.nodes.append(helper.make_node("Pad", [rows, padding], [DETECTIONS], name=f"{_PREFIX}Pad"))
    graph.finish(helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, ["batch", chosen.max_detections, 6]))


class _Nodes:
    """Nodes and constants behind a model's own, named by number."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, value: np.generic | np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        name = f"{_PREFIX}constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], outputs: int, **attributes: Any) -> list[str]:
        name = f"{_PREFIX}{kind}{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.add(kind, list(inputs), 1, **attributes)[0]

    def rows(self, tensor: str, start: int, end: int) -> str:
        """Of its second dimension."""
        return self.one("Slice", tensor, *(self.constant(np.array([value])) for value in (start, end, 1)))

    def finish(self, output: onnx.ValueInfoProto) -> None:
        graph = self._model.graph
        graph.node.extend(self.nodes)
        graph.initializer.extend(self._constants)
        del graph.output[:]
        graph.output.append(output)
