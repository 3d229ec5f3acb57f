"""Data sets of every format: recognised, read alike, and what is broken in them is named and left out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from drawn_data import CATEGORY_IDS, NAMES, picture, truth, voc_xml, write_coco, write_voc, write_yolo, yolo_line
from PIL import Image

from yolov9.data import DataError, find_source, open_dataset
from yolov9.data.files import pictures

WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}
SIZE = (100, 50)


def seen(data):
    """{file name: boxes with their class, sorted}."""
    return {
        item.image.name: sorted((*map(float, box), int(c)) for box, c in zip(item.boxes, item.classes, strict=True))
        for item in data.items
    }


def problems(data):
    return [(p.kind, p.file.name, p.line) for p in data.problems]


def make_yolo(folder: Path, lines: str, size=SIZE, names=NAMES) -> Path:
    """A data set of one picture a.png with these label lines."""
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    picture(size, []).save(folder / "images" / "val" / "a.png")
    (folder / "labels" / "val" / "a.txt").write_text(lines)
    (folder / "data.yaml").write_text(f"val: images/val\nnames: {json.dumps(list(names))}\n")
    return folder


def make_coco(folder: Path, annotations, size=SIZE, **image) -> Path:
    """A JSON file with one picture a.png, whose bare annotations are given."""
    folder.mkdir(exist_ok=True)
    picture(size, []).save(folder / "a.png")
    images = [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1], **image}]
    full = [{"id": n, "image_id": 1, "category_id": 3, "iscrowd": 0, **a} for n, a in enumerate(annotations, 1)]
    categories = [{"id": c, "name": name} for c, name in zip(CATEGORY_IDS, NAMES, strict=True)]
    file = folder / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": full, "categories": categories}))
    return file


def make_voc(folder: Path, xml: str, size=SIZE) -> Path:
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True)
    picture(size, []).save(folder / "JPEGImages" / "a.png")
    (folder / "Annotations" / "a.xml").write_text(xml)
    (folder / "val.txt").write_text("a\n")
    return folder


class TestOneTruthInThreeFormats:
    @pytest.mark.parametrize("kind", WRITERS)
    def test_boxes_classes_sizes_and_names_are_those_that_were_written(self, tmp_path, kind):
        made = truth()
        place = WRITERS[kind](tmp_path / "set", made)
        for path in {place, tmp_path / "set"}:
            data = open_dataset(path, "val")
            assert data.format == kind
            assert data.names == dict(enumerate(NAMES))
            assert data.problems == []
            assert [item.image.name for item in data.items] == list(made)
            for item in data.items:
                size, objects = made[item.image.name]
                assert (item.width, item.height) == size
                np.testing.assert_allclose(item.boxes, np.array([o[:4] for o in objects]).reshape(-1, 4), atol=1e-4)
                assert item.classes.tolist() == [o[4] for o in objects]
                assert item.boxes.dtype == np.float32
                assert not item.crowd.any()
                sides = item.boxes[:, 2:] - item.boxes[:, :2]
                np.testing.assert_allclose(item.areas, sides.prod(axis=1), rtol=1e-4)

    def test_category_ids_of_coco_are_kept(self, tmp_path):
        data = open_dataset(write_coco(tmp_path / "set", truth()))
        assert data.category_ids == dict(enumerate(CATEGORY_IDS))
        assert [item.id for item in data.items] == list(range(100, 112))

    def test_ids_are_the_numbers_in_file_names_or_places(self, tmp_path):
        made = truth(images=3)
        data = open_dataset(write_yolo(tmp_path / "numbers", made))
        assert [item.id for item in data.items] == [0, 1, 2]
        data = open_dataset(write_yolo(tmp_path / "words", {f"p{k}": v for k, v in made.items()}))
        assert [item.id for item in data.items] == [1, 2, 3]


class TestRecognition:
    @pytest.mark.parametrize("layout", ["images/train", "train/images"])
    def test_usual_folders_of_yolo_with_a_list_of_classes(self, tmp_path, layout):
        for split in ("train", "valid"):
            for part in ("images", "labels"):
                folder = tmp_path / (f"{part}/{split}" if layout.startswith("images") else f"{split}/{part}")
                folder.mkdir(parents=True)
                if part == "images":
                    picture(SIZE, []).save(folder / f"{split}.png")
                else:
                    (folder / f"{split}.txt").write_text("1 .5 .5 .5 .5\n")
        (tmp_path / "classes.txt").write_text("car\nperson\n")
        assert find_source(tmp_path).splits == ("train", "val")
        for split, name in (("train", "train.png"), ("val", "valid.png"), ("valid", "valid.png")):
            assert seen(open_dataset(tmp_path, split)) == {name: [(25, 12.5, 75, 37.5, 1)]}
        assert len(open_dataset(tmp_path, "all").items) == 2

    def test_labels_without_names_of_classes_are_refused(self, tmp_path):
        make_yolo(tmp_path, "0 .5 .5 .5 .5").joinpath("data.yaml").unlink()
        with pytest.raises(DataError, match=r"nothing names the classes: write a data\.yaml"):
            open_dataset(tmp_path)

    def test_labels_beside_the_pictures(self, tmp_path):
        for number in range(30):
            picture(SIZE, []).save(tmp_path / f"{number}.png")
            (tmp_path / f"{number}.txt").write_text("0 .5 .5 .5 .5")
        (tmp_path / "classes.txt").write_text("car\n")
        train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
        assert "split by a hash" in val.notes[0]
        names = [{item.image.name for item in data.items} for data in (train, val)]
        assert len(names[0]) + len(names[1]) == 30 == len(names[0] | names[1])
        assert all(len(item.boxes) == 1 for item in train.items + val.items)
        assert not train.problems

    def test_lists_folders_and_names_as_a_table_in_a_yaml(self, tmp_path):
        write_yolo(tmp_path, truth(images=4), "one")
        write_yolo(tmp_path / "sub", {"x.png": (SIZE, [(10, 10, 20, 20, 2)])}, "two")
        (tmp_path / "lists").mkdir()
        (tmp_path / "lists" / "val.txt").write_text("images/one/0001.png\n\n../images/one/0003.png\nimages/one/9.png\n"
                                                    "images/one/0001.png\n")  # fmt: skip
        description = tmp_path / "set.yaml"
        description.write_text(
            "train: [images/one, sub/images/two]\nval: lists/val.txt\ntest: nowhere\n"
            "names: {2: 'off', 0: no, 1: person}\nnc: 4\n"
        )
        data = open_dataset(description, "train")
        assert list(seen(data)) == ["0000.png", "0001.png", "0002.png", "0003.png", "x.png"]
        assert data.names == {0: "no", 1: "person", 2: "off"}
        assert problems(data) == [("description", "set.yaml", None)]
        data = open_dataset(description, "val")
        assert list(seen(data)) == ["0001.png", "0003.png"]
        assert problems(data)[1:] == [("missing image", "val.txt", 4), ("duplicate", "val.txt", 5)]
        with pytest.raises(DataError, match=r"split 'test': .*nowhere: no such folder or list"):
            open_dataset(description, "test")
        assert ("description", "set.yaml", None) in problems(open_dataset(description, "all"))[1:]

    def test_path_is_relative_to_the_yaml_and_not_to_where_one_stands(self, tmp_path, monkeypatch):
        write_yolo(tmp_path / "data", truth(images=2))
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "d.yaml").write_text("path: ../data\nval: images/val\nnames: [a, b, c]\n")
        monkeypatch.chdir("/")
        assert len(open_dataset(tmp_path / "configs" / "d.yaml").items) == 2

    def test_a_path_that_does_not_exist_here_is_said(self, tmp_path):
        write_yolo(tmp_path, truth(images=1))
        (tmp_path / "data.yaml").write_text("path: /kaggle/input\nval: images/val\nnames: [a, b, c]\n")
        with pytest.raises(DataError, match=r"/kaggle/input is no folder; the pictures lie beside the file"):
            open_dataset(tmp_path)

    def test_dots_that_roboflow_writes_too_many(self, tmp_path):
        write_yolo(tmp_path / "set", truth(images=2))
        (tmp_path / "set" / "data.yaml").write_text("val: ../images/val\nnames: [a, b, c]\n")
        assert len(open_dataset(tmp_path / "set").items) == 2

    @pytest.mark.parametrize("split", ["train", "valid"])
    def test_a_json_file_in_the_folder_of_its_split(self, tmp_path, split):
        (tmp_path / split).mkdir()
        file = make_coco(tmp_path / split, [{"bbox": [1, 2, 3, 4]}])
        file.rename(file.with_name("_annotations.coco.json"))
        data = open_dataset(tmp_path, split)
        assert data.split == ("train" if split == "train" else "val")
        assert seen(data) == {"a.png": [(1, 2, 4, 6, 0)]}

    def test_official_folders_of_coco(self, tmp_path):
        made = truth(images=3)
        for split in ("train2017", "val2017"):
            file = write_coco(tmp_path / split, made, split)
            (tmp_path / "annotations").mkdir(exist_ok=True)
            file.rename(tmp_path / "annotations" / file.name)
            for image in (tmp_path / split / "images").iterdir():
                image.rename(tmp_path / split / image.name)
        (tmp_path / "annotations" / "captions_val2017.json").write_text('{"images": [], "annotations": []}')
        assert find_source(tmp_path).splits == ("train", "val")
        data = open_dataset(tmp_path, "val")
        assert {item.image.parent.name for item in data.items} == {"val2017"}
        everything = open_dataset(tmp_path, "all")
        assert sorted(item.id for item in everything.items) == [1, 2, 3, 4, 5, 6]

    def test_a_named_json_file_is_taken_whole_and_a_single_one_in_a_folder_is_split(self, tmp_path):
        file = write_coco(tmp_path, truth(images=30), "default")
        assert len(open_dataset(file, "train").items) == 30
        train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
        assert len(train.items) + len(val.items) == 30
        assert "split by a hash" in train.notes[0]

    def test_a_voc_folder_without_lists_is_split_by_hash_and_says_so(self, tmp_path):
        write_voc(tmp_path, truth(images=40)).joinpath("val.txt").unlink()
        train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
        assert len(train.items) + len(val.items) == 40
        assert 2 <= len(val.items) <= 16
        assert "no train.txt and val.txt: split by a hash" in val.notes[0]
        # By the name alone: fewer files do not move the others.
        for item in train.items[:10]:
            item.image.unlink()
            (tmp_path / "Annotations" / item.image.with_suffix(".xml").name).unlink()
        assert [i.image.name for i in open_dataset(tmp_path, "val").items] == [i.image.name for i in val.items]

    def test_lists_of_a_voc_folder(self, tmp_path):
        write_voc(tmp_path, truth(images=4)).joinpath("val.txt").unlink()
        sets = tmp_path / "ImageSets" / "Main"
        sets.mkdir(parents=True)
        (sets / "train.txt").write_text("0001\n0003.png\n")
        (sets / "test.txt").write_text("0000  1\n0009 -1\n0000 1\n")
        (sets / "car_train.txt").write_text("0002 1\n")
        assert list(seen(open_dataset(tmp_path, "train"))) == ["0001.png", "0003.png"]
        test = open_dataset(tmp_path, "test")
        assert list(seen(test)) == ["0000.png"]
        assert problems(test) == [("missing image", "test.txt", 2), ("duplicate", "test.txt", 3)]
        with pytest.raises(DataError, match=r"has no split 'val' \(it has train, test\)"):
            open_dataset(tmp_path)

    def test_xml_beside_the_pictures_by_split(self, tmp_path):
        for split in ("train", "valid"):
            (tmp_path / split).mkdir()
            picture(SIZE, []).save(tmp_path / split / "a.png")
            (tmp_path / split / "a.xml").write_text(voc_xml(SIZE, [(1, 2, 30, 40, split == "valid")]))
        data = open_dataset(tmp_path, "val")
        assert data.format == "voc"
        assert data.names == {0: "car", 1: "person"}  # of all splits
        assert seen(data) == {"a.png": [(1, 2, 30, 40, 1)]}

    def test_what_cannot_be_told_is_one_clear_error(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            open_dataset(tmp_path / "nowhere")
        (tmp_path / "notes.txt").write_text("hello")
        for path in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(DataError, match=r"no data set is recognised there: wanted is a data\.yaml"):
                open_dataset(path)
        write_voc(tmp_path / "both", truth(images=1))
        write_yolo(tmp_path / "both", truth(images=1))
        with pytest.raises(DataError, match=r"several data sets .*YOLO txt, Pascal VOC XML"):
            open_dataset(tmp_path / "both")
        assert open_dataset(tmp_path / "both" / "data.yaml").format == "yolo"
        assert open_dataset(tmp_path / "both" / "Annotations").format == "voc"
        with pytest.raises(DataError, match="split 'dev' is none of train, val, test, all"):
            open_dataset(tmp_path / "both" / "data.yaml", "dev")

    def test_two_descriptions_or_two_annotation_files_are_unclear(self, tmp_path):
        write_yolo(tmp_path / "y", truth(images=1))
        (tmp_path / "y" / "other.yaml").write_text("names: [a]")
        with pytest.raises(DataError, match=r"several data descriptions \(data.yaml, other.yaml\)"):
            open_dataset(tmp_path / "y")
        file = write_coco(tmp_path / "c", truth(images=1))
        (file.parent / "instances_val_new.json").write_bytes(file.read_bytes())
        with pytest.raises(DataError, match="several annotation files for val"):
            open_dataset(tmp_path / "c")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("val: images/val", "names: missing"),
            ("names: {0: a, 2: b}\nval: x", "the ids are not 0, 1, 2"),
            ("names: {a: b}\nval: x", "its keys are not numbers"),
            ("names: [a, a]\nval: x", "'a' occurs twice"),
            ("names: [a, ' ']\nval: x", "class 1 has no name"),
            ("names: 3\nval: x", "neither a list nor a table"),
            ("names: [a]\nval: {x: y}", "val: neither a folder"),
            ("names: [a\nval: x", r"data\.yaml:2: not YAML"),
            ("just text", "not a table with"),
        ],
    )
    def test_a_broken_description_names_its_field(self, tmp_path, text, message):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path)


class TestYoloLines:
    @pytest.mark.parametrize(
        ("line", "boxes", "kind"),
        [
            ("0 .5 .5 .5 .5", [(25, 12.5, 75, 37.5, 0)], None),
            ("2.0 0.5 0.5 1 1", [(0, 0, 100, 50, 2)], None),
            ("1 .1 .2 .5 .2 .3 .8", [(10, 10, 50, 40, 1)], None),  # a polygon of three points
            ("1 .1 .2 .5 .2 .5 .8 .1 .8", [(10, 10, 50, 40, 1)], None),
            ("0 .5 .5 .5 .5 .9", [], "not a number"),  # with a confidence
            ("0 .1 .2 .3", [], "not a number"),
            ("0 .1 .2 .3 .4 .5 .6 .7", [], "not a number"),
            ("car .5 .5 .5 .5", [], "not a number"),
            ("0,.5,.5,.5,.5", [], "not a number"),
            ("0 .5 .5 nan .5", [], "not a number"),
            ("0 .5 .5 inf .5", [], "not a number"),
            ("0 .1 .2 nan .2 .3 .8", [], "not a number"),
            ("3 .5 .5 .5 .5", [], "wrong class"),
            ("-1 .5 .5 .5 .5", [], "wrong class"),
            ("0.5 .5 .5 .5 .5", [], "wrong class"),
            ("nan .5 .5 .5 .5", [], "wrong class"),
            ("0 .5 .5 0 .5", [], "empty box"),
            ("0 .5 .5 -.5 .5", [], "empty box"),
            ("0 .1 .2 .5 .2 .3 .2", [], "empty box"),
            ("0 .5 .5 1.001 .5", [(0, 12.5, 100, 37.5, 0)], None),  # rounding
            ("0 .9 .5 .4 .5", [(70, 12.5, 100, 37.5, 0)], "box clipped"),
            ("0 1.5 .5 .5 .5", [], "box outside"),
            ("0 50 25 50 25", [], "box outside"),  # pixels: told in the problem
        ],
    )
    def test_a_line_is_a_box_or_a_problem(self, tmp_path, line, boxes, kind):
        data = open_dataset(make_yolo(tmp_path, f"\n{line}\n"))
        np.testing.assert_allclose(
            np.array(seen(data)["a.png"]).reshape(-1, 5), np.array(boxes).reshape(-1, 5), atol=1e-4
        )
        assert problems(data) == ([] if kind is None else [(kind, "a.txt", 2)])

    def test_pixels_in_the_place_of_shares_are_suspected(self, tmp_path):
        (problem,) = open_dataset(make_yolo(tmp_path, "0 50 25 50 25")).problems
        assert "pixels instead of shares" in str(problem)
        assert str(problem).startswith(f"{tmp_path}/labels/val/a.txt:1: box")

    def test_the_same_line_twice_counts_once(self, tmp_path):
        data = open_dataset(make_yolo(tmp_path, "0 .5 .5 .5 .5\n1 .5 .5 .5 .5\n0 .5 .50 .5 .5\n"))
        assert len(data.items[0].boxes) == 2
        assert problems(data) == [("duplicate", "a.txt", 3)]

    def test_polygons_are_kept_if_asked_for_and_give_the_area(self, tmp_path):
        make_yolo(tmp_path, "1 .1 .2 .5 .2 .3 1.8\n0 .5 .5 .5 .5\n")
        data = open_dataset(tmp_path, polygons=True)
        triangle, box = data.items[0].polygons
        np.testing.assert_allclose(triangle[0], [(10, 10), (50, 10), (30, 50)], atol=1e-4)  # cut to the picture
        assert box == ()
        assert data.items[0].areas.tolist() == pytest.approx([40 * 80 / 2, 50 * 25])
        assert open_dataset(tmp_path).items[0].polygons is None

    def test_missing_and_orphan_and_unreadable_labels_and_images(self, tmp_path):
        make_yolo(tmp_path, "0 .5 .5 .5 .5")
        images, labels = tmp_path / "images" / "val", tmp_path / "labels" / "val"
        picture(SIZE, []).save(images / "b.png")
        (images / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
        (images / "d.png").write_bytes(b"")
        picture(SIZE, []).save(images / "e.png")
        (labels / "e.txt").write_bytes(b"\xff\xfe0 .5")
        (labels / "f.txt").write_text("0 .5 .5 .5 .5")
        (labels / "classes.txt").write_text("car")
        (images / "._a.png").write_bytes(b"macOS")
        data = open_dataset(tmp_path)
        assert list(seen(data)) == ["a.png", "b.png"]
        assert len(data.items[1].boxes) == 0
        assert problems(data) == [
            ("missing label", "b.png", None),
            ("corrupt image", "c.png", None),
            ("corrupt image", "d.png", None),
            ("unreadable label", "e.txt", None),
            ("orphan label", "f.txt", None),
        ]

    def test_nothing_that_can_be_read_is_an_error_with_its_reason(self, tmp_path):
        make_yolo(tmp_path, "")
        (tmp_path / "images" / "val" / "a.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"nothing can be read, such as .*a\.png"):
            open_dataset(tmp_path)
        (tmp_path / "images" / "val" / "a.png").unlink()
        with pytest.raises(DataError, match="split 'val': no images there"):
            open_dataset(tmp_path)

    def test_a_link_that_leads_back_is_not_followed_for_ever(self, tmp_path):
        make_yolo(tmp_path, "0 .5 .5 .5 .5")
        os.symlink(tmp_path / "images" / "val", tmp_path / "images" / "val" / "loop")
        assert len(open_dataset(tmp_path).items) == 1


class TestCocoFiles:
    def test_crowds_and_areas_are_kept(self, tmp_path):
        boxes = [{"bbox": [0, 0, 10, 10], "area": 42.5}, {"bbox": [5, 5, 20, 20], "iscrowd": 1}]
        (item,) = open_dataset(make_coco(tmp_path, boxes)).items
        assert item.crowd.tolist() == [False, True]
        assert item.areas.tolist() == [42.5, 400]

    @pytest.mark.parametrize(
        ("annotation", "kind"),
        [
            ({"bbox": [0, 0, 0, 10]}, "empty box"),
            ({"bbox": [0, 0, -5, 10]}, "empty box"),
            ({"bbox": [0, 0, 10]}, "not a number"),
            ({"bbox": [0, 0, "10", 10]}, "not a number"),
            ({"bbox": None}, "not a number"),
            ({}, "not a number"),
            ({"bbox": [0, 0, 10, 1e300]}, "not a number"),
            ({"bbox": [500, 0, 10, 10]}, "box outside"),
            ({"bbox": [0, 0, 10, 10], "category_id": 4}, "wrong class"),
            ({"bbox": [0, 0, 10, 10], "category_id": "car"}, "wrong class"),
            ({"bbox": [0, 0, 10, 10], "image_id": 99}, "orphan label"),
            ({"bbox": [0, 0, 10, 10], "image_id": [1]}, "orphan label"),
        ],
    )
    def test_a_broken_annotation_is_named_and_left_out(self, tmp_path, annotation, kind):
        data = open_dataset(make_coco(tmp_path, [annotation, {"bbox": [1, 1, 5, 5]}]))
        assert seen(data) == {"a.png": [(1, 1, 6, 6, 0)]}
        (problem,) = data.problems
        assert problem.kind == kind
        assert "annotation 1: " in problem.what

    def test_strange_areas_fall_back_to_the_box(self, tmp_path):
        boxes = [{"bbox": [i, 0, 10, 10], "area": a} for i, a in enumerate((-1, "x", None, 10**400))]
        (item,) = open_dataset(make_coco(tmp_path, boxes)).items
        assert item.areas.tolist() == [100] * 4

    def test_missing_images_and_double_ids(self, tmp_path):
        file = make_coco(tmp_path, [{"bbox": [1, 1, 5, 5]}])
        content = json.loads(file.read_text())
        content["images"] += [
            {"id": 2, "file_name": "gone.png", "width": 1, "height": 1},
            {"id": 1, "file_name": "a.png", "width": 1, "height": 1},
            {"id": 3},
        ]
        file.write_text(json.dumps(content))
        data = open_dataset(file)
        assert len(data.items) == 1
        assert [p.kind for p in data.problems] == ["missing image", "duplicate", "missing image"]

    def test_outlines(self, tmp_path):
        boxes = [
            {"bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6], [1, 1, 2, 2, 1, 3]]},
            {"bbox": [2, 1, 5, 5], "segmentation": {"counts": "abc", "size": [50, 100]}},
            {"bbox": [3, 1, 5, 5]},
        ]
        (item,) = open_dataset(make_coco(tmp_path, boxes), polygons=True).items
        assert [len(parts) for parts in item.polygons] == [2, 0, 0]
        assert item.polygons[0][0].tolist() == [[1, 1], [6, 1], [6, 6]]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "not COCO annotations"),
            ('{"images": [], "annotations": [], "categories": []}', "categories: none"),
            ('{"images": [], "annotations": []}', "missing required field `categories`"),
            ('{"images": 3}', r"images"),
            ('{"images": [', "not COCO annotations"),
            ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
             "an id or a name that occurs twice"),
            ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no images there"),
        ],
    )  # fmt: skip
    def test_a_broken_file_is_one_error(self, tmp_path, text, message):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path / "x.json")


class TestVocFiles:
    def xml(self, body: str, size: str = "<size><width>100</width><height>50</height></size>") -> str:
        return f"<annotation>\n{size}\n{body}\n</annotation>"

    def thing(self, name="car", box=(1, 2, 30, 40), more=""):
        corners = "".join(
            f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True) if v is not None
        )
        return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"

    def test_pascal_itself_counts_pixels_from_one(self, tmp_path):
        make_voc(tmp_path, voc_xml(SIZE, [(1, 1, 100, 50, 0)], database="The VOC2007 Database"))
        assert seen(open_dataset(tmp_path)) == {"a.png": [(0, 0, 100, 50, 0)]}

    def test_difficult_objects_are_crowds_and_that_is_said(self, tmp_path):
        make_voc(tmp_path, self.xml(self.thing(more="<difficult>1</difficult>") + self.thing("bus")))
        data = open_dataset(tmp_path)
        assert data.items[0].crowd.tolist() == [True, False]
        assert data.notes == ["1 boxes are marked difficult: neither learnt nor counted"]

    def test_parts_of_an_object_are_not_its_box(self, tmp_path):
        part = "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part>"
        data = open_dataset(make_voc(tmp_path, self.xml(self.thing(more=part))))
        assert data.names == {0: "car"}
        assert seen(data) == {"a.png": [(1, 2, 30, 40, 0)]}

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            ("<object><name></name></object>", "wrong class"),
            ("<object><bndbox/></object>", "wrong class"),
            ("<object><name>car</name></object>", "not a number"),
            ("<object><name>car</name><bndbox><xmin>1</xmin></bndbox></object>", "not a number"),
            ("<object><name>car</name><bndbox><xmin>a</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
             "</object>", "not a number"),
            ("<object><name>car</name><bndbox><xmin>inf</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
             "</object>", "not a number"),
            ("<object><name>car</name><bndbox><xmin>5</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
             "</object>", "empty box"),
        ],
    )  # fmt: skip
    def test_a_broken_object_is_named_with_its_line(self, tmp_path, body, kind):
        data = open_dataset(make_voc(tmp_path, self.xml(f"{self.thing()}\n{body}")))
        assert seen(data)["a.png"] == [(1, 2, 30, 40, 0)]
        assert problems(data) == [(kind, "a.xml", 4)]

    @pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>",
                                      "<size><width>nan</width><height>1</height></size>"])  # fmt: skip
    def test_a_size_that_is_not_stated_comes_from_the_picture(self, tmp_path, size):
        data = open_dataset(make_voc(tmp_path, self.xml(self.thing(), size)))
        assert (data.items[0].width, data.items[0].height) == SIZE
        assert [p.kind for p in data.problems] == ["size"]

    def test_a_wrong_size_is_said(self, tmp_path):
        size = "<size><width>640</width><height>480</height></size>"
        data = open_dataset(make_voc(tmp_path, self.xml(self.thing(), size)))
        assert "states a picture of 640 x 480, but it has 100 x 50" in str(data.problems[0])

    @pytest.mark.parametrize(
        "text",
        [
            "<annotation><object>",
            "",
            "no xml",
            '<?xml version="1.0" encoding="nonsense"?><annotation/>',
            '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
        ],
    )
    def test_xml_that_cannot_be_read_leaves_its_picture_out(self, tmp_path, text):
        make_voc(tmp_path, text)
        picture(SIZE, []).save(tmp_path / "JPEGImages" / "b.png")
        (tmp_path / "Annotations" / "b.xml").write_text(self.xml(self.thing()))
        (tmp_path / "val.txt").write_text("a\nb\n")
        data = open_dataset(tmp_path)
        assert list(seen(data)) == ["b.png"]
        assert [p.kind for p in data.problems] == ["unreadable label"]

    def test_missing_xml_and_missing_image(self, tmp_path):
        make_voc(tmp_path, self.xml(self.thing()))
        picture(SIZE, []).save(tmp_path / "JPEGImages" / "b.png")
        (tmp_path / "Annotations" / "c.xml").write_text(self.xml(self.thing("bus")))
        (tmp_path / "val.txt").write_text("a\nb\nc\n")
        data = open_dataset(tmp_path)
        assert data.names == {0: "bus", 1: "car"}
        assert list(seen(data)) == ["a.png"]
        assert problems(data) == [("orphan label", "c.xml", None), ("missing label", "b.png", None)]


class TestPicturesThatLieOnTheirSide:
    """Stored 100 x 50, shown 50 x 100 (EXIF 6: the stored left side is the shown top)."""

    def turn(self, path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture(SIZE, []).save(path, exif=exif)

    def test_yolo_means_the_displayed_picture(self, tmp_path):
        make_yolo(tmp_path, "0 .2 .2 .4 .4")
        self.turn(tmp_path / "images" / "val" / "a.png", 6)
        (item,) = open_dataset(tmp_path).items
        assert (item.width, item.height) == (50, 100)
        np.testing.assert_allclose(item.boxes, [(0, 0, 20, 40)], atol=1e-4)

    @pytest.mark.parametrize(
        ("orientation", "box"),
        [(5, (2, 10, 12, 40)), (6, (38, 10, 48, 40)), (7, (38, 60, 48, 90)), (8, (2, 60, 12, 90))],
    )
    @pytest.mark.parametrize("kind", ["coco", "voc"])
    def test_a_file_that_states_the_stored_size_means_that(self, tmp_path, orientation, box, kind):
        stored = (10, 2, 40, 12)
        if kind == "coco":
            file = make_coco(tmp_path, [{"bbox": [10, 2, 30, 10]}])
            self.turn(tmp_path / "a.png", orientation)
        else:
            file = make_voc(tmp_path, voc_xml(SIZE, [(*stored, 0)]))
            self.turn(tmp_path / "JPEGImages" / "a.png", orientation)
        data = open_dataset(file)
        assert not data.problems
        assert data.items[0].boxes.tolist() == [list(box)]
        # The truth, by turning a picture with the box in it.
        drawn = np.zeros((50, 100), np.uint8)
        drawn[2:12, 10:40] = 255
        how = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
               8: Image.Transpose.ROTATE_90}[orientation]  # fmt: skip
        assert Image.fromarray(drawn).transpose(how).getbbox() == box

    def test_outlines_are_turned_too(self, tmp_path):
        file = make_coco(tmp_path, [{"bbox": [10, 2, 30, 10], "segmentation": [[10, 2, 40, 2, 40, 12]]}])
        self.turn(tmp_path / "a.png", 6)
        (item,) = open_dataset(file, polygons=True).items
        assert item.polygons[0][0].tolist() == [[48, 10], [48, 40], [38, 40]]

    def test_a_file_that_states_the_displayed_size_is_taken_as_it_is(self, tmp_path):
        file = make_coco(tmp_path, [{"bbox": [10, 2, 30, 10]}], width=50, height=100)
        self.turn(tmp_path / "a.png", 6)
        data = open_dataset(file)
        assert not data.problems
        assert data.items[0].boxes.tolist() == [[10, 2, 40, 12]]


def test_two_thousand_images_are_opened_in_two_seconds(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part / "val").mkdir(parents=True)
    picture((416, 416), []).save(tmp_path / "picture.jpg")
    content = (tmp_path / "picture.jpg").read_bytes()
    lines = "".join(yolo_line((416, 416), 10 * i, 10, 10 * i + 50, 80, i % 3) + "\n" for i in range(5))
    for number in range(2000):
        (tmp_path / "images" / "val" / f"{number}.jpg").write_bytes(content)
        (tmp_path / "labels" / "val" / f"{number}.txt").write_text(lines)
    (tmp_path / "data.yaml").write_text("val: images/val\nnames: [a, b, c]\n")
    began = time.process_time()
    data = open_dataset(tmp_path)
    elapsed = time.process_time() - began
    assert len(data.items) == 2000
    assert sum(len(item.boxes) for item in data.items) == 10_000
    assert elapsed < 2


@pytest.mark.skipif("YOLOV9_SHARED" not in os.environ, reason="YOLOV9_SHARED names no folder with real data sets")
@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "classes"),
    [
        ("highway", "train", 1704, 3853, 5),
        ("highway", "val", 478, 838, 5),
        ("vehicles", "train", 439, 838, 5),
        ("coco128", "val", 128, 929, 80),
        ("bccd", "train", 205, 2804, 3),
        ("bccd", "val", 87, 1137, 3),
    ],
)
def test_real_data_sets(name, split, images, boxes, classes):
    data = open_dataset(Path(os.environ["YOLOV9_SHARED"]) / "data" / name, split)
    assert (len(data.items), sum(len(i.boxes) for i in data.items), len(data.names)) == (images, boxes, classes)
    # Two boxes of bccd have no size.
    assert [p.kind for p in data.problems] == (["empty box"] if name == "bccd" else [])
    for item in data.items:
        assert (item.boxes >= 0).all()
        assert (item.boxes[:, 2:] <= (item.width, item.height)).all()
        assert (item.boxes[:, 2:] > item.boxes[:, :2]).all()


def test_a_folder_that_goes_while_it_is_read_is_left_out(tmp_path, monkeypatch):
    """Found by fuzzing: `train: /` ended at the first process that had ended meanwhile."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture(SIZE, []).save(tmp_path / name / "x.png")
    real = os.stat

    def stat(path, **options):
        if str(path).endswith("/a"):
            raise FileNotFoundError(path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert [p.parent.name for p in pictures(tmp_path)] == ["b"]


@pytest.mark.parametrize("entry", ["x" * 300, "~nobody-of-this-name/images", "a\0b"])
def test_names_that_no_file_system_takes_are_missing_and_no_crash(tmp_path, entry):
    (tmp_path / "data.yaml").write_text(f"val: {json.dumps(entry)}\nnames: [a]\n")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "data.yaml", "val")


def test_a_data_yaml_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "data.yaml").write_text("names: " + "[" * 5000)
    with pytest.raises(DataError, match="nested too deeply"):
        open_dataset(tmp_path / "data.yaml")


def test_numbers_beyond_any_picture_are_left_out(tmp_path):
    data = open_dataset(
        make_yolo(tmp_path, "0 0.5 0.5 0.2 1e300\n0 1e300 0 1e300 1 0 1\n0 0.5 0.5 0.2 0.2\n"), "val", polygons=True
    )
    assert len(data.items[0].boxes) == 1
    assert np.isfinite(data.items[0].areas).all()
    assert [kind for kind, *_ in problems(data)] == ["not a number"] * 2
