"""Data sets with YOLO labels: a text file a picture, a line an object.

    class cx cy w h                     5 numbers: a box, as shares of the displayed picture
    class x1 y1 x2 y2 x3 y3 ...         an odd count from 7 on: a polygon; its box is the smallest around it

The label of `images/.../a.jpg` is `labels/.../a.txt` (the last folder called images counts), or `a.txt` beside the
picture where there is no such folder of labels. A picture without a label file, or with an empty one, shows nothing.
Where the pictures are, says a data.yaml or the folders' names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path

import numpy as np

from yolov9.data.boxes import BoxList, polygon_area
from yolov9.data.dataset import ALL, SPELLINGS, SPLITS, DataError, Dataset, Item, Polygon, Problem, Source
from yolov9.data.description import Description, classes_beside, read_description
from yolov9.data.files import hash_note, header_of, ids, pictures, read_lines, split_by_hash, with_suffixes

_NOT_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})
"""Text files that tools put among the labels."""
_SHARES_END = 2.0
"""Shares beyond it are pixels rather than a box that reaches out."""
_LARGEST = 1e9
"""The numbers of a line together, shares or pixels. Beyond 1e38, float32 would make infinities of them."""


@dataclass(frozen=True)
class _Layout:
    """Where the pictures of each split are."""

    names: dict[int, str]
    places: dict[str, list[Path]]
    """Folders, and lists (text files)."""
    root: Path
    """What the paths in a list are relative to, if not to the list."""
    flat: Path | None = None
    """The folder of all pictures, where there are no splits."""
    problems: list[Problem] = field(default_factory=list)


def find(path: Path) -> Source | None:
    """The data set that a data.yaml or a folder describes; None if it is none of YOLO's. DataError if a broken one."""
    description = read_description(path)
    if description is not None and description.places:
        return _source(path, _Layout(description.names, description.places, description.root,
                                     problems=description.problems))  # fmt: skip
    folder = path if description is None else description.root
    if not folder.is_dir():
        return None
    layout = _from_folders(folder, description)
    return None if layout is None else _source(path, layout)


def _source(path: Path, layout: _Layout) -> Source:
    splits = ("train", "val") if layout.flat is not None else tuple(s for s in SPLITS if s in layout.places)
    return Source(path, "yolo", splits, lambda split, polygons: _read(path, layout, split, polygons))


def _from_folders(folder: Path, description: Description | None) -> _Layout | None:
    """The usual arrangements: images/train + labels/train, train/images + train/labels, images + labels, or both in
    one folder with a classes.txt."""
    images, labels = folder / "images", folder / "labels"
    variants = [(split, name) for split, names in SPELLINGS.items() for name in names]
    places = {s: [images / n] for s, n in variants if (images / n).is_dir() and (labels / n).is_dir()}
    places = places or {s: [folder / n / "images"] for s, n in variants if (folder / n / "labels").is_dir()}
    flat: Path | None = None
    if not places and images.is_dir() and labels.is_dir():
        flat = images
    if not places and flat is None and (folder / "classes.txt").is_file():
        flat = folder if any(p.name not in _NOT_LABELS for p in folder.glob("*.txt")) else None
    if not places and flat is None:
        return None
    class_names = description.names if description is not None else classes_beside(folder)
    if class_names is None:
        raise DataError(f"{folder}: holds YOLO labels, but nothing names the classes: write a data.yaml with `names`")
    problems = [] if description is None else description.problems
    return _Layout(class_names, places, folder, flat, problems)


def _read(path: Path, layout: _Layout, split: str, polygons: bool) -> Dataset:
    problems = list(layout.problems)
    notes: list[str] = []
    if layout.flat is not None:
        images = pictures(layout.flat)
        if split != ALL:
            images = [image for image in images if split_by_hash(image.stem) == split]
            notes.append(hash_note("train and val folders"))
        folders = [layout.flat] if split == ALL else []
    else:
        images, folders = _images(path, layout, split, problems)
    if not images:
        raise DataError(f"{path}: split {split!r}: no images there")
    reader = _Reader(layout.names, problems, polygons)
    items = [item for image, identity in zip(images, ids(images), strict=True)
             if (item := reader.item(image, identity)) is not None]  # fmt: skip
    for folder in folders:
        reader.report_orphans(folder)
    same = {i: i for i in layout.names}
    return Dataset(path, "yolo", split, layout.names, items, problems, notes, same)


