"""`python -m yolov9.data check`: what it counts, and that each problem is named with its file and line."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from drawn_data import NAMES, picture, truth, write_coco, write_voc, write_yolo
from test_data_formats import make_coco, make_yolo

from yolov9.data.__main__ import main
from yolov9.data.check import check


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_voc])
def test_counts_are_those_of_the_truth(tmp_path, write):
    made = truth()
    found = check(write(tmp_path, made))
    (split,) = found.splits
    objects = [o for _, os in made.values() for o in os]
    assert (split.images, split.empty, split.boxes, split.crowds) == (12, 1, len(objects), 0)
    kinds = Counter(NAMES[o[4]] for o in objects)
    assert split.classes == {name: kinds[name] for name in NAMES}
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2, _ in objects]
    assert split.sizes == {
        "small": sum(a < 1024 for a in areas),
        "medium": sum(1024 <= a < 9216 for a in areas),
        "large": sum(a >= 9216 for a in areas),
    }
    assert split.sides[0] == pytest.approx(min(areas) ** 0.5, abs=0.1)
    assert split.sides[4] == pytest.approx(max(areas) ** 0.5, abs=0.1)
    assert sorted(split.image_sizes) == [("120x160", 3), ("128x128", 3), ("160x120", 3), ("192x108", 3)]
    assert found.clean


def test_crowds_are_counted_apart(tmp_path):
    file = make_coco(tmp_path, [{"bbox": [0, 0, 9, 9]}, {"bbox": [0, 0, 50, 50], "iscrowd": 1}])
    (split,) = check(file).splits
    assert (split.boxes, split.crowds, split.classes["car"]) == (1, 1, 1)


def test_everything_that_is_wrong_is_named(tmp_path, capsys):
    make_yolo(tmp_path, "0 .5 .5 .5 .5\n9 .5 .5 .5 .5\n0 .5 .5 0 .5\n0 .5 .5 .5 .5\n")
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "train").mkdir()
    (labels / "train").mkdir()
    content = (images / "val" / "a.png").read_bytes()
    (images / "train" / "copy.png").write_bytes(content)
    (labels / "train" / "copy.txt").write_text("0 1.5 .5 .5 .5\n")
    (images / "train" / "cut.png").write_bytes(content[:-30])
    (labels / "train" / "cut.txt").write_text("0 .5 .5 .5 .5\n")
    for name in ("twin1.png", "twin2.png"):
        picture((64, 64), [(1, 1, 9, 9, 0)]).save(images / "train" / name)
        (labels / "train" / name).with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("train: images/train\ntest: images/test\nnc: 4\n")
    assert main(["check", str(tmp_path), "--json", str(tmp_path / "r" / "report.json")]) == 1
    out, err = capsys.readouterr()
    for line in (
        "train: 3 images (1 without a box), 2 boxes",
        "val: 1 images (0 without a box), 1 boxes",
        f"{tmp_path}/data.yaml: nc: 4, but 3 classes are named",
        f"{labels}/val/a.txt:2: class 9 is none of 0 to 2",
        f"{labels}/val/a.txt:3: box: 0 x 25 pixels",
        f"{labels}/val/a.txt:4: box: the same box of the same class",
        f"{labels}/train/copy.txt:1: box: lies outside",
        f"{images}/train/cut.png: ",
        f"{images}/train/copy.png (train) = {images}/val/a.png (val)",
        f"{images}/train/twin1.png (train) = {images}/train/twin2.png (train)",
        "the same picture in several splits: 1",
        "the same picture twice in a split: 1",
    ):
        assert line in out
    assert out.count("nc: 4, but") == 1  # though it is met in both splits
    assert "test is left out: " in err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert len(report["problems"]) == 6
    assert {"kind": "wrong class", "file": f"{labels}/val/a.txt", "line": 2,
            "what": "class 9 is none of 0 to 2; left out"} in report["problems"]  # fmt: skip
    assert len(report["repeated_images"]) == 2
    assert report["splits"][0]["problems"] == {"description": 1, "box outside": 1, "corrupt image": 1}


def test_few_of_many_problems_are_shown_and_the_rest_counted(tmp_path, capsys):
    make_yolo(tmp_path, "".join(f"{n} .5 .5 .5 .5\n" for n in range(3, 33)))
    assert main(["check", str(tmp_path), "--show", "4"]) == 1
    out = capsys.readouterr().out
    assert out.count("a.txt:") == 4
    assert "wrong class: 30" in out
    assert "and 26 more" in out


def test_a_clean_data_set_ends_with_zero_and_none_with_two(tmp_path, capsys):
    write_yolo(tmp_path / "good", truth())
    assert main(["check", str(tmp_path / "good"), "--split", "val"]) == 0
    assert "no problems" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "good"), "--split", "train"]) == 2
    assert "has no split 'train'" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
