"""Checkpoints in and out: what is inferred, what is refused, and that nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import yolov9
from yolov9.checkpoints import matching
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector, build
from yolov9.packaged import ModelNotFound
from yolov9.weights import WeightsError, coco_names, from_state_dict, load, save, to_bytes

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Detector:
    """A model whose every tensor differs from a new one's."""
    torch.manual_seed(3)
    made = build("yolov9-t", ["cat", "dog"])
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_var is not None
            assert m.num_batches_tracked is not None
            nn.init.normal_(m.bias, std=0.1)
            m.running_var.uniform_(0.5, 1.5)
            m.num_batches_tracked.fill_(7)
    return made.eval()


@pytest.fixture
def state(model: Detector) -> State:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def copy_of(model: Detector) -> Detector:
    return from_state_dict(model.state_dict(), model.names)


CHANGES: list[Callable[[Detector], Detector]] = [
    lambda m: m,
    lambda m: m.prune_auxiliary(),
    lambda m: m.fuse(),
    lambda m: m.prune_auxiliary().fuse(),
]


@pytest.mark.parametrize("change", CHANGES, ids=["training", "pruned", "fused", "pruned-fused"])
def test_a_saved_model_comes_back_exactly(
    model: Detector, tmp_path: Path, change: Callable[[Detector], Detector]
) -> None:
    before = change(copy_of(model))
    save(before, tmp_path / "w.safetensors")
    after = load(tmp_path / "w.safetensors")
    assert (after.name, after.names, after.fused, after.training) == (
        before.name,
        {0: "cat", 1: "dog"},
        before.fused,
        False,
    )
    ours, theirs = before.state_dict(), after.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(before(images), after(images))


def test_the_header_says_what_the_file_is(model: Detector, tmp_path: Path) -> None:
    save(model, tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "name": "yolov9-t",
            "names": '{"0": "cat", "1": "dog"}',
            "class_width": "64",
            "box_groups": "4",
        }


def test_a_trained_model_goes_on_training(model: Detector) -> None:
    """Loading leaves ordinary parameters: fp32, with gradients but for the frozen weights."""
    loaded = copy_of(model)
    assert {k for k, p in loaded.named_parameters() if not p.requires_grad} == {
        "model.29.dfl.conv.weight",
        "model.29.dfl2.conv.weight",
    }
    assert not any(t.is_meta for t in loaded.state_dict().values())
    loaded.model[0].conv.weight.data.zero_()
    assert model.model[0].conv.weight.abs().sum() > 0, "the state dict's tensors are copied"


@pytest.mark.parametrize("wrap", ["", "model", "state_dict", "ema"])
def test_torch_files_with_a_plain_state_dict_load(state: State, tmp_path: Path, wrap: str) -> None:
    torch.save({wrap: state, "epoch": 3, "names": ["a", "b"]} if wrap else state, tmp_path / "w.pt")
    loaded = load(tmp_path / "w.pt")
    assert loaded.names == ({0: "a", 1: "b"} if wrap else {0: "class0", 1: "class1"})
    assert torch.equal(loaded.state_dict()["model.29.cv5.2.2.bias"], state["model.29.cv5.2.2.bias"])


def test_half_precision_and_missing_counters_are_made_up_for(state: State) -> None:
    small = {k: t.half() for k, t in state.items() if not k.endswith("num_batches_tracked")}
    loaded = from_state_dict(small)
    assert {t.dtype for k, t in loaded.state_dict().items() if "num_batches" not in k} == {torch.float32}
    assert loaded.state_dict()["model.0.bn.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", [f"{family}-{size}" for family in ("gelan", "yolov9") for size in "tsmce"])
def test_the_architecture_is_found_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        state = build(name, 3).state_dict()
    found = matching.match(state)
    assert (found.name, len(found.names)) == (name, 3)
    assert {key: t.shape for key, t in found.state_dict().items()} == {key: t.shape for key, t in state.items()}


@pytest.mark.parametrize(("width", "groups"), [(64, 4), (80, 1), (128, 4)])
def test_tower_width_and_groups_are_read_from_the_shapes(width: int, groups: int) -> None:
    made = build("gelan-t", 5, class_width=width, box_groups=groups).eval()
    loaded = from_state_dict(made.state_dict())
    assert loaded.head.towers == Towers(width, groups)
    assert len(loaded.names) == 5
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), made(images))


