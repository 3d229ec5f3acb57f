"""Data sets with COCO labels: one JSON file for all pictures of a split.

Category ids become 0..n-1 in ascending order and are kept beside (COCO's 80 classes have ids from 1 to 90). A JSON file
that is named is taken whole. In a folder each file's split is read from its name or its folder's; a single file
without one is split by a hash of the pictures' names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from yolov9.data.boxes import BoxList
from yolov9.data.dataset import ALL, SPELLINGS, SPLITS, DataError, Dataset, Item, Polygon, Problem, Source
from yolov9.data.files import hash_note, header_of, split_by_hash
from yolov9.data.upright import lies_on_side, turned, turned_box
from yolov9.images import Header

_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(id(?:ation)?)?(?![a-z])", re.IGNORECASE)
"""In a file's or a folder's name: instances_val2017.json, valid/_annotations.coco.json."""
_HEAD_BYTES = 1 << 16
_HEAD = re.compile(rb'\s*\{.*"(images|annotations|categories)"\s*:', re.DOTALL)
"""What the start of such a file looks like. Files of half a gigabyte are not parsed to find out."""
_LARGEST = 1e9
"""Pixels, or pixels of area. JSON has numbers that no float holds."""
_TRIED = 50
"""Pictures that are looked for to find the folder they are in."""


class _Image(msgspec.Struct):
    """Fields of images and annotations are checked one by one: a wrong one is a problem of that entry alone."""

    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    id: Any = None
    area: Any = None
    iscrowd: Any = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


def find(path: Path) -> Source | None:
    """The data set in a JSON file, or in a folder with some; None if there is none. DataError if it is unclear."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        return Source(path, "coco", (), lambda split, polygons: _Reader(path, [path], split, False, polygons).read())
    files = [file for file in _candidates(path) if _looks_right(file)]
    # Of COCO's own files only the instances have boxes; the others (captions, keypoints) are of the same pictures.
    files = [file for file in files if file.name.startswith("instances_")] or files
    if not files:
        return None
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, path) or "", []).append(file)
    for split, several in by_split.items():
        if len(several) > 1 or ("" in by_split and len(by_split) > 1):
            what = f"for {split}" if split else "whose names tell no split"
            names = ", ".join(str(file.relative_to(path)) for file in (several if len(several) > 1 else files))
            raise DataError(f"{path}: several annotation files {what} ({names}): name one of them")
    if "" in by_split:
        (file,) = by_split[""]
        return Source(path, "coco", ("train", "val"),
                      lambda split, polygons: _Reader(path, [file], split, split != ALL, polygons).read())  # fmt: skip

    def read(split: str, polygons: bool) -> Dataset:
        chosen = [f for s in SPLITS for f in by_split.get(s, []) if split in (s, ALL)]
        return _Reader(path, chosen, split, False, polygons).read()

    return Source(path, "coco", tuple(s for s in SPLITS if s in by_split), read)


def _candidates(folder: Path) -> list[Path]:
    """JSON files where tools put them: in the folder, in annotations, or in the folder of a split."""
    places = [folder, *(folder / name for name in ("annotations", "train", "valid", "val", "test"))]
    return [file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))]


def _looks_right(file: Path) -> bool:
    with file.open("rb") as stream:
        return _HEAD.match(stream.read(_HEAD_BYTES)) is not None


def _split_of(file: Path, root: Path) -> str | None:
    """Of the file's name, else of its folder's inside the data set."""
    for name in (file.stem, *((file.parent.name,) if file.parent != root else ())):
        found = {match[1].lower() for match in _SPLIT.finditer(name)}
        if len(found) == 1:
            return found.pop()
    return None


