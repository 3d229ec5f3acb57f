"""One truth, drawn as pictures and written in all three formats: the same data set three times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("car", "person", "traffic light")
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
CATEGORY_IDS = (3, 7, 90)
"""Of the COCO file: with gaps, as COCO's own."""

Truth = dict[str, tuple[tuple[int, int], list[tuple[int, int, int, int, int]]]]
"""File name -> (width, height), and for each object x1, y1, x2, y2 (whole pixels), class."""


def truth(seed: int = 0, images: int = 12) -> Truth:
    """Pictures of several shapes with up to five objects, small to large; the third has none."""
    random = np.random.default_rng(seed)
    made: Truth = {}
    for number in range(images):
        width, height = ((160, 120), (120, 160), (192, 108), (128, 128))[number % 4]
        objects = []
        for _ in range(0 if number == 2 else int(random.integers(1, 6))):
            x1, y1 = int(random.integers(0, width - 12)), int(random.integers(0, height - 12))
            x2 = int(random.integers(x1 + 8, width + 1))
            y2 = int(random.integers(y1 + 8, height + 1))
            objects.append((x1, y1, x2, y2, int(random.integers(len(NAMES)))))
        made[f"{number:04}.png"] = ((width, height), objects)
    return made


def picture(size, objects) -> Image.Image:
    image = Image.new("RGB", size, (114, 114, 114))
    for *box, class_id in objects:
        image.paste(COLOURS[class_id], tuple(box))
    return image


def write_yolo(folder: Path, made: Truth, split: str = "val") -> Path:
    """images/SPLIT, labels/SPLIT and data.yaml -> the YAML file."""
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for name, (size, objects) in made.items():
        picture(size, objects).save(images / name)
        lines = [yolo_line(size, *o) for o in objects]
        (labels / name).with_suffix(".txt").write_text("".join(line + "\n" for line in lines))
    file = folder / "data.yaml"
    file.write_text(f"path: .\n{split}: images/{split}\nnames: {json.dumps(list(NAMES))}\n")
    return file


def yolo_line(size, x1, y1, x2, y2, class_id) -> str:
    w, h = size
    return f"{class_id} {(x1 + x2) / 2 / w!r} {(y1 + y2) / 2 / h!r} {(x2 - x1) / w!r} {(y2 - y1) / h!r}"


def write_coco(folder: Path, made: Truth, split: str = "val") -> Path:
    """images and annotations/instances_SPLIT.json -> the JSON file."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number, (name, (size, objects)) in enumerate(made.items(), 100):
        picture(size, objects).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for x1, y1, x2, y2, class_id in objects:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": CATEGORY_IDS[class_id], "iscrowd": 0,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            )  # fmt: skip
    categories = [{"id": c, "name": name} for c, name in zip(CATEGORY_IDS, NAMES, strict=True)]
    file = folder / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def write_voc(folder: Path, made: Truth, split: str = "val") -> Path:
    """JPEGImages (of PNG, here), Annotations and SPLIT.txt -> the folder."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for name, (size, objects) in made.items():
        picture(size, objects).save(folder / "JPEGImages" / name)
        (folder / "Annotations" / name).with_suffix(".xml").write_text(voc_xml(size, objects))
    (folder / f"{split}.txt").write_text("".join(f"{Path(name).stem}\n" for name in made))
    return folder


def voc_xml(size, objects, database: str = "Unknown") -> str:
    things = "".join(
        f"<object>\n<name>{NAMES[c]}</name>\n<difficult>0</difficult>\n<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n</object>\n"
        for x1, y1, x2, y2, c in objects
    )
    return (
        f"<annotation>\n<source><database>{database}</database></source>\n"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n{things}</annotation>\n"
    )
