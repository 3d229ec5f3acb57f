"""Samples, augmentation, batches: boxes stay on their objects, workers change nothing, unlabelled is not absent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolov9.data import DataError, open_dataset
from yolov9.training.augment import PAD, Example, example, plain
from yolov9.training.corpus import open_corpus
from yolov9.training.loader import EpochSampler, Examples, collate, make_loader
from yolov9.training.recipe import Augmentation, Recipe, RecipeError, fitting_recipe, read_recipe, recipe_names
from yolov9.training.samples import Pictures, Sample, samples_of

STILL = Augmentation(mosaic=0, mixup=0, copy_paste=0, hue=0, saturation=0, value=0, translate=0, scale=0, flip=0)
COLOURS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)
"""Of classes 0, 1, 2: a box is a filled rectangle of its class's colour on black."""


class Drawn:
    """A source of pictures that are what their boxes say."""

    def __init__(self, count: int, size: int, seed: int = 0, *, outlines: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.images, self.samples = [], []
        for _ in range(count):
            width, height = (int(v) for v in rng.integers(size // 2, size + 1, 2))
            image = np.zeros((height, width, 3), np.uint8)
            # One box in each half, so that none hides another.
            boxes, classes = [], []
            for left in (0, width // 2):
                x1, y1 = left + int(rng.integers(2, width // 8)), int(rng.integers(2, height // 4))
                x2, y2 = x1 + int(rng.integers(12, width // 4 + 2)), y1 + int(rng.integers(12, height // 2))
                cls = int(rng.integers(3))
                image[y1:y2, x1:x2] = COLOURS[cls]
                boxes.append([x1, y1, x2, y2])
                classes.append(cls)
            corners = [np.array([[a, b], [c, b], [c, d], [a, d]], np.float32) for a, b, c, d in boxes]
            self.images.append(image)
            self.samples.append(
                Sample(
                    Path("drawn"),
                    width,
                    height,
                    np.array(boxes, np.float32),
                    np.array(classes, np.int64),
                    tuple((part,) for part in corners) if outlines else ((), ()),
                    np.ones(3, np.bool_),
                )
            )
        self.partners = [np.arange(count)] * count

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]


def check(made: Example, size: int) -> None:
    """Every box is filled with its class's colour, and what has a colour lies in a box of its class."""
    assert made.image.shape == (size, size, 3)
    assert made.image.dtype == np.uint8
    nearest = np.abs(made.image[:, :, None].astype(int) - COLOURS).max(3)
    seen = np.where(nearest.min(2) < 60, nearest.argmin(2), -1)
    covered = np.zeros((size, size), bool)
    for (x1, y1, x2, y2), cls in zip(made.boxes, made.classes, strict=True):
        assert 0 <= x1 < x2 <= size
        assert 0 <= y1 < y2 <= size
        inner = seen[int(y1 + 2) : int(y2 - 1), int(x1 + 2) : int(x2 - 1)]
        assert (inner == cls).all(), (made.boxes, cls)
        covered[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = True
    assert ((seen >= 0) & ~covered).sum() <= 600  # slivers of objects that are hardly in view


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_boxes_stay_on_their_objects_in_mosaics(seed: int) -> None:
    how = STILL.model_copy(update={"mosaic": 1.0, "translate": 0.1, "scale": 0.5, "flip": 0.5, "flip_vertical": 0.5})
    check(example(Drawn(6, 128, seed), 0, 128, how, np.random.default_rng(seed)), 128)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_boxes_stay_on_their_objects_in_single_pictures(seed: int) -> None:
    how = STILL.model_copy(update={"translate": 0.2, "scale": 0.5, "flip": 0.5})
    check(example(Drawn(2, 128, seed), 1, 128, how, np.random.default_rng(seed)), 128)


def test_a_turned_box_covers_its_object_and_an_outline_makes_it_tight() -> None:
    how = STILL.model_copy(update={"rotate": 45.0})
    rng = [np.random.default_rng(4) for _ in range(2)]
    loose = example(Drawn(1, 128, 3), 0, 128, how, rng[0])
    tight = example(Drawn(1, 128, 3, outlines=True), 0, 128, how, rng[1])
    assert np.allclose(loose.boxes, tight.boxes, atol=0.1)  # the outline here is the box itself
    for (x1, y1, x2, y2), cls in zip(loose.boxes, loose.classes, strict=True):
        mask = np.abs(loose.image.astype(int) - COLOURS[cls]).max(2) < 40
        rows, columns = np.nonzero(mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1])
        assert np.ptp(columns) > 0.8 * (x2 - x1) - 3
        assert np.ptp(rows) > 0.8 * (y2 - y1) - 3


def test_nothing_happens_without_augmentation() -> None:
    source = Drawn(3, 96)
    still, centred = example(source, 2, 96, STILL, np.random.default_rng(0)), plain(source, 2, 96)
    sample = source.samples[2]
    assert np.array_equal(centred.boxes - sample.boxes, np.tile(centred.boxes[0] - sample.boxes[0], (2, 1)))
    assert np.abs(still.boxes - centred.boxes).max() <= 0.5
    left, top = (96 - sample.width) // 2, (96 - sample.height) // 2
    assert np.array_equal(centred.image[top : top + sample.height, left : left + sample.width], source[2])
    assert (centred.image[:, :left] == PAD).all()


def test_pasted_objects_have_boxes() -> None:
    how = STILL.model_copy(update={"mosaic": 1.0, "copy_paste": 1.0})
    source = Drawn(1, 128, 1, outlines=True)
    more = sum(len(example(source, 0, 128, how, np.random.default_rng(i)).boxes) for i in range(20))
    fewer = sum(
        len(example(source, 0, 128, how.model_copy(update={"copy_paste": 0.0}), np.random.default_rng(i)).boxes)
        for i in range(20)
    )
    assert more > fewer
    check(example(source, 0, 128, how, np.random.default_rng(3)), 128)


def test_mixup_has_the_boxes_of_both() -> None:
    how = STILL.model_copy(update={"mosaic": 1.0, "mixup": 1.0})
    source = Drawn(5, 128)
    both = example(source, 0, 128, how, np.random.default_rng(2))
    one = example(source, 0, 128, how.model_copy(update={"mixup": 0.0}), np.random.default_rng(2))
    assert len(both.boxes) > len(one.boxes)
    assert np.array_equal(both.boxes[: len(one.boxes)], one.boxes)


def test_colours_move_and_boxes_do_not() -> None:
    how = STILL.model_copy(update={"hue": 0.1, "saturation": 0.5, "value": 0.5})
    changed = example(Drawn(1, 96), 0, 96, how, np.random.default_rng(1))
    still = example(Drawn(1, 96), 0, 96, STILL, np.random.default_rng(1))
    assert np.array_equal(changed.boxes, still.boxes)
    assert (changed.image != still.image).any()


def write_yolo(folder: Path, names: list[str], count: int = 4, cls: int = 0) -> Path:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((40, 60, 3), i * 20, np.uint8)).save(folder / split / "images" / f"{i}.png")
            (folder / split / "labels" / f"{i}.txt").write_text(f"{cls} .5 .5 .5 .5\n")
    listed = ", ".join(names)
    (folder / "data.yaml").write_text(f"train: train/images\nval: val/images\nnames: [{listed}]\n")
    return folder


@pytest.mark.parametrize("cache", ["ram", "disk", "none"])
def test_every_cache_gives_the_same_pictures(tmp_path: Path, cache: str) -> None:
    data = open_dataset(write_yolo(tmp_path / "d", ["car"]), "train")
    steps: list[tuple[int, int]] = []
    pictures = Pictures(samples_of(data, 1), 96, cache, folder=tmp_path, step=lambda a, b: steps.append((a, b)))  # type: ignore[arg-type]
    assert len(pictures) == 4
    assert pictures[2].shape == (64, 96, 3)
    assert (pictures[2] == 40).all()
    assert np.allclose(pictures.samples[2].boxes, [[24, 16, 72, 48]])
    assert steps == ([] if cache == "none" else [(i + 1, 4) for i in range(4)])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]  # the disk cache has no name


def test_a_picture_that_cannot_be_decoded_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "d", ["car"])
    data = open_dataset(folder, "train")
    broken = data.items[1].image
    broken.write_bytes(broken.read_bytes()[:60])
    pictures = Pictures(samples_of(data, 1), 96)
    assert len(pictures) == 3
    assert (pictures[1] == 40).all()
    assert len(pictures.problems) == 1
    assert broken.name in pictures.problems[0]


def test_data_sets_are_joined_and_what_one_does_not_label_is_unknown_there(tmp_path: Path) -> None:
    a = write_yolo(tmp_path / "a", ["car", "person"])
    b = write_yolo(tmp_path / "b", ["Motor-Cycle", "ambulance", "Car"], cls=2)
    corpus = open_corpus([a, b], classes=["person", "car", "motorbike"], renamed={"motorcycle": "motorbike"})
    assert corpus.names == {0: "person", 1: "car", 2: "motorbike"}
    assert [s.classes.tolist() for s in corpus.samples] == [[1]] * 8
    assert [s.known.tolist() for s in corpus.samples] == [[True, True, False]] * 4 + [[False, True, True]] * 4
    assert corpus.validation is not None
    assert corpus.validation.path.resolve().is_relative_to(a.resolve())
    pictures = Pictures(corpus.samples, 64)
    how = STILL.model_copy(update={"mosaic": 1.0})
    for index in range(8):
        known = example(pictures, index, 64, how, np.random.default_rng(index)).known
        assert np.array_equal(known, pictures.samples[index].known)  # tiles come from where the same is labelled


def test_pictures_with_a_class_can_be_left_out(tmp_path: Path) -> None:
    a = write_yolo(tmp_path / "a", ["car", "ambulance"], cls=1)
    b = write_yolo(tmp_path / "b", ["car"])
    assert len(open_corpus([a, b], without=["Ambulance"]).samples) == 4


def test_data_without_an_object_to_learn_are_refused(tmp_path: Path) -> None:
    a = write_yolo(tmp_path / "a", ["car", "person"])
    with pytest.raises(DataError, match="none of its classes"):
        open_corpus([a], classes=["tree"])
    with pytest.raises(DataError, match="not a single object"):
        open_corpus([a], classes=["person"])


def test_epochs_are_shuffled_shared_and_entered_anywhere() -> None:
    def keys(epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> list[list[tuple[int, int]]]:
        sampler = EpochSampler(10, 3, 7, rank=rank, world=world)
        sampler.epoch, sampler.start = epoch, start
        batches = list(sampler)
        assert len(sampler) == len(batches)
        return batches

    flat = [i for batch in keys(0) for _, i in batch]
    assert sorted(set(flat)) == list(range(10))
    assert len(flat) == 12  # the last batch is filled up
    assert flat[10:] == flat[:2]
    assert keys(0) != keys(1)
    assert keys(1, 2) == keys(1)[2:]
    shares = [keys(3, rank=r, world=2) for r in (0, 1)]
    assert [len(s) for s in shares] == [2, 2]
    assert {i for s in shares for batch in s for _, i in batch} == set(range(10))


def test_examples_are_the_same_with_and_without_workers(tmp_path: Path) -> None:
    data = open_dataset(write_yolo(tmp_path / "d", ["car"], 9), "train")
    pictures = Pictures(samples_of(data, 1), 64)

    def batches(workers: int) -> list[np.ndarray]:
        sampler = EpochSampler(len(pictures), 4, 3)
        sampler.epoch = 5
        loader = make_loader(Examples(pictures, 64, Recipe().augmentation, 3, 100), sampler, workers)
        return [part.numpy() for batch in loader for part in batch]

    alone, helped = batches(0), batches(2)
    assert len(alone) == 15
    assert all(np.array_equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_mosaic_ends_where_the_recipe_says(tmp_path: Path) -> None:
    pictures = Pictures(samples_of(open_dataset(write_yolo(tmp_path / "d", ["car"], 9), "train"), 1), 64)
    examples = Examples(pictures, 64, STILL.model_copy(update={"mosaic": 1.0}), 0, 2)
    assert len({len(examples[1, i].boxes) for i in range(9)}) > 1
    assert {len(examples[2, i].boxes) for i in range(9)} == {1}


def test_a_batch_without_boxes_has_the_right_shapes() -> None:
    empty = dataclasses.replace(
        plain(Drawn(1, 64), 0, 64), boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int64)
    )
    batch = collate([empty, empty])
    assert batch.images.shape == (2, 64, 64, 3)
    assert batch.box.shape == (0, 4)
    assert len(batch.truth) == 0
    full = collate([empty, plain(Drawn(1, 64), 0, 64)])
    assert full.image.tolist() == [1, 1]


def test_a_recipe_is_checked_field_by_field(tmp_path: Path) -> None:
    assert Recipe().changed(["lr=.02", "mosaic=0.5", "optimizer=adamw"]).augmentation.mosaic == 0.5
    for setting, match in (("lr=0", "lr"), ("speed=3", "NAME of"), ("scale=1", "augmentation.scale"), ("lr", "NAME=")):
        with pytest.raises(RecipeError, match=match):
            Recipe().changed([setting])
    file = tmp_path / "r.yaml"
    file.write_text("lr: 0.5\naugmentation: {flip: 0}\n")
    assert read_recipe(file).augmentation.flip == 0
    for text, match in (("lr: [1]", "lr"), ("nothing: 1", "nothing"), ("[1]", "fields"), ("a: [", "YAML")):
        file.write_text(text)
        with pytest.raises(RecipeError, match=match):
            read_recipe(file)


def test_the_fingerprint_of_the_data_moves_with_a_box(tmp_path: Path) -> None:
    data = write_yolo(tmp_path / "d", ["car"])
    before = open_corpus([data]).fingerprint
    assert open_corpus([data]).fingerprint == before
    label = data / "train" / "labels" / "0.txt"
    label.write_text("0 .4 .4 .1 .1\n")
    assert open_corpus([data]).fingerprint != before


@pytest.mark.parametrize(
    ("pictures", "epochs", "name"),
    [(205, 60, "small"), (118_287, 500, "coco"), (118_287, 5, "small"), (6_400, 100, "coco")],
)
def test_long_trainings_take_the_published_recipe(pictures: int, epochs: int, name: str) -> None:
    assert fitting_recipe(pictures, epochs) == name


def test_packaged_recipes_are_valid_and_found_by_name() -> None:
    assert recipe_names() == ["coco", "small"]
    assert read_recipe("coco") == Recipe(), "the fields' defaults are the published recipe"
    assert read_recipe("small").optimizer == "adamw"
    with pytest.raises(RecipeError, match="nowhere: neither a file nor one of coco, small"):
        read_recipe("nowhere")
