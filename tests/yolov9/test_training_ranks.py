"""Two processes learn what one does that accumulates the same micro-batches; one without a box holds up nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from test_training_run import draw_data

import yolov9
from yolov9.data import open_dataset
from yolov9.training.loader import EpochSampler, Examples, make_loader
from yolov9.training.loop import Loop, Plan
from yolov9.training.loss import DetectionLoss, Gains
from yolov9.training.optimization import Schedule, make_optimizer
from yolov9.training.recipe import Recipe
from yolov9.training.samples import Pictures, samples_of
from yolov9.training.transfer import train_mode

BATCH, SIZE, EPOCHS = 2, 64, 1
RECIPE = Recipe(nominal_batch=4, warmup_epochs=0)


def examples_of(data: Path) -> Examples:
    pictures = Pictures(samples_of(open_dataset(data, "train"), 2), SIZE)
    return Examples(pictures, SIZE, RECIPE.augmentation, 0, EPOCHS)


def one_rank_of(data: Path, out: Path) -> None:
    """Runs as one of torchrun's processes; rank 0 writes losses and weights."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    torch.manual_seed(0)
    examples = examples_of(data)
    sampler = EpochSampler(len(examples), BATCH, 0, rank=fabric.global_rank, world=fabric.world_size)
    plan = Plan(out, EPOCHS, BATCH, SIZE, RECIPE, 0, identity="{}")
    loop = Loop(fabric, yolov9.build("yolov9-t", 2), examples, make_loader(examples, sampler, 0), sampler, plan, None,
                lambda line: None)  # fmt: skip
    loop.run()
    weights = [p.detach().double() for p in loop._model.parameters() if p.requires_grad]
    if fabric.global_rank == 0:
        (out / "sums.json").write_text(json.dumps([float(w.abs().sum()) for w in weights]))


def accumulated(data: Path) -> tuple[list[list[float]], list[float]]:
    """The same in one process, spelt out: two micro-batches an update, normalised by the mean of their target sums.
    -> (box, cls, dfl, auxiliary) of each epoch; sums of each weight."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the ranks: random weights magnify another order of sums
    try:
        return _accumulated(data)
    finally:
        torch.set_num_threads(before)


def _accumulated(data: Path) -> tuple[list[list[float]], list[float]]:
    torch.manual_seed(0)
    model = yolov9.build("yolov9-t", 2)
    examples = examples_of(data)
    optimizer = make_optimizer(model, RECIPE, 2 * BATCH)
    samplers = [EpochSampler(len(examples), BATCH, 0, rank=rank, world=2) for rank in (0, 1)]
    schedule = Schedule(RECIPE, 2 * BATCH, samplers[0].batches, EPOCHS)
    epochs = []
    for epoch in range(EPOCHS):
        figures = []
        for sampler in samplers:
            sampler.epoch = epoch
        train_mode(model)
        for step, pair in enumerate(zip(*(make_loader(examples, s, 0) for s in samplers), strict=True)):
            schedule.apply(optimizer, epoch * samplers[0].batches + step)
            sums: list[list[torch.Tensor]] = []
            outputs = [model(b.images.permute(0, 3, 1, 2).float() / 255) for b in pair]
            for batch, output in zip(pair, outputs, strict=True):
                seen: list[torch.Tensor] = []
                DetectionLoss(model.strides, Gains(), reduce=lambda t, s=seen: s.append(t) or t)(output, batch.truth)
                sums.append(seen)
            means = [torch.stack(pair_of_sums).mean() for pair_of_sums in zip(*sums, strict=True)]
            for batch, output in zip(pair, outputs, strict=True):
                branch = iter(means)
                losses = DetectionLoss(model.strides, Gains(), reduce=lambda _, b=branch: next(b))(output, batch.truth)
                losses.total.backward()
                figures.append([float(v) for v in (losses.box, losses.cls, losses.dfl, losses.auxiliary)])
            torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
            optimizer.step()
            optimizer.zero_grad()
        epochs.append(np.mean(figures, axis=0).tolist())
    return epochs, [float(p.detach().double().abs().sum()) for p in model.parameters() if p.requires_grad]


@pytest.mark.system
@pytest.mark.parametrize("boxless", [False, True])
def test_two_ranks_are_one_that_accumulates(tmp_path: Path, boxless: bool) -> None:
    data = draw_data(tmp_path / "d", 8)
    if boxless:
        for label in list((data / "labels").iterdir())[1:]:
            label.write_text("")  # seven of eight: in each step at least one rank has no box
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, data, out],
        check=True, timeout=100,
    )  # fmt: skip
    epochs, weights = accumulated(data)
    lines = [line.split(",") for line in (out / "results.csv").read_text().splitlines()]
    columns = [lines[0].index(f"train/{name}") for name in ("box", "cls", "dfl", "auxiliary")]
    found = [[float(row[c]) for c in columns] for row in lines[1:]]
    np.testing.assert_allclose(found, epochs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(json.loads((out / "sums.json").read_text()), weights, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_rank_of(Path(sys.argv[1]), Path(sys.argv[2]))
