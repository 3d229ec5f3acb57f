"""Files of pruned models: they come back exactly, and a table of widths from a stranger is believed in nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from prune_models import narrow, small, stirred
from test_prune_channels import at_random

from yolov9.engines import choose
from yolov9.export import export
from yolov9.nn.architecture import architecture
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector, build
from yolov9.nn.widths import table, widths
from yolov9.pruning.spaces import network
from yolov9.pruning.surgery import remove
from yolov9.training.assigner import Truth
from yolov9.training.loss import DetectionLoss
from yolov9.training.transfer import with_classes
from yolov9.weights import WeightsError, load, save

Table = dict[str, Any]


def pruned(model: Detector, share: float = 0.4) -> Detector:
    net = network(model, 64, 64)
    remove(model, net.channels, at_random(net, share).gone)
    return model


@pytest.fixture(scope="module")
def training() -> Detector:
    """A yolov9-t with both branches, of two fifths less channels."""
    return pruned(stirred(build("yolov9-t", ["cat", "dog"])))


@pytest.fixture(scope="module")
def file(training: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pruned") / "p.safetensors"
    save(training, path)
    return path


def outputs(model: Detector) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = copy.deepcopy(model).eval()(torch.rand(1, 3, 64, 64, generator=torch.Generator()))
    return out


def assert_comes_back(model: Detector, path: Path) -> None:
    save(model, path)
    after = load(path)
    assert table(after) == table(model)
    assert widths(after)  # it says that it is pruned
    assert (after.name, after.names, after.fused) == (model.name, model.names, model.fused)
    assert torch.equal(outputs(model), outputs(after))


CHANGES: dict[str, Callable[[Detector], Detector]] = {
    "training": lambda m: m,
    "fused": lambda m: m.fuse(),
    "inference": lambda m: m.prune_auxiliary(),
    "inference-fused": lambda m: m.prune_auxiliary().fuse(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_pruned_model_comes_back_exactly(training: Detector, tmp_path: Path, change: str) -> None:
    assert_comes_back(CHANGES[change](copy.deepcopy(training)), tmp_path / "w.safetensors")


OTHERS: dict[str, Callable[[], Detector]] = {
    "own architecture": lambda: small("gelan-t", computation="res2", main="columns"),
    "another numbering": lambda: small("yolov9-m").prune_auxiliary(),
    "towers of Ultralytics": lambda: stirred(
        Detector(narrow(architecture("gelan-t"), 2), {0: "a"}, Towers(80, box_groups=1, depthwise=True))
    ),
    "towers wider than all else": lambda: stirred(
        Detector(narrow(architecture("gelan-t"), 4), {0: "a"}, Towers(class_width=512))
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_so_does_one_of_another_kind(tmp_path: Path, other: str) -> None:
    assert_comes_back(pruned(OTHERS[other]()), tmp_path / "w.safetensors")


def test_removing_the_auxiliary_branch_and_fusing_change_nothing(training: Detector) -> None:
    slim = copy.deepcopy(training).prune_auxiliary()
    assert (slim.name, slim.head.dual) == ("gelan-t", False)
    assert torch.equal(outputs(training), outputs(slim))
    fused = outputs(slim.fuse())
    assert slim.fused
    assert (outputs(training) - fused).abs().max() < 1e-3


def test_a_whole_model_has_no_table(tmp_path: Path) -> None:
    whole = small("gelan-t")
    assert widths(whole) == {}
    save(whole, tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as f:  # type: ignore[no-untyped-call]
        assert "widths" not in f.metadata()


def test_it_is_exported_and_served(training: Detector, tmp_path: Path) -> None:
    bundle = export(training, tmp_path / "bundle", input_size=64)  # checked against the model
    assert table(load(bundle.path)) == table(copy.deepcopy(training).prune_auxiliary())
    picture = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator())
    with torch.inference_mode():
        wanted = copy.deepcopy(training).eval()(picture.permute(2, 0, 1)[None] / 255).numpy()
    engine = choose(bundle, "openvino", "fp32").engine
    try:
        got = engine.infer([picture.numpy()])
        assert np.abs(got[:, 4:] - wanted[:, 4:]).max() < 1e-3
        assert np.abs(got[:, :4] - wanted[:, :4]).max() < 0.05
    finally:
        engine.close()


def test_it_learns_with_both_branches(training: Detector) -> None:
    """Steps with the loss of PGI: every weight that is left gets a gradient, and the loss falls."""
    model = copy.deepcopy(training).train()
    loss = DetectionLoss(model.strides)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator())
    boxes = torch.tensor([[8.0, 8, 40, 48], [20, 4, 60, 44]])
    truth = Truth(torch.tensor([0, 1]), torch.tensor([0, 1]), boxes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        losses = loss(model(images), truth)
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert losses.auxiliary > 0
        seen.append(losses.total.item())
    assert seen[-1] < seen[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_it_is_trained_on_for_other_classes(training: Detector, tmp_path: Path) -> None:
    model, known = with_classes(copy.deepcopy(training), {0: "bird", 1: "cat", 2: "dog"})
    assert known == ["cat", "dog"]
    assert model.train()(torch.rand(1, 3, 64, 64)).auxiliary[0].shape[1] == 64 + 3
    assert_comes_back(model.eval(), tmp_path / "w.safetensors")


# --- tables that lie


def rewritten(file: Path, target: Path, change: Callable[[Table], Any]) -> Path:
    with safetensors.safe_open(file, "pt") as f:  # type: ignore[no-untyped-call]
        metadata = f.metadata()
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    changed = change(json.loads(metadata["widths"]))
    metadata["widths"] = changed if isinstance(changed, str) else json.dumps(changed)
    safetensors.torch.save_file(tensors, target, metadata)
    return target


def _set(part: str, name: str, value: Any) -> Callable[[Table], Table]:
    return lambda t: t | {part: t[part] | {name: value}}


CONV = "model.4.cv1.conv"
LIES: dict[str, tuple[Callable[[Table], Any], str]] = {
    "no JSON": (lambda t: "{", "table of widths is not JSON"),
    "deep JSON": (lambda t: "[" * 100_000, "table of widths is not JSON"),
    "a huge number": (lambda t: '{"convolutions": ' + "9" * 10_000 + "}", "table of widths is not JSON"),
    "a list": (lambda t: [], "wants the parts convolutions, cuts, scales, towers"),
    "a part too few": (lambda t: {k: v for k, v in t.items() if k != "cuts"}, "wants the parts"),
    "a part too many": (lambda t: t | {"more": {}}, "wants the parts"),
    "no table": (lambda t: t | {"cuts": [1]}, "cuts: wants a table of layers"),
    "no towers": (lambda t: t | {"towers": []}, "towers: wants"),
    "strange towers": (lambda t: t | {"towers": [["80", 4, False]]}, "towers: wants"),
    "wide towers": (lambda t: t | {"towers": [[1 << 40, 4, False]]}, "towers: wants"),
    "groups that do not divide": (lambda t: t | {"towers": [[80, 7, False]]}, "box_groups 7 does not divide"),
    "a layer too many": (_set("convolutions", "model.99.conv", [8, 8]), "names a layer that is none: 'model.99.conv'"),
    "a layer too few": (
        lambda t: t | {"convolutions": {k: v for k, v in t["convolutions"].items() if k != CONV}},
        f"convolutions: lacks '{CONV}'",
    ),
    "three widths": (_set("convolutions", CONV, [8, 8, 8]), f"{CONV}: wants a list of 2 whole numbers"),
    "a fraction": (_set("convolutions", CONV, [8.0, 8]), f"{CONV}: wants a list of 2 whole numbers"),
    "a truth value": (_set("convolutions", CONV, [True, 8]), f"{CONV}: wants a list of 2 whole numbers"),
    "none": (_set("convolutions", CONV, [0, 8]), f"{CONV}: the widths \\[0, 8\\] are not between 1 and"),
    "less than none": (_set("cuts", "model.4", [-8, 72]), "model.4: the widths \\[-8, 72\\] are not between"),
    "too many": (_set("convolutions", CONV, [1 << 60, 8]), f"{CONV}: the widths .* are not between 1 and"),
    "a group that is cut": (_set("convolutions", "model.29.cv4.0.1.conv", [33, 32]), "4 groups do not divide"),
    "a reader of less": (_set("convolutions", CONV, [8, 8]), "widths that do not fit each other"),
    "cuts that do not add up": (_set("cuts", "model.4", [1, 1]), "widths that do not fit each other"),
    "sides of other bins": (_set("convolutions", "model.29.cv4.0.2", [32, 32]), "the head gives 32 channels"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_does_not_fit_is_refused(file: Path, tmp_path: Path, lie: str) -> None:
    change, words = LIES[lie]
    path = rewritten(file, tmp_path / "lie.safetensors", change)
    with pytest.raises(WeightsError, match=words) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_table_that_fits_itself_but_not_the_tensors_is_refused(file: Path, tmp_path: Path) -> None:
    whole = table(build("yolov9-t", 2))
    path = rewritten(file, tmp_path / "lie.safetensors", lambda t: whole)
    with pytest.raises(WeightsError, match=r"tensors are [0-9]+ of another shape: model"):
        load(path)


def test_a_table_for_an_architecture_that_is_none_is_refused(file: Path, tmp_path: Path) -> None:
    with safetensors.safe_open(file, "pt") as f:  # type: ignore[no-untyped-call]
        metadata, tensors = f.metadata(), {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, tmp_path / "lie.safetensors", metadata | {"name": "gelan-x"})
    with pytest.raises(WeightsError, match="gelan-x"):
        load(tmp_path / "lie.safetensors")
