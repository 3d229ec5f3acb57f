"""The training loop: batches, losses, updates, evaluation an epoch. What it trains and on what is decided elsewhere."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from yolov9.nn.model import Detector
from yolov9.training.assigner import Truth
from yolov9.training.journal import Bar, Journal
from yolov9.training.loader import Batch, EpochSampler, Examples, collate
from yolov9.training.loss import DetectionLoss, Gains, Losses
from yolov9.training.optimization import Average, Schedule, make_optimizer
from yolov9.training.recipe import Recipe
from yolov9.training.state import BEST, LAST, Progress, read_state, write_state, write_weights
from yolov9.training.transfer import train_mode

Evaluate = Callable[[Detector], dict[str, float]]
"""Metrics of a model, `map` and `map50` among them."""
_CALIBRATION = 8
"""Batches, at most, on which statistics are measured: one was as good as six in the case that showed the need."""
_SAVE_S = 600.0
"""Between states that are written within an epoch."""
_EPOCH_SAVE_S = 5.0
"""Epochs that are shorter do not write one each."""


class TrainingError(Exception):
    """Training cannot go on. One sentence."""


@dataclass(frozen=True)
class Plan:
    """What the loop is to do."""

    folder: Path
    epochs: int
    batch: int
    """Pictures a process and step."""
    size: int
    recipe: Recipe
    seed: int
    patience: int = 0
    """Epochs without a better one after which training ends; 0: never."""
    evaluate_every: int = 1
    identity: str = ""
    """Settings that a resumed run must share, as JSON."""


@dataclass(frozen=True)
class Outcome:
    epochs: int
    """Completed."""
    best_epoch: int
    interrupted: bool
    """Ended by SIGTERM or SIGINT; the state is on the disk."""


class Loop:
    """Trains `model`. Only process 0 evaluates and writes."""

    def __init__(
        self,
        fabric: Fabric,
        model: Detector,
        examples: Examples,
        loader: DataLoader[Batch],
        sampler: EpochSampler,
        plan: Plan,
        evaluate: Evaluate | None,
        say: Callable[[str], None],
    ) -> None:
        self._fabric = fabric
        self._examples = examples
        self._loader = loader
        self._sampler = sampler
        self._plan = plan
        self._evaluate = evaluate
        self._say = say
        recipe = plan.recipe
        self._model = model.to(fabric.device)
        for parameter in self._model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._average = Average(self._model, recipe.ema, recipe.ema_ramp)
        whole_batch = plan.batch * fabric.world_size
        self._optimizer = make_optimizer(self._model, recipe, whole_batch)
        self._wrapped, self._stepper = fabric.setup(self._model, self._optimizer)
        self._schedule = Schedule(recipe, whole_batch, sampler.batches, plan.epochs)
        self._loss = DetectionLoss(
            model.strides,
            Gains(recipe.box, recipe.cls, recipe.dfl, recipe.auxiliary),
            topk=recipe.assign_topk,
            alpha=recipe.assign_alpha,
            beta=recipe.assign_beta,
            reduce=self._mean,
        )
        self._progress = Progress()
        self._stop = False
        self._saved = time.monotonic()

    @property
    def average(self) -> Detector:
        return self._average.model

    def resume(self) -> Progress:
        """Go on where the state in the folder says. StateError."""
        self._progress = read_state(self._plan.folder, self._model, self._average, self._optimizer, self._plan.identity)
        return replace(self._progress)

    def run(self) -> Outcome:
        """TrainingError if the loss is no number any more, OSError if a file cannot be written."""
        progress, plan = self._progress, self._plan
        main = self._fabric.is_global_zero
        journal = Journal(plan.folder) if main else None
        try:
            with self._signals():
                while progress.epoch < plan.epochs:
                    if not self._epoch(progress):
                        self._save()
                        return Outcome(progress.epoch, progress.best_epoch, True)
                    self._finish_epoch(progress, journal)
                    if self._fabric.broadcast(self._stop) and progress.epoch < plan.epochs:
                        return Outcome(progress.epoch, progress.best_epoch, True)
                    if plan.patience and progress.epoch - 1 - progress.best_epoch >= plan.patience:
                        self._say(f"no better epoch than {progress.best_epoch + 1} in {plan.patience}: done")
                        break
        finally:
            if journal is not None:
                journal.close()
        return Outcome(progress.epoch, progress.best_epoch, False)

    def _epoch(self, progress: Progress) -> bool:
        """Run what is left of one epoch. False if it was interrupted, at a place where it can be resumed."""
        plan = self._plan
        self._sampler.epoch, self._sampler.start = progress.epoch, progress.step
        train_mode(self._model)
        bar = Bar(
            f"epoch {progress.epoch + 1}/{plan.epochs}", self._sampler.batches, progress.step, self._schedule.batch
        )
        waiting = 0
        began = time.monotonic()
        self._optimizer.zero_grad()
        for batch in self._loader:
            step = progress.epoch * self._sampler.batches + progress.step
            self._schedule.apply(self._optimizer, step)
            waiting += 1
            progress.step += 1
            last = progress.step == self._sampler.batches
            update = last or waiting >= self._schedule.accumulate(step)
            losses = self._learn(batch, step, update)
            self._add(progress, losses)
            if not update:
                continue
            waiting = 0
            self._update(progress)
            now = time.monotonic()
            progress.seconds += now - began
            began = now
            if self._fabric.is_global_zero:
                bar.step(progress.step, _text(progress), plan.epochs - progress.epoch - 1)
            if self._fabric.broadcast(self._stop) and not last:
                return False
            if now - self._saved > _SAVE_S:
                self._save()
        return True

    def _learn(self, batch: Batch, step: int, update: bool) -> Losses:
        """Forward and backward of one batch."""
        images, truth = self._prepared(batch, step)
        with self._fabric.no_backward_sync(self._wrapped, enabled=not update):
            outputs = self._wrapped(images)
            with torch.autocast(self._fabric.device.type, enabled=False):
                losses = self._loss(outputs, truth, batch.known.to(images.device))
            # Processes' gradients are averaged; times their number they are those of one process with all pictures.
            self._fabric.backward(losses.total * self._fabric.world_size)
        return losses

    def _prepared(self, batch: Batch, step: int) -> tuple[Tensor, Truth]:
        """(B, 3, S, S) float in 0..1, channels last, and the boxes; of another size if scales are mixed."""
        device = self._fabric.device
        images = _normalised(batch.images, device)
        truth = batch.truth.to(device)
        spread = self._plan.recipe.multi_scale
        if spread:
            draw = np.random.default_rng((self._plan.seed, step, 1)).uniform(1 - spread, 1 + spread)
            size = max(round(self._plan.size * draw / 32), 1) * 32
            if size != images.shape[-1]:
                truth = replace(truth, box=truth.box * (size / images.shape[-1]))
                images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return images, truth

    def _update(self, progress: Progress) -> None:
        norm = self._fabric.clip_gradients(self._wrapped, self._stepper, max_norm=self._plan.recipe.clip,
                                           error_if_nonfinite=False)  # fmt: skip
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"epoch {progress.epoch + 1}, batch {progress.step}: the gradient is not finite; a smaller learning "
                "rate or --precision 32 may help. The last state on the disk is from before."
            )
        self._stepper.step()
        self._optimizer.zero_grad()
        self._average.update(self._model)
        progress.updates += 1

    def _add(self, progress: Progress, losses: Losses) -> None:
        figures = torch.stack((losses.box, losses.cls, losses.dfl, losses.auxiliary))
        for name, value in zip(("box", "cls", "dfl", "auxiliary"), self._mean(figures).tolist(), strict=True):
            progress.sums[name] = progress.sums.get(name, 0.0) + value

    def _mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return cast(Tensor, self._fabric.all_reduce(value, reduce_op="mean")) if self._fabric.world_size > 1 else value

    def _finish_epoch(self, progress: Progress, journal: Journal | None) -> None:
        """Evaluate, note, keep."""
        plan = self._plan
        epoch = progress.epoch
        figures = {f"train/{k}": v / progress.step for k, v in progress.sums.items()}
        figures["lr"] = self._optimizer.param_groups[0]["lr"]
        figures["seconds"] = progress.seconds
        better = False
        due = (epoch + 1) % plan.evaluate_every == 0 or epoch + 1 == plan.epochs
        if self._fabric.is_global_zero:
            with self._fabric.autocast():
                self._average.calibrate(self._calibration(epoch))
        if self._fabric.is_global_zero and self._evaluate is not None and due:
            metrics = self._evaluate(self._average.model)
            figures |= {f"val/{k}": v for k, v in metrics.items()}
            fitness = 0.1 * metrics["map50"] + 0.9 * metrics["map"]
            better = fitness > progress.best
            self._say(f"epoch {epoch + 1}: AP {metrics['map']:.4f}, AP50 {metrics['map50']:.4f}"
                      f"{' (the best so far)' if better else ''}")  # fmt: skip
            if better:
                progress.best, progress.best_epoch = fitness, epoch
        progress.best, progress.best_epoch = self._fabric.broadcast((progress.best, progress.best_epoch))
        progress.epoch, progress.step, progress.sums = epoch + 1, 0, {}
        if journal is None:
            return
        journal.add(epoch + 1, figures)
        facts = {"epoch": epoch + 1, "of": plan.epochs, "figures": figures}
        if better or self._evaluate is None:
            write_weights(plan.folder / BEST, self._average, facts)
        if progress.epoch == plan.epochs or time.monotonic() - self._saved > _EPOCH_SAVE_S:
            write_weights(plan.folder / LAST, self._average, facts)
            self._save()

    def _calibration(self, epoch: int) -> Iterator[Tensor]:
        """The first batches of the epoch, some 5 % of it, made again: the same whether it was resumed or not."""
        keys = EpochSampler(len(self._examples), self._plan.batch, self._plan.seed)
        keys.epoch = epoch
        for batch, _ in zip(keys, range(max(1, min(_CALIBRATION, keys.batches // 20))), strict=False):
            images = collate([self._examples[key] for key in batch]).images
            yield _normalised(images, self._fabric.device)

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._fabric.is_global_zero:
            write_state(
                self._plan.folder, self._model, self._average, self._optimizer, self._progress, self._plan.identity
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end training at the next update, with its state on the disk; the second time at once."""

        def stop(number: int, _: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self._say(f"{signal.Signals(number).name}: ends after this update")

        before: dict[int, Any] = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _normalised(images: Tensor, device: torch.device) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float in 0..1, channels last."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255


def _text(progress: Progress) -> str:
    return " ".join(f"{name} {value / progress.step:.3f}" for name, value in progress.sums.items())


def identity(**settings: Any) -> str:
    """Settings of a run as JSON, for `Plan.identity`."""
    return json.dumps(
        {k: v if not isinstance(v, Recipe) else v.model_dump() for k, v in settings.items()}, sort_keys=True
    )
