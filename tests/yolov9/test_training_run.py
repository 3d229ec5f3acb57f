"""Schedules, averaged weights, states on the disk and whole runs: interrupted, killed, resumed, on two processes."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

import yolov9
from yolov9 import train as command
from yolov9.files import write_file
from yolov9.nn.model import Detector
from yolov9.training import loop as loop_module
from yolov9.training.loader import EpochSampler, Examples, make_loader
from yolov9.training.loop import Loop, Plan, TrainingError
from yolov9.training.loss import Losses
from yolov9.training.optimization import Average, Schedule, accumulation, make_optimizer
from yolov9.training.recipe import Recipe
from yolov9.training.samples import Pictures, samples_of
from yolov9.training.state import STATE, Progress, StateError, read_state, write_state
from yolov9.training.transfer import TransferError, freeze, train_mode, transfer

if TYPE_CHECKING:
    from conftest import Learnt


def test_the_warm_up_ramps_and_the_rate_decays_linearly() -> None:
    schedule = Schedule(Recipe(), batch=16, batches=50, epochs=10)
    assert schedule.warmup == 150
    model = yolov9.build("gelan-t", 2)
    optimizer = make_optimizer(model, Recipe(), 16)
    seen = {}
    for step in (0, 75, 150, 499):
        schedule.apply(optimizer, step)
        seen[step] = {g["kind"]: (g["lr"], g["momentum"]) for g in optimizer.param_groups}
    assert seen[0] == {"weight": (0, 0.8), "scale": (0, 0.8), "bias": (0.1, 0.8)}
    lr_75 = 0.01 * (0.01 + 0.99 * 0.9)  # epoch 1 of 10
    assert seen[75]["weight"] == pytest.approx((lr_75 / 2, 0.8685))
    assert seen[75]["bias"][0] == pytest.approx((0.1 + lr_75) / 2)
    assert seen[150]["bias"] == pytest.approx((0.01 * (0.01 + 0.99 * 0.7), 0.937))
    assert seen[499]["weight"][0] == pytest.approx(0.01 * (0.01 + 0.99 * 0.1))
    assert [schedule.accumulate(s) for s in (0, 75, 150, 400)] == [1, 2, 4, 4]
    cosine = Schedule(Recipe(schedule="cosine"), 16, 50, 10)
    assert [cosine.factor(e) for e in (0, 5, 10)] == pytest.approx([1, 0.505, 0.01])


def test_a_short_training_is_not_all_warm_up() -> None:
    assert Schedule(Recipe(), 16, 5, 4).warmup == 10
    assert Schedule(Recipe(warmup_epochs=0), 16, 5, 4).warmup == 0


def test_every_parameter_that_learns_is_in_one_group_and_only_convolutions_decay() -> None:
    model = yolov9.build("yolov9-t", 2)
    optimizer = make_optimizer(model, Recipe(), 16)
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == learning
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.requires_grad}
    assert decayed == convolutions
    # 4 batches of 24 an update: more than nominal, and so is the decay.
    assert accumulation(Recipe(), 24) == 3
    assert make_optimizer(model, Recipe(), 24).param_groups[0]["weight_decay"] == pytest.approx(5e-4 * 72 / 64)


def test_the_average_follows_its_formula() -> None:
    model = yolov9.build("gelan-t", 2)
    average = Average(model, 0.9, 2.0)
    p = next(model.parameters())
    before = p.detach().clone()
    with torch.no_grad():
        p.add_(1)
    average.update(model)
    decay = 0.9 * (1 - math.exp(-1 / 2))
    torch.testing.assert_close(next(average.model.parameters()), before + (1 - decay))
    assert not any(q.requires_grad for q in average.model.parameters())


@pytest.mark.parametrize(
    ("source", "target"), [("gelan-t", "yolov9-t"), ("yolov9-t", "gelan-t"), ("yolov9-t", "yolov9-t")]
)
def test_weights_of_the_same_classes_come_over_whole(source: str, target: str) -> None:
    a, b = yolov9.build(source, ["car", "person"]).eval(), yolov9.build(target, ["car", "person"]).eval()
    x = torch.rand(1, 3, 64, 64)
    transfer(a, b)
    torch.testing.assert_close(b(x), a(x), rtol=0, atol=0)


def test_classes_come_over_by_name() -> None:
    a = yolov9.build("gelan-t", ["person", "motor-bike", "car"])
    b = yolov9.build("gelan-t", ["car", "tree", "Motorbike"])
    with torch.no_grad():
        a.head.cv3[0][2].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    fresh = float(b.head.cv3[0][2].bias[1].detach())
    _, names = transfer(a, b)
    assert names == ["car", "Motorbike"]
    assert b.head.cv3[0][2].bias.tolist() == [3.0, fresh, 2.0]
    torch.testing.assert_close(b.head.cv3[0][2].weight[2], a.head.cv3[0][2].weight[1])


def test_frozen_layers_neither_learn_nor_gather_statistics() -> None:
    model = yolov9.build("gelan-t", 2)
    assert freeze(model, ["backbone", "spp"])[-1] == "spp"
    train_mode(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = make_optimizer(model, Recipe(), 16)
    raw = model(torch.rand(2, 3, 64, 64))
    sum(x.square().mean() for x in raw.main).backward()
    optimizer.step()
    changed = {int(k.split(".")[1]) for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert min(changed) == 12  # the first layer with weights after the SPP
    with pytest.raises(TransferError, match="nowhere"):
        freeze(model, ["nowhere"])


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "last.safetensors"
    write_file(target, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def _stepped(model: Detector, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model.train()
    sum(x.square().mean() for x in model(torch.rand(2, 3, 64, 64)).main).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_brings_everything_back(tmp_path: Path, optimizer: Any) -> None:
    recipe = Recipe(optimizer=optimizer)

    def make(seed: int) -> tuple[Detector, Average, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = yolov9.build("gelan-t", 2)
        return model, Average(model, 0.9, 10), make_optimizer(model, recipe, 16)

    model, average, optim = make(0)
    _stepped(model, optim, 1)
    average.update(model)
    write_state(tmp_path, model, average, optim, Progress(3, 4, 5, 0.5, 2, {"box": 1 / 3}, 7.5), '{"a": 1}')
    other, second, again = make(1)
    assert read_state(tmp_path, other, second, again, '{"a": 1}') == Progress(3, 4, 5, 0.5, 2, {"box": 1 / 3}, 7.5)
    assert second.updates == 1
    _stepped(model, optim, 2)
    _stepped(other, again, 2)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(StateError, match="other settings: a"):
        read_state(tmp_path, other, second, again, '{"a": 2}')
    (tmp_path / STATE).write_bytes(b"nonsense")
    with pytest.raises(StateError, match="not readable"):
        read_state(tmp_path, other, second, again, '{"a": 1}')


BY_HEART = [
    "--model", "yolov9-t", "--batch", "8", "--imgsz", "96", "--device", "cpu", "--workers", "0", "--recipe", "small",
    "--set", "nominal_batch=8", "--set", "lr=.002", "--set", "mosaic=0", "--set", "scale=0",
    "--set", "ema_ramp=20", "--set", "ema=.9",
]  # fmt: skip
"""With which some hundred epochs are enough for eight pictures of `draw_data`: the average must keep up with so few
updates, or what is judged is the network of fifty updates ago."""


def draw_data(folder: Path, count: int, size: int = 96) -> Path:
    """Bright squares and dark bars on noise, as YOLO txt; the same pictures to learn and to judge."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for i in range(count):
        image = rng.integers(90, 140, (size, size, 3), np.uint8)
        lines = []
        for cls, (w, h), colour in ((0, (24, 24), (250, 240, 60)), (1, (40, 14), (20, 30, 160))):
            left, top = int(rng.integers(0, size - w)), cls * size // 2 + int(rng.integers(0, size // 2 - h))
            image[top : top + h, left : left + w] = colour
            lines.append(f"{cls} {(left + w / 2) / size} {(top + h / 2) / size} {w / size} {h / size}")
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        (folder / "labels" / f"{i}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [square, bar]\n")
    return folder


