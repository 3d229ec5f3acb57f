"""What is in a data set and what is wrong with it: counted, measured, each problem named with its file and line.

Every picture is decoded, and hashed: the same file in train and in val makes an evaluation worthless.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolov9.data import DataError, Dataset, Problem, find_source, open_dataset
from yolov9.engines.cpu import available_cpus
from yolov9.images import ImageError, read_image

SMALL, MEDIUM = 32.0**2, 96.0**2
"""Pixels of area that end COCO's small and medium objects."""
_QUANTILES = (0, 5, 50, 95, 100)
_PROGRESS_S = 2.0
_AHEAD = 64
"""Pictures on their way through the threads."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class SplitCheck:
    """One split. Crowds are counted apart, in nothing else."""

    split: str
    images: int
    """That can be used."""
    empty: int
    """Of them, without a box."""
    boxes: int
    crowds: int
    classes: dict[str, int]
    """Boxes by class, with zeros."""
    sizes: dict[str, int]
    """Boxes that are small, medium, large, as COCO says, in pixels of the pictures as they are."""
    sides: list[float]
    """Square root of the boxes' area in pixels: least, 5 %, median, 95 %, greatest; empty without boxes."""
    image_sizes: list[tuple[str, int]]
    """The most frequent ones, WIDTHxHEIGHT, with how many pictures have them."""
    notes: list[str]
    problems: list[Problem]


@dataclass(frozen=True)
class Check:
    path: Path
    format: str
    names: dict[int, str]
    splits: list[SplitCheck]
    repeated: list[list[tuple[str, Path]]]
    """Files of one content: (split, file) of each, where there is more than one."""

    @property
    def across(self) -> list[list[tuple[str, Path]]]:
        """The repeated ones that are in more than one split."""
        return [group for group in self.repeated if len({split for split, _ in group}) > 1]

    @property
    def problems(self) -> list[Problem]:
        """Of all splits, each once: what is wrong with a description or a shared file is met in every split."""
        return list(dict.fromkeys(p for split in self.splits for p in split.problems))

    @property
    def clean(self) -> bool:
        return not self.problems and not self.repeated

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "format": self.format,
            "names": self.names,
            "splits": [
                {**{k: v for k, v in vars(split).items() if k != "problems"},
                 "problems": dict(Counter(p.kind for p in split.problems))}
                for split in self.splits
            ],
            "problems": [{"kind": p.kind, "file": str(p.file), "line": p.line, "what": p.what} for p in self.problems],
            "repeated_images": [[{"split": s, "file": str(f)} for s, f in group] for group in self.repeated],
        }  # fmt: skip

    def lines(self, shown: int) -> Iterator[str]:
        """For the terminal, with at most `shown` problems of a kind."""
        yield f"{self.path}: {self.format}, {len(self.names)} classes, {', '.join(s.split for s in self.splits)}"
        for split in self.splits:
            yield f"\n{split.split}: {split.images} images ({split.empty} without a box), {split.boxes} boxes" + (
                f", {split.crowds} crowds" if split.crowds else ""
            )
            yield from (f"  {note}" for note in split.notes)
            yield "  pictures: " + ", ".join(f"{count} of {size}" for size, count in split.image_sizes)
            if split.sides:
                counts = ", ".join(f"{count} {size}" for size, count in split.sizes.items())
                least, low, median, high, greatest = split.sides
                yield f"  boxes: {counts}; sides {least} to {greatest} px (5 % {low}, median {median}, 95 % {high})"
            yield from _histogram(split)
        yield from self._problem_lines(shown)

    def _problem_lines(self, shown: int) -> Iterator[str]:
        by_kind: dict[str, list[Problem]] = {}
        for problem in self.problems:
            by_kind.setdefault(problem.kind, []).append(problem)
        for kind, problems in sorted(by_kind.items()):
            yield f"\n{kind}: {len(problems)}"
            yield from (f"  {problem}" for problem in problems[:shown])
            if len(problems) > shown:
                yield f"  and {len(problems) - shown} more (--show, --json)"
        within = [g for g in self.repeated if len({split for split, _ in g}) == 1]
        for what, groups in (
            ("the same picture in several splits", self.across),
            ("the same picture twice in a split", within),
        ):
            if groups:
                yield f"\n{what}: {len(groups)}"
                yield from ("  " + " = ".join(f"{file} ({split})" for split, file in g) for g in groups[:shown])
                if len(groups) > shown:
                    yield f"  and {len(groups) - shown} more (--show, --json)"
        if self.clean:
            yield "\nno problems"