def test_eighty_unnamed_classes_are_those_of_coco() -> None:
    names = from_state_dict(build("gelan-t", 80).state_dict()).names
    assert len(names) == len(set(names.values())) == 80
    assert (names[0], names[2], names[39], names[79]) == ("person", "car", "bottle", "toothbrush")
    assert list(names.values()) == coco_names()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (["one"], "names 1 classes, but its head has 2"),
        ({"0": "a", "2": "b"}, "ids want"),
        (7, "names"),
        ({"x": "a"}, "x"),
    ],
)
def test_a_wrong_table_of_names_is_refused(state: State, table: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        from_state_dict(state, table)


def test_names_in_the_header_must_be_json(state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", {"names": "{0: 'a'}"})
    with pytest.raises(WeightsError, match=r"w\.safetensors: its class names are not JSON"):
        load(tmp_path / "w.safetensors")


def test_keys_that_do_not_fit_are_counted_and_named(state: State, tmp_path: Path) -> None:
    del state["model.1.bn.weight"], state["model.2.cv1.conv.weight"]
    state["model.3.extra"] = torch.zeros(1)
    state["model.12.cv4.conv.weight"] = torch.zeros(7, 7, 1, 1)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "w.safetensors")
    text = str(caught.value)
    assert f"{tmp_path}/w.safetensors: fits no architecture; nearest is yolov9-t" in text
    assert "2 missing: model.1.bn.weight, model.2.cv1.conv.weight" in text
    assert "1 unexpected: model.3.extra" in text
    assert "1 of another shape: model.12.cv4.conv.weight (7, 7, 1, 1) instead of (96, 192, 1, 1)" in text


def test_a_head_without_classes_is_refused(state: State) -> None:
    for level in range(3):
        state[f"model.29.cv5.{level}.2.weight"] = torch.zeros(0, 64, 1, 1)
    with pytest.raises(WeightsError, match="classes"):
        from_state_dict(state)


def test_keys_that_no_network_has_are_named_without_harm(state: State) -> None:
    state["model." + "9" * 5000 + ".weight"] = state["model.\x1b[2J.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"2 unexpected: model\.999.*\.\.\., model\.\?\[2J\.weight$"):
        from_state_dict(state)


def test_an_error_names_some_keys_only(state: State) -> None:
    few = {k: t for k, t in state.items() if not k.startswith("model.15.")}
    with pytest.raises(WeightsError, match=r"missing: model\.15\.\S+, model\.15\.\S+, .*, \.\.\.$") as caught:
        from_state_dict(few)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda k: k.removeprefix("model."), "no detection head in the reference layout"),
        (lambda k: k.replace("model.29.", "model.50."), "no architecture has 51 layers with an auxiliary branch"),
        (lambda k: k.replace("cv4.0.1.conv", "cv4.0.1.other"), r"head model\.29 lacks tensors"),
    ],
)
def test_other_layouts_are_refused(state: State, rename: Callable[[str], str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        from_state_dict({rename(k): t for k, t in state.items()})


class Trap:
    """Unpickling it writes a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_objects_are_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    torch.save({"model": Trap(tmp_path / "trapped")}, tmp_path / "zip.pt", pickle_protocol=protocol)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"model": Trap(tmp_path / "trapped")}, protocol))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(WeightsError, match=name):
            load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"module\.pt: no detection head in a known layout"):
        load(tmp_path / "module.pt")


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut", b"\x80\x02 cut", b"\xff" * 64])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.bin: "):
        load(tmp_path / "w.bin")


def test_a_torch_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no model and no state dict"):
        load(tmp_path / "w.pt")


def test_a_bundle_folder_loads_by_its_weights(model: Detector, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(to_bytes(model))
    assert load(tmp_path).name == "yolov9-t"


def test_a_name_that_is_nothing_says_what_there_is() -> None:
    with pytest.raises(ModelNotFound, match="nowhere-t"):
        yolov9.load("nowhere-t")


def test_writing_is_all_or_nothing(model: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"what was there")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(model, path)
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["w.safetensors"]
    with pytest.raises(WeightsError, match=r"ends in \.safetensors"):
        save(model, tmp_path / "w.pt")


SHARED = os.environ.get("YOLOV9_SHARED")


@pytest.mark.skipif(not SHARED, reason="needs YOLOV9_SHARED, a folder with weights/gelan-t-coco.safetensors and clips/")
def test_a_real_checkpoint_finds_people_and_cars() -> None:
    import av

    loaded = load(Path(SHARED or "", "weights/gelan-t-coco.safetensors"))
    assert (loaded.name, loaded.head.towers, loaded.names[0]) == ("gelan-t", Towers(80, 1), "person")
    for clip, number, wanted in (("people-indoor.mp4", 300, "person"), ("street.mp4", 40, "car")):
        with av.open(str(Path(SHARED or "", "clips", clip))) as container:
            frame = next(f for i, f in enumerate(container.decode(video=0)) if i == number)
        best = loaded.detect(frame.to_ndarray(format="rgb24"))[0]
        assert loaded.names[int(best[5])] == wanted
        assert best[4] > 0.85
