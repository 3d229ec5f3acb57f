"""Files that every format has: pictures in folders, their headers, lists of names, splits by hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from yolov9.data.dataset import DataError, Problem
from yolov9.images import SUFFIXES, Header, ImageError, read_header

VAL_SHARE = 20
"""Per cent of the pictures that a split by hash gives to val."""


def pictures(folder: Path) -> list[Path]:
    """All image files in the folder and below, sorted by path."""
    return with_suffixes(folder, SUFFIXES)


def with_suffixes(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """All files below that end so (lower case, with the dot), sorted by path, without hidden ones.

    Links to folders are followed: data sets are often made of them. None is entered twice."""
    wanted = frozenset(suffixes)
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        try:
            state = os.stat(root)
        except OSError:  # gone meanwhile, or not ours to look at: like an empty one
            folders.clear()
            continue
        if (state.st_dev, state.st_ino) in entered:
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        base = Path(root)
        # Hidden ones are no data: macOS leaves a `._x.jpg` beside each `x.jpg`.
        found += [base / f for f in files if os.path.splitext(f)[1].lower() in wanted and not f.startswith(".")]
    return sorted(found)


def header_of(image: Path, problems: list[Problem]) -> Header | None:
    """Size and orientation; None, and a problem, for a picture that cannot be read or is not there."""
    try:
        return read_header(image)
    except ImageError as error:
        text = str(error).removeprefix(f"{image}: ")
        missing = not os.path.exists(image)  # False for a name that no file system takes, where Path would raise
        problems.append(
            Problem(image, None, "there is no such image" if missing else text,
                    "missing image" if missing else "corrupt image")
        )  # fmt: skip
        return None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without a byte order mark. DataError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not a text file in UTF-8") from None


def ids(images: Sequence[Path]) -> list[int]:
    """The numbers that the files are named by, if all are and they differ (as COCO's are); else 1, 2, 3, ..."""
    if all(image.stem.isdecimal() and image.stem.isascii() and len(image.stem) <= 18 for image in images):
        numbers = [int(image.stem) for image in images]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(images) + 1))


def split_by_hash(stem: str) -> str:
    """train or val, by the file's name alone: the same on every machine, whatever else is in the folder."""
    return "val" if int.from_bytes(hashlib.sha1(stem.encode()).digest()[:8], "big") % 100 < VAL_SHARE else "train"


def hash_note(missing: str) -> str:
    return (
        f"no {missing}: split by a hash of the files' names, {100 - VAL_SHARE} % train and {VAL_SHARE} % val "
        "(split 'all' takes everything)"
    )
