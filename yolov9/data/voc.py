"""Data sets with Pascal VOC labels: an XML file a picture, in Annotations/ or beside the pictures.

Classes are the names in the XML of every split, sorted. ImageSets/Main/{train,val,test}.txt, such lists in the folder
itself, or folders of these names make the splits; without any it is split by a hash of the files' names.

Coordinates are the box's edges in pixels from 0, as label tools write them. Pascal's own files (their <database> says
"The VOC2007 Database") count pixels from 1 and include the last one: there xmin and ymin are moved by one.
`difficult` objects count as crowds: neither learnt nor counted, as in Pascal's own evaluation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from yolov9.data.boxes import BoxList
from yolov9.data.dataset import ALL, SPELLINGS, SPLITS, DataError, Dataset, Item, Kind, Problem, Source
from yolov9.data.files import hash_note, header_of, ids, pictures, read_lines, split_by_hash, with_suffixes
from yolov9.data.upright import lies_on_side, turned_box
from yolov9.data.xml_tree import Node, XmlError, parse

_PASCAL = re.compile(r"The VOC\d{4} Database")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Files:
    """Pictures and labels by key: the path inside their folder without its suffix."""

    images: dict[str, Path]
    labels: dict[str, Path]
    lists: dict[str, Path]
    """Of keys, by split."""
    folders: dict[str, set[str]]
    """Keys by split, where folders make the splits."""

    def splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.lists or s in self.folders) or ("train", "val")


def find(path: Path) -> Source | None:
    """The data set in a folder; None if there are no XML files of this kind."""
    root = path.parent if path.name == "Annotations" else path
    if not root.is_dir():
        return None
    annotations = root / "Annotations"
    files = _separate(root, annotations) if annotations.is_dir() else _mixed(root)
    if not files.labels:
        return None
    return Source(path, "voc", files.splits(), lambda split, polygons: _Reader(path, files, polygons).read(split))


def _separate(root: Path, annotations: Path) -> _Files:
    places = [p for p in (root / "JPEGImages", root / "images") if p.is_dir()]
    images = places[0] if places else root
    sets = root / "ImageSets" / "Main"
    lists = {s: file for s, names in SPELLINGS.items() for folder in (root, sets) for name in names
             if (file := folder / f"{name}.txt").is_file()}  # fmt: skip
    return _Files(_keyed(images, pictures(images)), _keyed(annotations, with_suffixes(annotations, (".xml",))), lists,
                  {})  # fmt: skip


def _mixed(root: Path) -> _Files:
    """Pictures and XML side by side, in the folder or in one for each split. Looked at no deeper: any folder may be
    asked about."""
    named = {s: root / name for s, names in SPELLINGS.items() for name in names if (root / name).is_dir()}
    found = {s: sorted(folder.glob("*.xml")) for s, folder in named.items()}
    folders = {s: set(_keyed(root, files)) for s, files in found.items() if files}
    if folders:
        images = [p for s in folders for p in pictures(named[s])]
        labels = [file for files in found.values() for file in files]
        return _Files(_keyed(root, images), _keyed(root, labels), {}, folders)
    labels = sorted(root.glob("*.xml"))
    lists = {s: file for s in SPLITS if (file := root / f"{s}.txt").is_file()}
    return _Files(_keyed(root, pictures(root)) if labels else {}, _keyed(root, labels), lists, {})


def _keyed(folder: Path, files: list[Path]) -> dict[str, Path]:
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


class _Reader:
    def __init__(self, path: Path, files: _Files, polygons: bool) -> None:
        self._path = path
        self._files = files
        self._polygons = polygons
        self._problems: list[Problem] = []
        self._difficult = 0

    def read(self, split: str) -> Dataset:
        keys, notes = self._keys(split)
        trees = {key: self._parse(file, key in keys) for key, file in self._files.labels.items()}
        classes = sorted({name for tree in trees.values() if tree is not None
                          for thing in tree.all("object") if (name := thing.text_of("name"))})  # fmt: skip
        if not classes:
            raise DataError(f"{self._path}: no <object> with a <name> in {len(trees)} XML files, so no classes")
        numbers = {name: i for i, name in enumerate(classes)}
        named = [(key, self._files.images[key]) for key in keys]
        items = [item for (key, image), identity in zip(named, ids([image for _, image in named]), strict=True)
                 if (item := self._item(image, identity, trees.get(key), key, numbers)) is not None]  # fmt: skip
        if not items and not self._problems:
            raise DataError(f"{self._path}: split {split!r}: no images there")
        if self._difficult:
            notes.append(f"{self._difficult} boxes are marked difficult: neither learnt nor counted")
        same = {i: i for i in numbers.values()}
        names = dict(enumerate(classes))
        return Dataset(self._path, "voc", split, names, items, self._problems, notes, same)

    def _keys(self, split: str) -> tuple[dict[str, None], list[str]]:
        """The pictures of a split in their order, and what is to be said of it."""
        files = self._files
        known = sorted(files.images.keys() | files.labels.keys())
        notes: list[str] = []
        chosen: list[str]
        if files.folders:
            wanted = {key.split("/")[0] for s in files.folders if split in (s, ALL) for key in files.folders[s]}
            chosen = [key for key in known if key.split("/")[0] in wanted]
        elif split == ALL:
            chosen = known
        elif files.lists:
            chosen = self._listed(files.lists[split])
        else:
            notes.append(hash_note("train.txt and val.txt"))
            chosen = [key for key in known if split_by_hash(key) == split]
        for key in [key for key in chosen if key not in files.images]:
            if key in files.labels:
                self._problem(files.labels[key], None, "there is no image for this label file", "orphan label")
        return {key: None for key in chosen if key in files.images}, notes

    def _listed(self, file: Path) -> list[str]:
        """Keys of a list: one a line, with or without a suffix; what follows a blank (1 or -1) is not looked at."""
        keys: dict[str, None] = {}
        for number, line in enumerate(read_lines(file), 1):
            words = line.split()
            if not words:
                continue
            key = next((k for k in (words[0], str(Path(words[0]).with_suffix("")))
                        if k in self._files.images or k in self._files.labels), None)  # fmt: skip
            if key is None:
                self._problem(file, number, f"{words[0]}: there is no such image", "missing image")
            elif key in keys:
                self._problem(file, number, f"{words[0]}: listed before; counts once", "duplicate")
            else:
                keys[key] = None
        return list(keys)

    def _parse(self, file: Path, report: bool) -> Node | None:
        try:
            return parse(file)
        except XmlError as error:
            if report:
                self._problem(file, error.line, f"{error}; the picture is left out", "unreadable label")
            return None

    def _item(self, image: Path, identity: int, tree: Node | None, key: str, numbers: dict[str, int]) -> Item | None:
        if tree is None:
            if key not in self._files.labels:  # else it has been reported as unreadable
                self._problem(image, None, "has no XML file; left out", "missing label")
            return None
        file = self._files.labels[key]
        header = header_of(image, self._problems)
        if header is None:
            return None
        size = tree.first("size")
        stated = [None if size is None else size.number(tag) for tag in ("width", "height")]
        on_side = False
        if stated[0] and stated[1]:
            on_side = lies_on_side(header, (int(stated[0]), int(stated[1])), file, "", self._problems)
        else:
            line = None if size is None else size.line
            self._problem(file, line, "states no size; taken from the picture", "size")
        source = tree.first("source")
        from_one = source is not None and _PASCAL.fullmatch(source.text_of("database") or "") is not None
        boxes = BoxList(*header.displayed, self._problems, polygons=self._polygons)
        for thing in tree.all("object"):
            name = thing.text_of("name")
            if not name:
                self._problem(file, thing.line, "an object without a name; left out", "wrong class")
                continue
            bounds = thing.first("bndbox")
            found = [None if bounds is None else bounds.number(tag) for tag in _CORNERS]
            x1, y1, x2, y2 = found
            if x1 is None or y1 is None or x2 is None or y2 is None:
                self._problem(file, thing.line, f"{name}: {', '.join(_CORNERS)} are not four numbers; left out",
                              "not a number")  # fmt: skip
                continue
            corners = (x1 - from_one, y1 - from_one, x2, y2)
            if on_side:
                corners = turned_box(corners, header)
            difficult = thing.number("difficult") == 1
            self._difficult += difficult
            boxes.add(corners, numbers[name], file, thing.line, label=name, crowd=difficult)
        return boxes.item(image, identity)

    def _problem(self, file: Path, line: int | None, what: str, kind: Kind) -> None:
        self._problems.append(Problem(file, line, what, kind))