def _loop(data: Path, folder: Path, epochs: int = 3, **recipe: Any) -> Loop:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    from yolov9.data import open_dataset

    pictures = Pictures(samples_of(open_dataset(data, "train"), 2), 64)
    settings = Recipe(**recipe)
    sampler = EpochSampler(len(pictures), 2, 0)
    examples = Examples(pictures, 64, settings.augmentation, 0, 2)
    loader = make_loader(examples, sampler, 0)
    plan = Plan(folder, epochs, 2, 64, settings, 0, identity="{}")
    return Loop(fabric, yolov9.build("yolov9-t", 2), examples, loader, sampler, plan, None, lambda line: None)


def results(folder: Path) -> list[dict[str, float]]:
    with (folder / "results.csv").open() as stream:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(stream)]


class _Killed(BaseException):
    pass


@pytest.fixture
def every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_EPOCH_SAVE_S", 0.0)


@pytest.mark.usefixtures("every_epoch_is_saved")
def test_a_run_that_was_killed_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_data(tmp_path / "d", 6)
    whole = _loop(data, tmp_path / "a")
    assert whole.run().epochs == 3

    learn, calls = Loop._learn, 0

    def dies(self: Loop, *args: Any) -> Losses:
        nonlocal calls
        calls += 1
        if calls == 6:  # the last batch of the second epoch
            raise _Killed
        return learn(self, *args)

    monkeypatch.setattr(Loop, "_learn", dies)
    with pytest.raises(_Killed):
        _loop(data, tmp_path / "b").run()
    monkeypatch.undo()
    resumed = _loop(data, tmp_path / "b")
    assert resumed.resume().epoch == 1
    resumed.run()
    assert results(tmp_path / "a") == results(tmp_path / "b")
    for x, y in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_sigterm_keeps_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_data(tmp_path / "d", 8)
    _loop(data, tmp_path / "a", nominal_batch=2).run()

    learn, calls = Loop._learn, 0

    def told(self: Loop, *args: Any) -> Losses:
        nonlocal calls
        calls += 1
        if calls == 6:  # the second of four batches of the second epoch
            signal.raise_signal(signal.SIGTERM)
        return learn(self, *args)

    monkeypatch.setattr(Loop, "_learn", told)
    outcome = _loop(data, tmp_path / "b", nominal_batch=2).run()
    assert outcome.interrupted
    assert outcome.epochs == 1
    monkeypatch.undo()
    resumed = _loop(data, tmp_path / "b", nominal_batch=2)
    assert (resumed.resume().epoch, resumed.resume().step) == (1, 2)
    resumed.run()
    assert results(tmp_path / "a") == results(tmp_path / "b")


