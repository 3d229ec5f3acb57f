"""A bundle that reads the pattern: its detections are the pattern's digits, so that the server is tested as it runs.

For each digit there is one box at the place of its four cells, and its class is the digit, with the certainty of the
least certain pixel of all copies as its score. A whole picture has `DIGITS` detections above `CERTAINTY`; wherever it
is damaged, or two frames are mixed, digits are missing. What remains is the client's affair: `stamp_of`.

Needs the package `onnx`. Works for pictures of one size, whose letterbox is built into the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.testing.truth.pattern import (
    CERTAINTY,
    COLUMNS,
    COPIES,
    DIGIT_BITS,
    DIGITS,
    ROWS,
    ROWS_OF_COPY,
    Stamp,
    from_digits,
    samples,
)
from yolov9.bundle import Bundle, write_bundle
from yolov9.geometry import Letterbox, input_shape

NAMES = tuple(f"{digit:x}" for digit in range(1 << DIGIT_BITS))
_PER_ROW = COLUMNS // DIGIT_BITS


def truth_bundle(folder: Path, width: int, height: int, input_size: int = 320) -> Bundle:
    """Write the bundle for pictures of `width` x `height` pixels (16:9, so that engines warm up the right shape)."""
    rows, columns = input_shape(input_size, width, height)
    letterbox = Letterbox.fit(width, height, columns, rows)
    return write_bundle(folder, names=NAMES, onnx=_graph(letterbox), name="truth", input_size=input_size,
                        precision="fp32")  # fmt: skip


def stamp_of(detections: Sequence[dict[str, Any]], width: int, height: int) -> Stamp | None:
    """What the picture bore, from a result's detections (boxes in pixels of the `width` x `height` source). None if
    digits are missing or do not belong together."""
    digits: dict[int, int] = {}
    for detection in detections:
        x1, y1, x2, y2 = detection["box"]
        row = int((y1 + y2) / 2 / height * ROWS)
        place = row * _PER_ROW + int((x1 + x2) / 2 / width * _PER_ROW)
        if detection["confidence"] < CERTAINTY or place in digits or not 0 <= place < DIGITS:
            return None
        digits[place] = detection["class_id"]
    return from_digits([digits[place] for place in range(DIGITS)]) if len(digits) == DIGITS else None


def _graph(letterbox: Letterbox) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    where = samples(letterbox.scaled_width, letterbox.scaled_height, letterbox.left, letterbox.top)
    constants = {
        "rows": where.rows,
        "columns": where.columns,
        "pixels": np.array([0, ROWS, where.height, COLUMNS, where.width * 3]),
        "copies": np.array([0, COPIES, ROWS_OF_COPY, COLUMNS]),
        "inside": np.array([2, 4]),
        "copy": np.array([1]),
        "bits": np.array([3]),
        "255": np.array(255, np.float32),
        "1": np.array(1, np.float32),
        "upright": np.array([1, 0, 1], np.float32).reshape(1, COPIES, 1, 1),
        "inverted": np.array([0, 1, 0], np.float32).reshape(1, COPIES, 1, 1),
        # Which of (black, white) of which bit speaks for each digit.
        "choice": np.array([[2 * bit + (digit >> 3 - bit & 1) for bit in range(4)] for digit in range(16)]),
        "pairs": np.array([0, DIGITS, 2 * DIGIT_BITS]),
        "boxes": _boxes(letterbox),
        "last": np.array([-1]),
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["images", "rows"], ["strip"], axis=1),
        node("Gather", ["strip", "columns"], ["picked"], axis=2),
        node("Cast", ["picked"], ["levels"], to=TensorProto.FLOAT),
        node("Div", ["levels", "255"], ["unit"]),
        node("Reshape", ["unit", "pixels"], ["cells"]),
        node("ReduceMin", ["cells", "inside"], ["least"], keepdims=0),
        node("ReduceMax", ["cells", "inside"], ["most"], keepdims=0),
        node("Reshape", ["least", "copies"], ["bright"]),
        node("Sub", ["1", "most"], ["dim"]),
        node("Reshape", ["dim", "copies"], ["dark"]),
        *_turned(node, "bright", "dark", "white"),
        *_turned(node, "dark", "bright", "black"),
        # (B, digit, 8): black and white of each of its bits in turns.
        node("Unsqueeze", ["black", "last"], ["black1"]),
        node("Unsqueeze", ["white", "last"], ["white1"]),
        node("Concat", ["black1", "white1"], ["both"], axis=-1),
        node("Reshape", ["both", "pairs"], ["paired"]),
        node("Gather", ["paired", "choice"], ["chosen"], axis=2),
        node("ReduceMin", ["chosen", "bits"], ["scores"], keepdims=0),
        node("Transpose", ["scores"], ["by_class"], perm=[0, 2, 1]),
        # The same boxes for every picture of the batch.
        node("Slice", ["by_class", "zero", "one", "one"], ["row"]),
        node("Sub", ["row", "row"], ["nothing"]),
        node("Add", ["nothing", "boxes"], ["placed"]),
        node("Concat", ["placed", "by_class"], ["predictions"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "truth",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", "h", "w", 3])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["b", 4 + len(NAMES), DIGITS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _turned(node: Any, upright: str, inverted: str, name: str) -> list[Any]:
    """Certainty of each cell over all copies, of which the second is inverted."""
    return [
        node("Mul", [upright, "upright"], [f"{name}_u"]),
        node("Mul", [inverted, "inverted"], [f"{name}_i"]),
        node("Add", [f"{name}_u", f"{name}_i"], [f"{name}_copies"]),
        node("ReduceMin", [f"{name}_copies", "copy"], [name], keepdims=0),
    ]


def _boxes(letterbox: Letterbox) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(1, 4, DIGITS) in input pixels: where the first copy has its digits."""
    width, height = letterbox.scaled_width / _PER_ROW, letterbox.scaled_height / ROWS
    y, x = np.divmod(np.arange(DIGITS), _PER_ROW)
    left, top = letterbox.left + x * width, letterbox.top + y * height
    return np.stack([left, top, left + width, top + height]).astype(np.float32)[None]
