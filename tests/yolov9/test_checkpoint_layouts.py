"""Checkpoints of other implementations: the same weights, read from their layouts, give the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import r2_state, trained, write_r1, write_ultralytics
from torch import nn

from yolov9.checkpoints.errors import WeightsError
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector
from yolov9.weights import from_state_dict, load, open_checkpoint

NAMES = ["cat", "dog", "owl"]


def assert_same(loaded: Detector, model: Detector) -> None:
    """Every tensor, and so every output, equal."""
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert loaded.name == model.name
    assert list(ours) == list(theirs)
    different = [k for k in ours if not torch.equal(ours[k], theirs[k]) or ours[k].dtype != theirs[k].dtype]
    assert not different
    images = torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", ["yolov9-t", "gelan-t", "yolov9-s", "yolov9-m", "yolov9-c", "yolov9-e", "gelan-e"])
def test_r1_of_every_size_and_family(name: str, tmp_path: Path) -> None:
    model = trained(name, NAMES)
    write_r1(tmp_path / "w.pt", model)
    loaded = load(tmp_path / "w.pt")
    assert loaded.names == {0: "cat", 1: "dog", 2: "owl"}
    assert_same(loaded, model)
    assert open_checkpoint(tmp_path / "w.pt").layout == "r1"


@pytest.mark.parametrize("name", ["yolov9-t", "yolov9-s", "yolov9-m", "yolov9-c", "gelan-t", "gelan-s"])
def test_r2_of_every_size(name: str, tmp_path: Path) -> None:
    model = trained(name, 3)
    torch.save(r2_state(model), tmp_path / "w.pt")
    loaded = load(tmp_path / "w.pt")
    assert_same(loaded, model)
    assert open_checkpoint(tmp_path / "w.pt").layout == "r2"
    assert loaded.names == {0: "class0", 1: "class1", 2: "class2"}


def test_r2_numbers_its_layers_as_published() -> None:
    """The writer of these tests, held against keys that are known: heads at 22 and 30, or 22 and 38."""
    small, large = r2_state(trained("yolov9-t", 3)), r2_state(trained("yolov9-m", 3))
    assert {k.split(".")[0] for k in small if ".heads." in k} == {"22", "30"}
    assert {k.split(".")[0] for k in large if ".heads." in k} == {"22", "38"}
    assert len(small) == 1776
    for key in ("4.conv2.0.bottleneck.0.conv1.conv1.conv.weight", "3.conv.conv.weight", "23.conv5.bn.bias"):
        assert key in small
    assert "23.conv.bias" in large


@pytest.mark.parametrize("averaged", [False, True], ids=["model", "average"])
def test_lightning_checkpoints_prefer_the_average(averaged: bool, tmp_path: Path) -> None:
    model, average = trained("yolov9-t", 3, seed=1), trained("yolov9-t", 3, seed=2)
    state = {f"model.model.{k}": t for k, t in r2_state(model).items()}
    if averaged:
        state |= {f"ema.model.{k}": t for k, t in r2_state(average).items()}
    content = {
        "epoch": 12,
        "global_step": 300,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**state, "metric.seen": torch.zeros(1)},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]}],
    }
    torch.save(content, tmp_path / "last.ckpt")
    found = open_checkpoint(tmp_path / "last.ckpt")
    assert (found.layout, found.epoch, found.part) == ("r2-lightning", 12, "ema" if averaged else "state_dict")
    assert "1 tensors are no layers of the network and were left out: metric.seen" in found.notes[0]
    assert_same(load(tmp_path / "last.ckpt"), average if averaged else model)


def test_r2_whose_expectation_is_another_one_is_refused(tmp_path: Path) -> None:
    state = r2_state(trained("yolov9-t", 3))
    state["30.heads.1.anc2vec.anc2vec.weight"] = torch.arange(16.0).flip(0).reshape(1, 16, 1, 1, 1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: its 30\.heads\.1\.anc2vec\.anc2vec\.weight is not 0, 1, 2"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("change", [("30.", "31."), ("30.", "22x."), ("22.heads.0.class", "22.heads.0.mask")])
def test_r2_of_no_detector_is_refused(change: tuple[str, str], tmp_path: Path) -> None:
    state = {
        k.replace(*change) if k.startswith(change[0]) else k: t for k, t in r2_state(trained("yolov9-t", 3)).items()
    }
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: "):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("options", "towers"),
    [
        ({"class_width": 80, "box_groups": 1}, Towers(80, 1)),
        ({"box_groups": 1, "depthwise": True}, Towers(64, 1, True)),
    ],
    ids=["plain", "depthwise"],
)
def test_ultralytics(options: dict[str, Any], towers: Towers, tmp_path: Path) -> None:
    depthwise = options.pop("depthwise", False)
    model = trained("gelan-t", ["ball"], **options)
    if depthwise:
        model = with_depthwise_towers(model)
    write_ultralytics(tmp_path / "w.pt", model)
    loaded = load(tmp_path / "w.pt")
    assert loaded.head.towers == towers
    assert loaded.names == {0: "ball"}
    assert open_checkpoint(tmp_path / "w.pt").layout == "ultralytics"
    half = {k: t.half() if t.is_floating_point() else t for k, t in model.state_dict().items()}
    assert_same(loaded, from_state_dict(half, ["ball"]))


def with_depthwise_towers(model: Detector) -> Detector:
    torch.manual_seed(4)
    made = Detector(model.arch, model.names, Towers(None, 1, depthwise=True))
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.bias, std=0.1)
    return made.eval()


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    model = trained("yolov9-t", NAMES)
    write_r1(tmp_path / "w.pt", model, half=True)
    assert {str(t.dtype) for t in open_checkpoint(tmp_path / "w.pt").shapes.values()} == {
        "torch.float16",
        "torch.int64",
    }
    half = {k: t.half() if t.is_floating_point() else t for k, t in model.state_dict().items()}
    assert_same(load(tmp_path / "w.pt"), from_state_dict(half, NAMES))


def test_the_average_is_preferred_while_training_runs(tmp_path: Path) -> None:
    model, average = trained("yolov9-t", 3, seed=1), trained("yolov9-t", 3, seed=2)
    write_r1(tmp_path / "last.pt", model, ema=average, epoch=41)
    found = open_checkpoint(tmp_path / "last.pt")
    assert (found.part, found.epoch) == ("ema", 41)
    assert_same(load(tmp_path / "last.pt"), average)


def test_names_that_do_not_fit_the_head_are_not_used(tmp_path: Path) -> None:
    """Conversion scripts that people copy write the 80 names of COCO beside any head."""
    write_r1(tmp_path / "w.pt", trained("gelan-t", 3), names=[f"coco{i}" for i in range(80)])
    assert load(tmp_path / "w.pt").names == {0: "class0", 1: "class1", 2: "class2"}
    assert "names 80 classes where its head has 3" in open_checkpoint(tmp_path / "w.pt").notes[0]


@pytest.mark.parametrize("names", [None, {0: "a", 1: "b", 2: "c"}, {5: 7}, "abc"])
def test_names_may_be_a_list_or_a_table_or_nothing_of_use(names: Any, tmp_path: Path) -> None:
    write_r1(tmp_path / "w.pt", trained("gelan-t", ["a", "b", "c"]), names=names)
    wanted = (
        ["a", "b", "c"] if names is None or (isinstance(names, dict) and 0 in names) else ["class0", "class1", "class2"]
    )
    assert list(load(tmp_path / "w.pt").names.values()) == wanted


def test_another_activation_is_refused(tmp_path: Path) -> None:
    """yolov9-relu-converted.pt has the shapes of yolov9-c: it would load, and see nothing."""
    model = trained("gelan-t", 3)
    model.model[4].cv1.act = nn.ReLU()
    write_r1(tmp_path / "w.pt", model)
    with pytest.raises(WeightsError, match=r"its activation model\.4\.cv1\.act is ReLU, YOLOv9's is SiLU"):
        load(tmp_path / "w.pt")


def test_another_normalisation_is_refused(tmp_path: Path) -> None:
    model = trained("gelan-t", 3)
    model.model[4].cv1.bn.eps = 1e-5
    write_r1(tmp_path / "w.pt", model)
    with pytest.raises(WeightsError, match=r"model\.4\.cv1\.bn has eps 1e-05, YOLOv9's has 0\.001"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("models.yolo.TripleDDetect", "TripleDDetect: a triple-headed training model"),
        ("models.yolo.DSegment", "DSegment: no detector"),
        ("models.yolo.Panoptic", "Panoptic: no detector"),
    ],
)
def test_other_heads_are_refused_by_their_class(head: str, message: str, tmp_path: Path) -> None:
    write_r1(tmp_path / "w.pt", trained("gelan-t", 3), head=head)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "w.pt")


def test_a_triple_head_is_refused_by_its_keys(tmp_path: Path) -> None:
    state = dict(trained("yolov9-t", 3).state_dict())
    state |= {k.replace(".cv5.", ".cv7."): t for k, t in state.items() if ".cv5." in k}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="a triple-headed training model"):
        load(tmp_path / "w.pt")


def test_a_segmentation_head_is_refused_by_its_keys(tmp_path: Path) -> None:
    torch.save(
        {**trained("gelan-t", 3).state_dict(), "model.22.proto.cv1.conv.weight": torch.zeros(1)}, tmp_path / "w.pt"
    )
    with pytest.raises(WeightsError, match="a segmentation model, not a detector"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "ema_model.module."])
def test_wrappers_of_training_scripts_come_off(prefix: str, tmp_path: Path) -> None:
    model = trained("gelan-t", 3)
    torch.save({prefix + k: t for k, t in model.state_dict().items()}, tmp_path / "w.pt")
    assert_same(load(tmp_path / "w.pt"), model)
