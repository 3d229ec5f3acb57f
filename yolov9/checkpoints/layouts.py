"""What every layout gives: tensors under the reference layout's keys (`model.N...`), and what the file says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from yolov9.checkpoints.errors import WeightsError, printable
from yolov9.checkpoints.tensors import TensorRef

Layout = Literal["r1", "r2", "r2-lightning", "ultralytics", "state-dict", "yolov9"]
TITLES: Mapping[Layout, str] = {
    "r1": "WongKinYiu/yolov9 (R1)",
    "r2": "MultimediaTechLab/YOLO (R2)",
    "r2-lightning": "MultimediaTechLab/YOLO (R2), Lightning",
    "ultralytics": "Ultralytics",
    "state-dict": "a plain state dict in the layout of WongKinYiu/yolov9",
    "yolov9": "yolov9.save",
}
_LAYER = re.compile(r"((?:[A-Za-z_]\w*\.)*)([0-9]{1,4}\..+)", re.ASCII)
_HEAD = re.compile(r"[0-9]+\.(?:cv3\.0\.|heads\.0\.)", re.ASCII)
_SHOWN = 4

Refs = Mapping[str, TensorRef]


@dataclass(frozen=True)
class Contents:
    """A checkpoint's tensors, not read yet, in the reference layout."""

    layout: Layout
    refs: Refs
    names: Any = None
    """Class names as a table or a list, None if the file has none."""
    part: str = ""
    """Which of several sets of weights was taken: ema, model, ..."""
    ranges: Refs = field(default_factory=dict)
    """Tensors, by the file's keys, that are 0, 1, 2, ... or the file means something else."""
    notes: tuple[str, ...] = ()
    """What somebody who loads the file should know."""


def numbered(refs: Refs) -> tuple[str, dict[str, TensorRef], list[str]]:
    """(prefix, tensors by `N...`, keys left over) of the set of layers that has a detection head.

    A state dict may hold several: Lightning writes the average (`ema.model.N...`) beside the model
    (`model.model.N...`), and the average is preferred. WeightsError if none has a head.
    """
    groups: dict[str, dict[str, TensorRef]] = {}
    rest = []
    for key, ref in refs.items():
        found = _LAYER.fullmatch(key)
        if found:
            groups.setdefault(found[1], {})[found[2]] = ref
        else:
            rest.append(key)
    heads = [prefix for prefix, group in groups.items() if any(_HEAD.match(key) for key in group)]
    if not heads:
        raise WeightsError(
            f"no detection head in a known layout (model.N.cv3... or N.heads...) among {len(refs)} tensors, such as "
            f"{some(list(refs))}"
        )
    best = min(heads, key=lambda prefix: "ema" not in prefix.split("."))
    left = rest + [prefix + key for prefix, group in groups.items() if prefix not in heads for key in group]
    return best, groups[best], left


def class_table(names: Any) -> Any:
    """Class names out of a file as a list or {id: name}; None if they are something else."""
    if isinstance(names, dict) and names and all(type(k) is int and type(v) is str for k, v in names.items()):
        return dict(names)
    if isinstance(names, list) and names and all(type(v) is str for v in names):
        return names
    return None


def left_out(keys: list[str]) -> tuple[str, ...]:
    """The note that some tensors are no part of the network."""
    return (f"{len(keys)} tensors are no layers of the network and were left out: {some(keys)}",) if keys else ()


def head_index(numbered: Mapping[str, object]) -> int:
    """Number of the last layer."""
    return max(int(key.split(".", 1)[0]) for key in numbered)


def some(keys: list[str]) -> str:
    """The first of some keys, for an error."""
    return ", ".join(printable(key, 120) for key in keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