def check(path: str | Path, splits: Sequence[str] | None = None, say: Say = lambda line: None) -> Check:
    """Read the splits (all, unless named), decode and hash every picture. `say` gets progress. DataError."""
    source = find_source(path)
    data = []
    reasons = []
    for split in splits or source.splits or ("all",):
        try:
            data.append(open_dataset(path, split))
        except DataError as error:
            if splits:
                raise
            reasons.append(error)
            say(f"{split} is left out: {error}")
    if not data:
        raise reasons[0]
    total = len({item.image for one in data for item in one.items})
    files: dict[Path, tuple[str, str | None]] = {}
    images = dict.fromkeys(item.image for one in data for item in one.items)
    said = time.monotonic()
    for number, (image, digest, reason) in enumerate(_examine(images), 1):
        files[image] = digest, reason
        if time.monotonic() - said >= _PROGRESS_S:
            said = time.monotonic()
            say(f"{number}/{total} images decoded")
    groups: dict[str, list[tuple[str, Path]]] = {}
    for one in data:
        for item in one.items:
            groups.setdefault(files[item.image][0], []).append((one.split, item.image))
    reports = [_split(one, {f: reason for f, (_, reason) in files.items() if reason is not None}) for one in data]
    repeated = [group for group in groups.values() if len(group) > 1]
    return Check(Path(path), source.format, data[0].names, reports, repeated)


def _examine(images: Iterable[Path]) -> Iterator[tuple[Path, str, str | None]]:
    """(file, hash of its content, what is wrong with it or None) of each, in order, in threads."""
    waiting = []
    with ThreadPoolExecutor(available_cpus(), "check") as pool:
        for image in images:
            waiting.append(pool.submit(_one, image))
            if len(waiting) >= _AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _one(image: Path) -> tuple[Path, str, str | None]:
    try:
        content = image.read_bytes()
    except OSError as error:
        return image, str(image), error.strerror or "unreadable"
    reason = None
    try:
        read_image(content)
    except ImageError as error:
        reason = str(error).removeprefix("image: ")
    return image, hashlib.sha256(content).hexdigest(), reason


def _split(data: Dataset, broken: dict[Path, str]) -> SplitCheck:
    items = [item for item in data.items if item.image not in broken]
    problems = [*data.problems]
    problems += [Problem(i.image, None, broken[i.image], "corrupt image") for i in data.items if i.image in broken]
    classes = np.concatenate([item.classes[~item.crowd] for item in items]) if items else np.zeros(0, np.int64)
    areas = np.concatenate([item.areas[~item.crowd] for item in items]) if items else np.zeros(0, np.float32)
    counts = np.bincount(classes, minlength=len(data.names)).tolist()
    return SplitCheck(
        split=data.split,
        images=len(items),
        empty=sum(len(item.boxes) == 0 for item in items),
        boxes=len(classes),
        crowds=sum(int(item.crowd.sum()) for item in items),
        classes={name: counts[i] for i, name in data.names.items()},
        sizes={
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        sides=[round(float(v), 1) for v in np.percentile(np.sqrt(areas), _QUANTILES)] if len(areas) else [],
        image_sizes=Counter(f"{item.width}x{item.height}" for item in items).most_common(5),
        notes=data.notes,
        problems=problems,
    )


def _histogram(split: SplitCheck) -> Iterator[str]:
    """A bar for each class, the most frequent first."""
    most = max(split.classes.values(), default=0)
    width = max(map(len, split.classes), default=0)
    for name, count in sorted(split.classes.items(), key=lambda entry: -entry[1]):
        yield f"  {name:<{width}} {count:>7} {'█' * round(40 * count / most) if most else ''}".rstrip()