def _images(path: Path, layout: _Layout, split: str, problems: list[Problem]) -> tuple[list[Path], list[Path]]:
    """(the pictures of a split, each once, and the folders that were listed for them)."""
    images: dict[Path, None] = {}
    folders: list[Path] = []
    for place in dict.fromkeys(p for s, ps in layout.places.items() if split in (s, ALL) for p in ps):
        if os.path.isdir(place):  # for names that no file system takes, Path would raise
            folders.append(place)
            images.update(dict.fromkeys(pictures(place)))
        elif os.path.isfile(place):
            images.update(dict.fromkeys(_listed(place, layout.root, problems)))
        elif split == ALL:  # a test set that a data.yaml names is often not shipped
            problems.append(Problem(path, None, f"{place}: no such folder or list of images", "description"))
        else:
            raise DataError(f"{path}: split {split!r}: {place}: no such folder or list of images")
    return list(images), folders


def _listed(file: Path, root: Path, problems: list[Problem]) -> list[Path]:
    """The pictures that a list names, one a line: absolute, or relative to the list, or to the data set."""
    images: dict[Path, None] = {}
    for number, line in enumerate(read_lines(file), 1):
        text = line.strip()
        if not text:
            continue
        image = next((p for p in (file.parent / text, root / text) if os.path.isfile(p)), None)
        if image is None:
            problems.append(Problem(file, number, f"{text}: there is no such image", "missing image"))
        elif image in images:
            problems.append(Problem(file, number, f"{text}: listed before; counts once", "duplicate"))
        else:
            images[image] = None
    return list(images)


class _Reader:
    """Reads pictures and their labels; knows which label files it has seen."""

    def __init__(self, names: dict[int, str], problems: list[Problem], polygons: bool) -> None:
        self._classes = len(names)
        self._problems = problems
        self._polygons = polygons
        self._label_folders: dict[Path, Path] = {}
        self._known: set[Path] = set()

    def item(self, image: Path, identity: int) -> Item | None:
        label = self._label(image)
        self._known.add(label)
        header = header_of(image, self._problems)
        if header is None:
            return None
        boxes = BoxList(*header.displayed, self._problems, polygons=self._polygons)
        try:
            lines = label.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            self._problems.append(
                Problem(image, None, f"has no label file {label}; counts as a picture of nothing", "missing label")
            )
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
            self._problems.append(Problem(label, None, f"{reason}; the picture is left out", "unreadable label"))
            return None
        else:
            for number, line in enumerate(lines, 1):
                self._add(boxes, line, header.displayed, label, number)
        return boxes.item(image, identity)

    def report_orphans(self, folder: Path) -> None:
        """Name the label files for the pictures of `folder` that have no picture."""
        labels = _swapped(folder)
        if labels is None or not labels.is_dir():
            return
        for file in with_suffixes(labels, (".txt",)):
            if file not in self._known and file.name not in _NOT_LABELS:
                self._problems.append(Problem(file, None, "there is no image for this label file", "orphan label"))

    def _label(self, image: Path) -> Path:
        folder = image.parent
        if folder not in self._label_folders:
            swapped = _swapped(folder)
            self._label_folders[folder] = swapped if swapped is not None and swapped.is_dir() else folder
        return self._label_folders[folder] / (image.stem + ".txt")

    def _add(self, boxes: BoxList, line: str, size: tuple[int, int], file: Path, number: int) -> None:
        words = line.split()
        if not words:
            return
        try:
            class_number, *shares = map(float, words)
        except ValueError:
            shares = [nan]
        if not sum(map(abs, shares)) <= _LARGEST:  # nor if it is not a number
            wrong = next((word for word in (*words[1:], words[0]) if not _is_finite(word)), None)
            text = "numbers beyond any picture" if wrong is None else f"{wrong[:40]!r} is not a finite number"
            self._problems.append(Problem(file, number, f"{text}; left out", "not a number"))
            return
        count = len(words)
        if count != 5 and (count < 7 or count % 2 == 0):
            self._problems.append(
                Problem(file, number, f"{count} numbers: neither a box (5) nor a polygon (7, 9, 11, ...); left out",
                        "not a number")
            )  # fmt: skip
            return
        if not (class_number.is_integer() and 0 <= class_number < self._classes):
            text = f"class {words[0][:40]} is none of 0 to {self._classes - 1}; left out"
            self._problems.append(Problem(file, number, text, "wrong class"))
            return
        width, height = size
        parts: Sequence[Polygon] = ()
        area: float | None = None
        if count == 5:
            cx, cy, w, h = shares
            corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        else:
            xs, ys = shares[::2], shares[1::2]
            corners = (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
            points = np.array([xs, ys], np.float32).T * np.array([width, height], np.float32)
            parts, area = (points,), polygon_area(points)
        hint = " (pixels instead of shares of the picture?)" if max(shares) > _SHARES_END else ""
        boxes.add(corners, int(class_number), file, number, label=f"box{hint}", area=area, parts=parts)


def _is_finite(word: str) -> bool:
    try:
        return isfinite(float(word))
    except ValueError:
        return False


def _swapped(folder: Path) -> Path | None:
    """The folder of the labels for pictures in `folder`; None if no part of its path is called images."""
    parts = list(folder.parts)
    if "images" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])