class _Reader:
    """Reads one split from one file, or all from several."""

    def __init__(self, path: Path, files: list[Path], split: str, by_hash: bool, polygons: bool) -> None:
        self._path = path
        self._files = files
        self._split = split
        self._by_hash = by_hash
        self._polygons = polygons
        self._problems: list[Problem] = []

    def read(self) -> Dataset:
        names: dict[int, str] = {}
        category_ids: dict[int, int] = {}
        items: dict[Path, Item] = {}
        for file in self._files:
            content = _parse(file)
            table = {c.id: c.name.strip() for c in content.categories}
            if not table or len(table) != len(content.categories) or len(set(table.values())) != len(table):
                raise DataError(f"{file}: categories: none, or an id or a name that occurs twice")
            if category_ids and table != {c: names[i] for i, c in category_ids.items()}:
                raise DataError(f"{file}: categories: not those of {self._files[0]}")
            category_ids = dict(enumerate(sorted(table)))
            names = {i: table[c] for i, c in category_ids.items()}
            for item in self._items(file, content, {c: i for i, c in category_ids.items()}):
                items.setdefault(item.image, item)
        if len(self._files) > 1:
            items = {image: _renumbered(item, n) for n, (image, item) in enumerate(items.items(), 1)}
        if not items and not self._problems:
            raise DataError(f"{self._path}: split {self._split!r}: no images there")
        notes = [hash_note("annotation files by split")] if self._by_hash else []
        return Dataset(
            self._path, "coco", self._split, names, list(items.values()), self._problems, notes, category_ids
        )

    def _items(self, file: Path, content: _File, classes: dict[int, int]) -> list[Item]:
        root = _image_root(file, content.images)
        lists: dict[int, tuple[_Image, Header, bool, BoxList]] = {}
        known: set[int] = set()
        for image in content.images:
            if type(image.id) is not int or not isinstance(image.file_name, str) or not image.file_name:
                text = f"image {str(image.id)[:40]}: has no id that is a number, or no file_name; left out"
                self._problem(file, text, "missing image")
                continue
            if image.id in known:
                self._problem(file, f"image {image.id}: the id occurs twice; the first counts", "duplicate")
                continue
            known.add(image.id)
            if self._by_hash and split_by_hash(Path(image.file_name).stem) != self._split:
                continue
            header = header_of(root / image.file_name, self._problems)
            if header is None:
                continue
            on_side = False
            if isinstance(image.width, int) and isinstance(image.height, int):
                label = f"image {image.id}: "
                on_side = lies_on_side(header, (image.width, image.height), file, label, self._problems)
            else:
                self._problem(file, f"image {image.id}: states no size; taken from the picture", "size")
            boxes = BoxList(*header.displayed, self._problems, polygons=self._polygons)
            lists[image.id] = image, header, on_side, boxes
        for annotation in content.annotations:
            if type(annotation.image_id) is int and annotation.image_id in lists:
                _, header, on_side, boxes = lists[annotation.image_id]
                self._add(file, annotation, classes, header if on_side else None, boxes)
            elif type(annotation.image_id) is not int or annotation.image_id not in known:
                text = f"annotation {annotation.id}: there is no image {str(annotation.image_id)[:40]}; left out"
                self._problem(file, text, "orphan label")
        return [boxes.item(root / image.file_name, image.id) for image, _, _, boxes in lists.values()]

    def _add(
        self, file: Path, annotation: _Annotation, classes: dict[int, int], turn: Header | None, boxes: BoxList
    ) -> None:
        """`turn`: the header of a picture whose coordinates lie on their side."""
        label = f"annotation {annotation.id}"
        category = annotation.category_id
        if type(category) is not int or category not in classes:
            self._problem(file, f"{label}: there is no category {str(category)[:40]}; left out", "wrong class")
            return
        numbers = [_number(n) for n in annotation.bbox] if isinstance(annotation.bbox, list) else []
        if len(numbers) != 4:
            self._problem(file, f"{label}: bbox is not four numbers; left out", "not a number")
            return
        x, y, width, height = numbers
        corners = (x, y, x + width, y + height)
        parts = _outline(annotation.segmentation) if self._polygons else []
        if turn is not None:
            corners = turned_box(corners, turn)
            parts = [turned(part.astype(np.float64), turn).astype(np.float32) for part in parts]
        area = _number(annotation.area)
        boxes.add(corners, classes[category], file, None, label=label, crowd=annotation.iscrowd in (1, True),
                  area=area if isfinite(area) and area >= 0 else None, parts=parts)  # fmt: skip

    def _problem(self, file: Path, what: str, kind: Any) -> None:
        self._problems.append(Problem(file, None, what, kind))


def _parse(file: Path) -> _File:
    try:
        content = msgspec.json.decode(file.read_bytes(), type=_File)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not COCO annotations: {error or type(error).__name__}") from None
    return content


def _image_root(file: Path, images: Sequence[_Image]) -> Path:
    """The folder that the pictures' names are relative to: of the usual ones, that with the most of the first."""
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    stem = file.stem.removeprefix("instances_")
    folders = [stem, *SPELLINGS.get(_split_of(file, base) or "", ())]
    candidates = [file.parent, base / "images", base / "data", base]
    candidates += [place / name for place in (base / "images", base) for name in folders]
    names = [image.file_name for image in images[:_TRIED] if isinstance(image.file_name, str)]
    return max(candidates, key=lambda folder: sum(os.path.isfile(folder / name) for name in names))


def _number(value: object) -> float:
    """NaN for what is none."""
    return float(value) if isinstance(value, int | float) and abs(value) <= _LARGEST else nan


def _outline(segmentation: msgspec.Raw) -> list[Polygon]:
    """The polygons of an object; none for a mask (run lengths) or what is no outline, or far too large."""
    try:
        lists = msgspec.json.decode(segmentation, type=list[list[float]])
    except msgspec.DecodeError:
        return []
    usable = (p for p in lists if len(p) >= 6 and len(p) % 2 == 0 and sum(map(abs, p)) <= _LARGEST)
    return [np.array(p, np.float32).reshape(-1, 2) for p in usable]


def _renumbered(item: Item, identity: int) -> Item:
    """With another id: those of several files may be the same."""
    return Item(item.image, identity, item.width, item.height, item.boxes, item.classes, item.crowd, item.areas,
                item.polygons)  # fmt: skip
