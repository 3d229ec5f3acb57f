"""Data sets of pictures with boxes, in whichever format they come: YOLO txt, COCO JSON, Pascal VOC XML.

data = open_dataset("data.yaml", "val")
for item in data.items:
    item.image, item.boxes, item.classes

What is broken in the data is skipped or mended by rules (`yolov9.data.boxes`) and named in `Dataset.problems`; only
what leaves nothing to read raises DataError. The trainer, `val` and `python -m yolov9.data check` read alike.
"""

from __future__ import annotations

from pathlib import Path

from yolov9.data import coco, voc, yolo
from yolov9.data.classes import ClassMatch, match_classes
from yolov9.data.dataset import ALL, DataError, Dataset, Item, Problem, Source, split_name

__all__ = [
    "ALL", "ClassMatch", "DataError", "Dataset", "Item", "Problem", "Source",
    "find_source", "match_classes", "open_dataset",
]  # fmt: skip

_FORMATS = {"YOLO txt": yolo.find, "COCO JSON": coco.find, "Pascal VOC XML": voc.find}


def open_dataset(path: str | Path, split: str = "val", *, polygons: bool = False) -> Dataset:
    """Read one split of a data set: all labels, and of the pictures only the headers.

    `path`: a data.yaml, a COCO JSON file (taken whole, whatever the split), or a folder; its format is recognised.
    `split`: train, val (or valid), test, or all. `polygons`: keep outlines, for copy-paste. DataError.
    """
    try:
        name = split_name(split)
    except ValueError as error:
        raise DataError(str(error)) from None
    source = find_source(path)
    if source.splits and name != ALL and name not in source.splits:
        raise DataError(f"{source.path}: has no split {name!r} (it has {', '.join(source.splits)})")
    data = source.read(name if source.splits else ALL, polygons)
    if not data.items:
        raise DataError(f"{source.path}: split {name!r}: nothing can be read, such as {data.problems[0]}")
    return data


def find_source(path: str | Path) -> Source:
    """What kind of data set lies there, and which splits it has. DataError if none does, or more than one."""
    place = Path(path)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    found = {name: source for name, find in _FORMATS.items() if (source := find(place)) is not None}
    if len(found) > 1:
        raise DataError(
            f"{place}: holds several data sets ({', '.join(found)}): name the data.yaml, the JSON file, or Annotations/"
        )
    if not found:
        raise DataError(
            f"{place}: no data set is recognised there: wanted is a data.yaml, images/ with YOLO's labels/, COCO's "
            "annotations as JSON, or Pascal VOC's XML in Annotations/ or beside the pictures"
        )
    return next(iter(found.values()))
