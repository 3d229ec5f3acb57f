"""Which parts of a model lose most in int8: OpenVINO's quantised model with one part in int8 and the rest exact.

A convolution in int8 has its weights, its corrected bias and its input rounded. So what a part loses includes the
rounding of what it reads, for every reader of it, and sums between convolutions stay exact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from yolov9 import openvino_core
from yolov9.data.inputs import Inputs
from yolov9.quantization.deviation import Deviation, deviation
from yolov9.quantization.for_openvino import convolutions

By = Literal["block", "layer"]
_BLOCK = re.compile(r"model\.\d+(/cv[23]\.\d(?=/))?")
"""In the name of a node: a layer of the architecture; in the head, a tower (cv2: boxes, cv3: classes) of a level."""
_STEM = re.compile(r"^/?(?:detector/)?(.*?)(?:/Conv)?(?:/WithoutBiases)?$")

Say = Callable[[str], None]
Constants = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]]
"""Name of a convolution -> its exact weight, and its bias if it has one."""


@dataclass(frozen=True)
class Part:
    """One row of the table."""

    name: str
    convolutions: int
    boxes: float
    scores: float
    """See `Deviation`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sensitivity(
    exact: ov.Model, quantised: ov.Model, inputs: Inputs, by: By = "block", say: Say = lambda line: None
) -> tuple[Deviation, list[Part]]:
    """The deviation of the whole quantised model, and that of each part alone, the largest difference of scores first.

    `exact` is the model that was quantised: nodes have the same names. `inputs`: those of the commonest shape are used,
    so that each part is compiled once.
    """
    shape, _ = Counter(images.shape for images in inputs).most_common(1)[0]
    pictures = [images for images in inputs if images.shape == shape]
    constants = {op.get_friendly_name(): (_weight(op), _bias_of(op)) for op in convolutions(exact)}
    expected = _predict(exact, pictures)
    parts: dict[str, list[str]] = {}
    for op in convolutions(quantised):
        name = op.get_friendly_name()
        if _is_quantiser(op.input_value(0).get_node()) or _quantisers_of(op):
            parts.setdefault(part_name(name, by), []).append(name)
    rows = []
    for number, (part, names) in enumerate(parts.items(), 1):
        found = deviation(expected, _predict(_only(quantised, constants, set(names)), pictures))
        say(f"{number}/{len(parts)} {part}: {found}")
        rows.append(Part(part, len(names), found.boxes, found.scores))
    rows.sort(key=lambda row: (row.scores, row.boxes), reverse=True)
    return deviation(expected, _predict(quantised, pictures)), rows


def part_name(node: str, by: By) -> str:
    """What a convolution belongs to, by its name in the graph."""
    found = _BLOCK.search(node)
    if by == "block" and found is not None:
        return found.group(0)
    stem = _STEM.match(node)
    return stem.group(1) if stem is not None else node


def _only(quantised: ov.Model, constants: Constants, kept: Collection[str]) -> ov.Model:
    """A copy in which only these convolutions are in int8."""
    model = quantised.clone()
    wanted: set[str] = set()
    for op in convolutions(model):
        name = op.get_friendly_name()
        if name in kept:
            wanted.update(_quantisers_of(op))
            continue
        weight, bias = constants[name]
        op.input(1).replace_source_output(ov.opset13.constant(weight).output(0))
        add = _bias_node(op)
        if bias is not None and add is not None:
            add.input(1).replace_source_output(ov.opset13.constant(bias).output(0))
    for op in model.get_ordered_ops():
        if _is_quantiser(op) and op.get_friendly_name() not in wanted:
            op.output(0).replace(op.input_value(0))
    model.validate_nodes_and_infer_types()
    return model


def _quantisers_of(convolution: ov.Node) -> set[str]:
    """Names of the quantisers of its weights and of what it reads, also those before a concatenation or a pool."""
    found: set[str] = set()
    waiting = [convolution.input_value(0).get_node(), convolution.input_value(1).get_node()]
    seen: set[str] = set()
    while waiting:
        op = waiting.pop()
        name = op.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if _is_quantiser(op):
            found.add(name)
        elif op.get_type_name() in _CARRIERS:
            waiting += [value.get_source_output().get_node() for value in op.inputs()]
    return found


_CARRIERS = frozenset({"Concat", "MaxPool", "AvgPool", "VariadicSplit", "Interpolate", "Reshape", "Transpose"})
"""Operations that hand on what they are given: their inputs' quantisers are their output's."""


def _is_quantiser(op: ov.Node) -> bool:
    return bool(op.get_type_name() == "FakeQuantize")


def _weight(convolution: ov.Node) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = _constant(convolution.input_value(1).get_node()).copy()
    return values


def _constant(op: ov.Node) -> npt.NDArray[np.float32]:
    """Of a constant, or of the reshape of one (grouped convolutions)."""
    if op.get_type_name() == "Constant":
        return np.array(op.get_data(), np.float32)
    inner = _constant(op.input_value(0).get_node())
    return inner.reshape(tuple(op.output(0).get_shape()))


def _bias_node(convolution: ov.Node) -> ov.Node | None:
    for target in convolution.output(0).get_target_inputs():
        op = target.get_node()
        if op.get_type_name() == "Add" and op.input_value(1).get_node().get_type_name() == "Constant":
            return op
    return None


def _bias_of(convolution: ov.Node) -> npt.NDArray[np.float32] | None:
    add = _bias_node(convolution)
    return None if add is None else _constant(add.input_value(1).get_node())


def _predict(model: ov.Model, pictures: Inputs) -> list[npt.NDArray[np.float32]]:
    fixed = model.clone()
    fixed.reshape(list(pictures[0].shape))
    config = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    compiled = openvino_core.core().compile_model(fixed, "CPU", config)
    return [np.array(compiled(images)[0]) for images in pictures]
