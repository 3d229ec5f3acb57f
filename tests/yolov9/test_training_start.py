"""What a training starts from: classes that are known already, a batch that fits; and the pictures that show it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_training_run import draw_data

import yolov9
from yolov9.data import open_dataset
from yolov9.training.batch_size import batch_size, fitting
from yolov9.training.journal import RESULTS, Journal
from yolov9.training.loader import Examples
from yolov9.training.recipe import Augmentation
from yolov9.training.samples import Pictures, samples_of
from yolov9.training.sheets import draw_curves, draw_examples, draw_labels
from yolov9.training.transfer import TransferError, with_classes


@pytest.mark.parametrize("name", ["gelan-t", "yolov9-t"])
def test_other_classes_leave_all_else_as_it_was(name: str) -> None:
    model = yolov9.build(name, ["person", "motor-bike", "car"]).eval()
    x = torch.rand(1, 3, 64, 64)
    before = model(x)
    changed, known = with_classes(model, {0: "car", 1: "tree", 2: "Motorbike", 3: "person"})
    assert known == ["car", "Motorbike", "person"]
    after = changed(x)
    torch.testing.assert_close(after[:, [0, 1, 2, 3, 4, 6, 7]], before[:, [0, 1, 2, 3, 6, 5, 4]])
    fresh = yolov9.build(name, 4)
    for tower, wanted in zip(changed.head.cv3, fresh.head.cv3, strict=True):
        assert tower[-1].bias[1] == wanted[-1].bias[1]
    assert len(changed.train()(x).main) == 3
    assert yolov9.nn.cost.parameters(changed) == yolov9.nn.cost.parameters(fresh)


def test_the_same_classes_change_nothing_and_fused_weights_are_refused() -> None:
    model = yolov9.build("gelan-t", ["a", "b"])
    last = model.head.cv3[0][2]
    assert with_classes(model, {0: "a", 1: "b"})[0].head.cv3[0][2] is last
    with pytest.raises(TransferError, match="fused"):
        with_classes(model.fuse(), {0: "c"})


@pytest.mark.parametrize(
    ("free", "fixed", "each", "batch"),
    [(1000, 100, 20, 32), (1000, 0, 46.9, 8), (1000, 100, 100, 6), (10, 100, 100, 1), (1e9, 0, 1, 256)],
)
def test_a_batch_fits_three_quarters_of_memory(free: float, fixed: float, each: float, batch: int) -> None:
    assert fitting(free, lambda n: fixed + each * n) == batch


def test_without_a_gpu_the_batch_is_sixteen() -> None:
    said: list[str] = []
    assert batch_size(yolov9.build("gelan-t", 1), 64, torch.device("cpu"), "32-true", said.append) == 16
    assert said == ["batch: 16"]


def test_sheets_show_boxes_and_curves(tmp_path: Path) -> None:
    data = open_dataset(draw_data(tmp_path / "d", 5), "train")
    pictures = Pictures(samples_of(data, 2), 96)
    examples = Examples(pictures, 96, Augmentation(mosaic=0, mixup=0), 0, 0)
    sheet = Image.open(draw_examples(examples, data.names, 0, tmp_path / "examples.png"))
    assert sheet.size == (1280, 1280)
    assert sheet.getpixel((1270, 1270)) == (114, 114, 114)  # five of sixteen places are taken
    assert len(set(sheet.crop((0, 0, 320, 320)).convert("L").tobytes())) > 20
    assert Image.open(draw_labels(pictures.samples, data.names, tmp_path / "labels.png")).size == (1800, 600)
    assert draw_curves(tmp_path / RESULTS, tmp_path / "curves.png") is None
    journal = Journal(tmp_path)
    journal.add(1, {"train/box": 2.0, "lr": 0.1})
    journal.add(2, {"train/box": 1.0, "lr": 0.1, "val/map": 0.5})
    journal.close()
    assert draw_curves(tmp_path / RESULTS, tmp_path / "curves.png") == tmp_path / "curves.png"
    assert Image.open(tmp_path / "curves.png").size == (1800, 540)