def test_sigterm_ends_a_run_whose_epochs_are_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Loop._finish_epoch

    def told(self: Loop, *args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        finish(self, *args)

    monkeypatch.setattr(Loop, "_finish_epoch", told)
    outcome = _loop(draw_data(tmp_path / "d", 2), tmp_path / "a").run()
    assert outcome.interrupted
    assert outcome.epochs == 1


def test_a_gradient_that_is_no_number_ends_training(tmp_path: Path) -> None:
    loop = _loop(draw_data(tmp_path / "d", 4), tmp_path / "a")
    with torch.no_grad():
        next(loop._model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1: the gradient is not finite"):
        loop.run()
    assert not (tmp_path / "a" / STATE).exists()


def test_mixed_scales_move_boxes_with_the_picture(tmp_path: Path) -> None:
    loop = _loop(draw_data(tmp_path / "d", 4), tmp_path / "a", multi_scale=0.5)
    batch = next(iter(loop._loader))
    sizes = set()
    for step in range(20):
        images, truth = loop._prepared(batch, step)
        assert images.shape[2] % 32 == 0
        torch.testing.assert_close(truth.box, batch.box * images.shape[2] / 64)
        sizes.add(images.shape[2])
    assert sizes == {32, 64, 96}


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(draw_data(tmp_path / "d", 2))
    out = ["--out", str(tmp_path / "r"), "--device", "cpu"]
    for arguments, match in (
        (["--data", str(tmp_path / "none")], "no such file"),
        (["--data", data, "--imgsz", "100"], "100"),
        (["--data", data, "--model", "yolov9-x"], "yolov9-x"),
        (["--data", data, "--set", "lr=-1"], "lr"),
        (["--data", data, "--option", "auxiliary=magic"], "magic"),
        (["--data", data, "--weights", str(tmp_path / "no.pt")], "no.pt"),
        (["--data", data, "--freeze", "tail"], "tail"),
        (["--data", data, "--classes", "tree"], "none of its classes"),
    ):
        assert command.main([*arguments, *out]) == 2, arguments
        assert match in capsys.readouterr().err, arguments


@pytest.mark.slow
def test_eight_pictures_are_learnt_by_heart_and_the_bundle_is_ready(learnt: Learnt) -> None:
    """Within two minutes on two cores; then the run's folder holds everything that is promised."""
    out = learnt.out
    assert learnt.seconds < 120
    assert json.loads((out / "best.json").read_text())["figures"]["val/map50"] > 0.95
    assert {p.name for p in out.iterdir()} >= {
        "best.safetensors", "last.safetensors", "state.safetensors", "results.csv", "run.json", "val", "bundle",
    }  # fmt: skip
    assert yolov9.load(out / "bundle").names == {0: "square", 1: "bar"}
    manifest = json.loads((out / "bundle" / "model.json").read_text())
    assert (manifest["lineage"]["run"]["data"], manifest["lineage"]["run"]["model"]) == (["d"], "yolov9-t")
    assert str(out.parent) not in json.dumps(manifest), "bundles travel; paths of this machine do not"
    assert yolov9.load(out / "best.safetensors").name == "yolov9-t"


@pytest.mark.system
@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves(tmp_path: Path) -> None:
    """As a terminal or a container's end does it: the workers get it, too."""
    data = draw_data(tmp_path / "d", 40)
    arguments = [sys.executable, "-m", "yolov9.train", "--data", str(data), "--epochs", "50", "--batch", "2",
                 "--imgsz", "64", "--out", str(tmp_path / "r"), "--device", "cpu", "--workers", "2",
                 "--set", "nominal_batch=2"]  # fmt: skip
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "r" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    assert "--resume" in said


@pytest.mark.system
@pytest.mark.slow
def test_kill_9_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "d", 8)

    every_epoch = "import sys; from yolov9 import train; from yolov9.training import loop; loop._EPOCH_SAVE_S = 0; "

    def arguments(out: str) -> list[str]:
        return [sys.executable, "-c", every_epoch + "sys.exit(train.main())", "--data", str(data), "--epochs", "8",
                "--batch", "2", "--imgsz", "64", "--out", str(tmp_path / out), "--device", "cpu", "--workers", "0",
                "--val-every", "8"]  # fmt: skip

    subprocess.run(arguments("a"), check=True, capture_output=True, timeout=100)
    process = subprocess.Popen(arguments("b"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "b" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()  # some batch of a later epoch
    process.wait()
    assert 0 < len(results(tmp_path / "b")) < 8
    subprocess.run([*arguments("b"), "--resume"], check=True, capture_output=True, timeout=100)
    assert results(tmp_path / "a") == results(tmp_path / "b")
