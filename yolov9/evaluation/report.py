"""What an evaluation says: as a table for people, as JSON for programs, as files for COCO's own tools."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov9.data import Dataset, Problem
from yolov9.evaluation.coco import UNDEFINED
from yolov9.evaluation.confusion import Counts
from yolov9.evaluation.curves import Curve
from yolov9.evaluation.results import Picture

_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class ClassReport:
    """One class. UNDEFINED (-1) where it has no object."""

    id: int
    """In the data set."""
    name: str
    objects: int
    """Without crowds."""
    images: int
    """With such an object."""
    ap: float
    ap50: float
    ar: float
    confidence: float
    """The threshold at which F1 is best, at an IoU of .5; 1 where nothing right is found."""
    precision: float
    recall: float
    f1: float
    """At that threshold."""


@dataclass(frozen=True, eq=False)
class Report:
    """One evaluation."""

    metrics: dict[str, float]
    """`yolov9.evaluation.coco.METRICS` -> 0..1, or UNDEFINED where there is no such object."""
    classes: list[ClassReport]
    """The common classes of model and data, in the data's order."""
    missing: list[str]
    """Classes of the data that the model does not have: their objects are not counted."""
    unused: list[str]
    """Classes of the model that the data does not have: they are not looked for."""
    confidence: float
    """The threshold for all classes at which their mean F1 is best."""
    images: int
    speed: dict[str, float]
    """Milliseconds an image: read (decode and letterbox) and postprocess of CPU time, inference of wall time; and
    `images_per_second` of the whole, which overlap."""
    engine: dict[str, str]
    """name, precision, device."""
    settings: dict[str, Any]
    """With which it was made."""
    problems: list[Problem]
    """Pictures that could not be decoded: neither their objects nor what would be found there count."""
    dataset: Dataset
    pictures: list[Picture]
    curves: list[Curve]
    """Of `classes`."""
    confusion: Counts
    """Of `classes`; see `yolov9.evaluation.confusion`."""

    def to_json(self) -> dict[str, Any]:
        """The metrics at the top, then everything else that is small."""
        data = self.dataset
        return {
            **{key: round(value, 5) for key, value in self.metrics.items()},
            "images": self.images,
            "objects": sum(c.objects for c in self.classes),
            "best_confidence": self.confidence,
            "class_confidence": {c.name: c.confidence for c in self.classes if c.f1 > 0},
            "speed_ms": {key: round(value, 3) for key, value in self.speed.items() if key != "images_per_second"},
            "images_per_second": round(self.speed["images_per_second"], 2),
            "engine": self.engine,
            "settings": self.settings,
            "data": {"path": str(data.path), "format": data.format, "split": data.split, "notes": data.notes,
                     "problems": dict(Counter(p.kind for p in (*data.problems, *self.problems)))},
            "classes": [{k: round(v, 5) if isinstance(v, float) else v for k, v in vars(c).items()}
                        for c in self.classes],
            "classes_missing_in_model": self.missing,
            "classes_missing_in_data": self.unused,
            "confusion": {"classes": [c.name for c in self.classes], "counts": self.confusion.tolist()},
        }  # fmt: skip

    def table(self) -> str:
        """For the terminal."""
        lines = [f"{'class':<24}{'images':>8}{'objects':>9}{'AP':>8}{'AP50':>8}{'AR100':>8}{'P':>8}{'R':>8}{'F1':>8}"
                 f"{'at conf':>9}"]  # fmt: skip
        m = self.metrics
        total = f"{'all':<24}{self.images:>8}{sum(c.objects for c in self.classes):>9}"
        lines.append(total + f"{_number(m['map'])}{_number(m['map50'])}{_number(m['ar100'])}")
        for c in self.classes:
            if not c.objects:
                continue
            figures = "".join(_number(v) for v in (c.ap, c.ap50, c.ar, c.precision, c.recall, c.f1))
            lines.append(f"{_cut(c.name, 23):<24}{c.images:>8}{c.objects:>9}{figures}{c.confidence:>9.3f}")
        if empty := [c.name for c in self.classes if not c.objects]:
            lines.append(f"without an object here, hence not counted: {_listed(empty)}")
        lines += ["", *self._coco_lines(), "", self._speed_line()]
        lines.append(f"best F1 over all classes at confidence {self.confidence:.3f}")
        if self.missing:
            lines.append(f"not in the model, hence left out: {_listed(self.missing)}")
        return "\n".join(lines)

    def _coco_lines(self) -> Iterator[str]:
        """The twelve figures."""
        m = self.metrics
        for what, keys in {
            "AP": {"": "map", "IoU .50": "map50", "IoU .75": "map75"},
            "AP by size": {"small": "map_small", "medium": "map_medium", "large": "map_large"},
            "AR, boxes": {"1": "ar1", "10": "ar10", "100": "ar100"},
            "AR by size": {"small": "ar_small", "medium": "ar_medium", "large": "ar_large"},
        }.items():
            yield f"{what:<12}" + "   ".join(f"{label:>7}{_number(m[key])}" for label, key in keys.items())

    def _speed_line(self) -> str:
        s = self.speed
        return (
            f"speed: read {s['read']:.1f} + inference {s['inference']:.1f} + postprocess {s['postprocess']:.1f} ms an "
            f"image, {s['images_per_second']:.1f} images/s ({self.engine['name']} {self.engine['precision']} on "
            f"{self.engine['device']})"
        )

    def write(self, folder: Path) -> list[Path]:
        """metrics.json, predictions.json and truth.json (in COCO's formats, for its own tools), and the pictures.

        EvaluationError if matplotlib is missing, OSError from the disk."""
        from yolov9.evaluation.plots import draw_all

        folder.mkdir(parents=True, exist_ok=True)
        written = [write_json(folder / "metrics.json", self.to_json())]
        written.append(_write_list(folder / "predictions.json", self._predictions()))
        written.append(write_json(folder / "truth.json", self._truth()))
        return written + draw_all(folder, [c.name for c in self.classes], self.curves, self.confusion)

    def _predictions(self) -> Iterator[dict[str, Any]]:
        categories = self.dataset.category_ids
        for picture in self.pictures:
            for x1, y1, x2, y2, score, class_id in picture.found.astype(float).tolist():
                yield {"image_id": picture.id, "category_id": categories[int(class_id)],
                       "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)], "score": round(score, 6)}  # fmt: skip

    def _truth(self) -> dict[str, Any]:
        """What was evaluated: the decoded pictures and the objects of the common classes."""
        categories = self.dataset.category_ids
        annotations = [
            {"image_id": p.id, "category_id": categories[class_id], "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": area, "iscrowd": int(crowd)}
            for p in self.pictures
            for (x1, y1, x2, y2), class_id, area, crowd in zip(
                p.boxes.astype(float).tolist(), p.classes.tolist(), p.areas.tolist(), p.crowd.tolist(), strict=True)
        ]  # fmt: skip
        return {
            "images": [{"id": p.id, "file_name": p.file_name, "width": p.width, "height": p.height}
                       for p in self.pictures],
            "categories": [{"id": categories[c.id], "name": c.name} for c in self.classes],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, 1)],
        }  # fmt: skip


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def say_problems(problems: Sequence[Problem], say: Callable[[str], None]) -> None:
    """The first few by name, the others by kind and count."""
    for problem in problems[:_SHOWN_PROBLEMS]:
        say(f"{problem.kind}: {problem}")
    if len(problems) > _SHOWN_PROBLEMS:
        rest = Counter(p.kind for p in problems[_SHOWN_PROBLEMS:])
        say("and " + ", ".join(f"{count} more of {kind}" for kind, count in rest.most_common()))


def _write_list(path: Path, entries: Iterator[dict[str, Any]]) -> Path:
    """A JSON array, entry by entry: a large one is never in memory."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, entry in enumerate(entries):
            file.write((",\n" if number else "\n") + json.dumps(entry))
        file.write("\n]\n")
    return path


def _number(value: float) -> str:
    return f"{'-':>8}" if value == UNDEFINED else f"{value:>8.3f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
