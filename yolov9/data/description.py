"""data.yaml: where the pictures of each split are and what the classes are called.

path: .                   the data set's folder, relative to this file (left out: the file's own folder)
train: images/train       a folder, a list of folders, or a .txt with one image a line; relative to `path`
val: [images/val, more]
names: [car, person]      or {0: car, 1: person}
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yolov9.data.dataset import SPELLINGS, SPLITS, DataError, Problem, class_table
from yolov9.data.files import read_lines

_SUFFIXES = (".yaml", ".yml")
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


@dataclass(frozen=True)
class Description:
    file: Path
    root: Path
    names: dict[int, str]
    places: dict[str, list[Path]]
    """Folders and lists by split; empty if the file names none."""
    problems: list[Problem] = field(default_factory=list)


def read_description(path: Path) -> Description | None:
    """Of a YAML file, or of the one in a folder; None if there is none. DataError for a broken one, or for several."""
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            return None
        return _description(path, _mapping(path))
    found = []
    for file in sorted(p for p in path.glob("*") if p.suffix.lower() in _SUFFIXES):
        content = _mapping(file, strict=file.stem == "data")
        if "names" in content or file.stem == "data":
            found.append((file, content))
    if len(found) > 1:
        raise DataError(f"{path}: several data descriptions ({', '.join(f.name for f, _ in found)}): name the file")
    return _description(*found[0]) if found else None


def classes_beside(folder: Path) -> dict[int, str] | None:
    """The class names in a list beside the pictures, one a line, as label tools write it; None if there is none."""
    for name in _NAME_FILES:
        file = folder / name
        if file.is_file():
            return class_table([line for line in read_lines(file) if line.strip()], str(file))
    return None


def _mapping(file: Path, strict: bool = True) -> dict[str, Any]:
    """The file's table; an empty one for what is something else, unless `strict`."""
    try:
        # Every scalar stays text: a class called `no` or `off` is not False.
        content = yaml.BaseLoader("\n".join(read_lines(file))).get_single_data()
    except RecursionError:
        raise DataError(f"{file}: nested too deeply") from None
    except yaml.YAMLError as error:
        if not strict:
            return {}
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark is not None else str(file)
        raise DataError(f"{where}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        if strict:
            raise DataError(f"{file}: not a table with `train`, `val` and `names`")
        return {}
    return content


def _description(file: Path, content: dict[str, Any]) -> Description:
    problems: list[Problem] = []
    if "names" not in content:
        raise DataError(f"{file}: names: missing")
    names = class_table(content["names"], str(file))
    count = content.get("nc")
    if count is not None and count != str(len(names)):
        problems.append(
            Problem(file, None, f"nc: {count}, but {len(names)} classes are named; the names count", "description")
        )
    folder = file.parent
    root = folder / os.path.expanduser(str(content.get("path") or "."))
    places: dict[str, list[Path]] = {}
    for split, keys in SPELLINGS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        if given is None:
            continue
        entries = given if isinstance(given, list) else [given]
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(f"{file}: {split}: neither a folder, nor a list of folders, nor a .txt")
        places[split] = [_place(root, entry) for entry in entries]
    if places and not os.path.isdir(root):  # for names that no file system takes, Path would raise
        hint = ""
        if any(os.path.exists(folder / entry) for entry in (str(content.get(s)) for s in SPLITS)):
            hint = "; the pictures lie beside the file: remove `path`"
        raise DataError(f"{file}: path: {root} is no folder{hint}")
    return Description(file, root, names, places, problems)


def _place(root: Path, entry: str) -> Path:
    """Roboflow writes `../train/images` for what lies beside the file: without the dots, if only that exists."""
    place = root / os.path.expanduser(entry)
    inside = root / entry.removeprefix("../")
    return inside if not os.path.exists(place) and os.path.exists(inside) else place
