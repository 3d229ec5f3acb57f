"""The layout of MultimediaTechLab/YOLO ("R2"): plain state dicts, `4.conv2.0.bottleneck.0.conv1.conv1.conv.weight`.

Compared with R1's: `conv1` is `cv1`, `bottleneck` is `m`, a head's levels come before its towers, each with a
convolution that takes the expectation over 0..15; each branch has a head of its own; and layers are numbered otherwise:

| | trunk | main head | auxiliary neck | auxiliary head |
|---|---|---|---|---|
| T, S | i | 22 | i + 1 | 30 |
| M, C | i - 1 | 22 | i | 38 |

(R2's number of R1's layer i.) There is no E model. Lightning checkpoints have a prefix, and hold the average, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from yolov9.checkpoints.errors import WeightsError, printable
from yolov9.checkpoints.layouts import Contents, Layout, Refs
from yolov9.checkpoints.tensors import TensorRef

_MAIN = 22
_HEAD = re.compile(r"heads\.([0-9])\.(anchor_conv|class_conv|anc2vec)\.(.+)", re.ASCII)
_BLOCK = re.compile(r"(?<!conv[0-9]\.)conv([0-9])")
"""conv1 of a block, but not of the RepConv inside: those are called conv1 and conv2 in R1, too."""


def is_layout(refs: Refs) -> bool:
    """Whether tensors named `N...` are R2's."""
    return any(f"{n}.heads.0.class_conv.2.weight" in refs for n in (_MAIN, 30, 38))


def from_numbered(refs: Refs, layout: Layout, part: str) -> Contents:
    """Contents of R2's layers, given by `N...`. WeightsError for what is no YOLOv9 detector of R2."""
    heads = sorted({int(n) for n, kind in (key.split(".", 2)[:2] for key in refs) if kind == "heads"})
    if heads not in ([_MAIN], [_MAIN, 30], [_MAIN, 38]):
        raise WeightsError(
            f"its heads are layers {heads}, where R2's YOLOv9 has them as 22 and, for training, 30 or 38"
        )
    layer, head = _numbering(heads[-1])
    dual = len(heads) == 2
    found: dict[str, TensorRef] = {}
    ranges: dict[str, TensorRef] = {}
    for key, ref in refs.items():
        text, inner = key.split(".", 1)
        number = int(text)
        if number not in heads:
            found[f"model.{layer(number)}.{_inner(inner)}"] = ref
            continue
        main = dual and number == _MAIN
        name = _head_key(key, inner, main)
        if ".anc2vec." in key:
            ref = ref.squeezed(4)
            ranges[key] = ref
        found[f"model.{head}.{name}"] = ref
    return Contents(layout, found, part=part, ranges=ranges)


def _numbering(last: int) -> tuple[Callable[[int], int], int]:
    """(R1's number of a layer that is no head, R1's number of the head), from the last head's number in R2."""
    if last == 30:
        return lambda n: n if n < _MAIN else n - 1, 29
    if last == 38:
        return lambda n: n + 1 if n < _MAIN else n, 38
    return lambda n: n, _MAIN


def _inner(key: str) -> str:
    """A key inside a layer that is no head."""
    if key.startswith(("conv.conv.", "conv.bn.")):
        return "cv1." + key.removeprefix("conv.")  # AConv
    return _BLOCK.sub(r"cv\1", key).replace("bottleneck.", "m.")


def _head_key(key: str, inner: str, main: bool) -> str:
    """A key inside R1's head. `main`: of the second branch."""
    found = _HEAD.fullmatch(inner)
    if not found:
        raise WeightsError(f"its head has the tensor {printable(key)}, which is no detector's")
    level, tower, rest = found.groups()
    if tower == "anc2vec":
        return "dfl2.conv.weight" if main else "dfl.conv.weight"
    first = {"anchor_conv": 2, "class_conv": 3}[tower]
    return f"cv{first + 2 * main}.{level}.{rest}"
