"""The pictures of a training: one data set or several, brought to one list of classes.

A class that a data set does not label may still be seen in its pictures. So it is unknown there, not absent: its loss
is not counted on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolov9.data import DataError, Dataset, find_source, open_dataset
from yolov9.data.classes import normalised
from yolov9.training.samples import Sample, samples_of


@dataclass(frozen=True, eq=False)
class Corpus:
    names: dict[int, str]
    samples: list[Sample]
    validation: Dataset | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is learnt from: names and sizes of the picture files, boxes and classes, in their order."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for s in self.samples:
            digest.update(f"{s.path.name} {s.path.stat().st_size}\n".encode())
            digest.update(s.boxes.astype("<f4").tobytes() + s.classes.astype("<i8").tobytes() + s.known.tobytes())
        return digest.hexdigest()


def open_corpus(
    paths: Sequence[str | Path],
    *,
    classes: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    validation: str | Path | None = None,
    split: str = "train",
    say: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Read the training split of each data set.

    `classes`: of the model; () takes those of the first data set. `renamed`: {a data set's name: the model's}, such as
    Motorcycle to motorbike. `without`: pictures with an object of such a class (a data set's name) are left out.
    `validation`: a data set's val split; None takes the first one's that has one. DataError.
    """
    names: dict[int, str] = dict(enumerate(classes))
    new_names = {normalised(old): new for old, new in (renamed or {}).items()}
    excluded = {normalised(name) for name in without}
    samples: list[Sample] = []
    held_out: Dataset | None = open_dataset(validation, "val") if validation is not None else None
    for path in paths:
        splits = find_source(path).splits
        data = open_dataset(path, split if split in splits or not splits else "all", polygons=True)
        if held_out is None and "val" in splits:
            held_out = open_dataset(path, "val")
        called = {i: new_names.get(normalised(name), name) for i, name in data.names.items()}
        names = names or dict(enumerate(dict.fromkeys(called.values())))
        mine = {normalised(name): i for i, name in names.items()}
        mapping = {i: mine[normalised(name)] for i, name in called.items() if normalised(name) in mine}
        if not mapping:
            raise DataError(f"{path}: none of its classes ({', '.join(called.values())}) is one of the model's")
        outside = {i for i, name in data.names.items() if normalised(name) in excluded}
        kept = [item for item in data.items if not outside.intersection(item.classes.tolist())]
        left = len(data.items) - len(kept)
        samples += samples_of(
            Dataset(data.path, data.format, data.split, data.names, kept, data.problems), len(names), mapping
        )
        missing = [name for i, name in names.items() if i not in mapping.values()]
        say(
            f"{path}: {data.format}, {data.split}: {len(kept)} pictures"
            + (f" ({left} with {', '.join(without)} left out)" if left else "")
            + (f"; not labelled there, hence not judged: {', '.join(missing)}" if missing else "")
            + (f"; {len(data.problems)} problems, such as {data.problems[0]}" if data.problems else "")
        )
        for note in data.notes:
            say(f"{path}: {note}")
    if not any(len(sample.boxes) for sample in samples):
        raise DataError(f"{', '.join(map(str, paths))}: not a single object of the classes {', '.join(names.values())}")
    return Corpus(names, samples, held_out)
