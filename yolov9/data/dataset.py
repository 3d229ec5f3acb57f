"""What a data set is once it has been read: pictures with their boxes, class names, and what was wrong.

Nothing here knows a file format; `yolov9.data.open_dataset` makes these from any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Format = Literal["yolo", "coco", "voc"]
SPLITS = ("train", "val", "test")
ALL = "all"
"""Every split together, each picture once."""
SPELLINGS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
"""What folders and lists of each split are called. Roboflow writes valid."""
_ALIASES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}

Kind = Literal[
    "missing image", "corrupt image", "missing label", "orphan label", "unreadable label", "not a number",
    "wrong class", "empty box", "box outside", "box clipped", "duplicate", "size", "description",
]  # fmt: skip
Polygon = npt.NDArray[np.float32]
"""(k, 2) x, y in pixels of the picture, inside it."""


class DataError(Exception):
    """There is no data set, or it cannot be told how it is meant. One sentence that names the file."""


class Problem(NamedTuple):
    """Something broken in the data, which was skipped or mended as `kind` says (`yolov9.data.boxes` has the rules)."""

    file: Path
    line: int | None
    """Counted from 1; None where the file has no lines, or where all of it is meant."""
    what: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.what}"


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One picture. All arrays have one row a box."""

    image: Path
    id: int
    """Unique in its data set. COCO's own; a file name that is a number; else the picture's place, from 1."""
    width: int
    height: int
    """Pixels of the picture as it is displayed, which is what `yolov9.images.read_image` gives."""
    boxes: npt.NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2 in pixels of that picture, inside it, never empty."""
    classes: npt.NDArray[np.int64]
    """(n,) ids of `Dataset.names`."""
    crowd: npt.NDArray[np.bool_]
    """(n,) COCO's iscrowd and Pascal's difficult: objects of the class are there, but are neither to be learnt nor to
    be counted, whether found or not."""
    areas: npt.NDArray[np.float32]
    """(n,) pixels of the object, by which COCO calls it small, medium or large: as the file states it, else of its
    polygon, else of its box."""
    polygons: tuple[tuple[Polygon, ...], ...] | None = None
    """One tuple of parts a box, empty where the object has no outline. None unless they were asked for."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split, read. Pictures are looked at by their headers only; decoding may still fail."""

    path: Path
    """What was opened."""
    format: Format
    split: str
    """train, val, test, or all."""
    names: dict[int, str]
    """{class id: name}, ids 0..n-1 in order."""
    items: list[Item]
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    """How it was read where there was a choice, for people: such as a split that was made by us."""
    category_ids: dict[int, int] = field(default_factory=dict)
    """{class id: id in COCO's files} (80 classes -> 1..90). The same ids where the format has none of its own."""


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read."""

    path: Path
    format: Format
    splits: tuple[str, ...]
    """Of SPLITS, those that are there. Empty: the file is one set, whatever split is asked for."""
    read: Callable[[str, bool], Dataset]
    """(a name of `splits`, or ALL; whether polygons are kept) -> the data set."""


def split_name(text: str) -> str:
    """train, val, test or all, of what people and tools call them. ValueError for anything else."""
    name = _ALIASES.get(text.lower(), text.lower())
    if name not in (*SPLITS, ALL):
        raise ValueError(f"split {text!r} is none of {', '.join((*SPLITS, ALL))}")
    return name


def class_table(given: object, where: str) -> dict[int, str]:
    """{id: name} of a list, or of a table with the ids 0..n-1 in any order. DataError names `where`."""
    if isinstance(given, list):
        pairs = list(enumerate(given))
    elif isinstance(given, dict):
        try:
            pairs = sorted((int(key), value) for key, value in given.items())
        except (TypeError, ValueError):
            raise DataError(f"{where}: names: its keys are not numbers") from None
    else:
        raise DataError(f"{where}: names: neither a list nor a table of class names")
    if not pairs or [key for key, _ in pairs] != list(range(len(pairs))):
        raise DataError(f"{where}: names: the ids are not 0, 1, 2, ... without gaps")
    names: dict[int, str] = {}
    for key, value in pairs:
        name = value.strip() if isinstance(value, str) else ""
        if not name:
            raise DataError(f"{where}: names: class {key} has no name")
        if name in names.values():
            raise DataError(f"{where}: names: {name!r} occurs twice")
        names[key] = name
    return names
