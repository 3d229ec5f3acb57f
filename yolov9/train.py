"""`python -m yolov9.train`: train a model on anyone's data, from nothing or from other weights.

Models with an auxiliary branch (yolov9-*) learn by programmable gradient information; what is kept at the end runs
without it. A run's folder holds `best.safetensors`, `last.safetensors`, all that `--resume` needs, tables, pictures,
and a bundle that the server loads as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything

from yolov9.data import DataError
from yolov9.data.inputs import read_inputs, spread
from yolov9.engines.base import EngineError
from yolov9.engines.cpu import cpu_flags
from yolov9.engines.torch import TorchEngine
from yolov9.evaluation.report import Report
from yolov9.evaluation.results import EvaluationError
from yolov9.geometry import input_shapes
from yolov9.lineage import RUN, story_of
from yolov9.nn.ablation import ablate, options
from yolov9.nn.architecture import ArchitectureError
from yolov9.nn.cost import parameters
from yolov9.nn.model import Detector, build
from yolov9.nn.widths import widths
from yolov9.packaged import ModelNotFound
from yolov9.training.batch_size import CPU_BATCH, batch_size
from yolov9.training.corpus import Corpus, open_corpus
from yolov9.training.journal import RESULTS
from yolov9.training.loader import EpochSampler, Examples, make_loader
from yolov9.training.loop import Loop, Outcome, Plan, TrainingError, identity
from yolov9.training.recipe import AUTO, Recipe, RecipeError, fitting_recipe, read_recipe
from yolov9.training.samples import Pictures
from yolov9.training.sheets import draw_curves, draw_examples, draw_labels
from yolov9.training.state import BEST, LAST, STATE, StateError
from yolov9.training.transfer import TransferError, freeze, transfer, with_classes
from yolov9.val import evaluate
from yolov9.weights import WeightsError, load

_USER_ERRORS = (
    ArchitectureError, DataError, EvaluationError, ModelNotFound, RecipeError, StateError, TransferError, WeightsError,
    OSError, ValueError,
)  # fmt: skip
_MODEL = "yolov9-t"
_CHECKED = 4
"""Validation pictures on which the bundle's graph is run beside the model."""
Say = Callable[[str], None]


def train(given: argparse.Namespace) -> Path:
    """The whole run, -> its folder."""
    chosen = None if given.recipe == AUTO else read_recipe(given.recipe).changed(given.set)
    precision = given.precision or _precision(given.device)
    fabric = Fabric(
        accelerator={"cuda": "gpu"}.get(given.device, given.device), devices=given.devices, num_nodes=given.nodes,
        precision=precision,
    )  # fmt: skip
    fabric.launch()
    seed_everything(given.seed, verbose=False)
    main = fabric.is_global_zero

    def say(line: str) -> None:
        if main:
            print(line, flush=True)

    corpus = open_corpus(
        given.data, classes=given.classes, renamed=dict(given.rename), without=given.without, validation=given.val,
        say=say,
    )  # fmt: skip
    recipe = chosen or _fitting(given, len(corpus.samples), say)
    model = _model(given, corpus.names, say)
    if given.freeze:
        say(f"frozen: {', '.join(freeze(model, given.freeze))}")
    say(f"{model.name}: {parameters(model):,} parameters, classes {', '.join(corpus.names.values())}")

    batch = given.batch or fabric.broadcast(batch_size(model, given.imgsz, fabric.device, precision, say))

    folder: Path = given.out
    folder.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(corpus.samples, given.imgsz, given.cache, folder=folder, step=_counter("pictures read", main))
    for problem in pictures.problems:
        say(f"left out: {problem}")
    examples = Examples(pictures, given.imgsz, recipe.augmentation, given.seed,
                        given.epochs - recipe.augmentation.close)  # fmt: skip
    if main:
        draw_labels(pictures.samples, corpus.names, folder / "labels.png")
        draw_examples(examples, corpus.names, 0, folder / "examples.png")
    sampler = EpochSampler(len(pictures), batch, given.seed, rank=fabric.global_rank, world=fabric.world_size)
    loader = make_loader(examples, sampler, given.workers, pin=given.device == "cuda")

    run = identity(
        model=model.name, architecture=None if model.arch.packaged else model.arch.to_yaml(), widths=widths(model),
        names=corpus.names, data=[str(d) for d in given.data], data_sha256=corpus.fingerprint,
        pictures=len(pictures), recipe=recipe,
        epochs=given.epochs, batch=batch * fabric.world_size, size=given.imgsz, seed=given.seed,
        weights=given.weights and str(given.weights), freeze=given.freeze,
    )  # fmt: skip
    plan = Plan(folder, given.epochs, batch, given.imgsz, recipe, given.seed, given.patience, given.val_every, run)
    judge = None if corpus.validation is None or not main else _Judge(corpus, given.imgsz)
    loop = Loop(fabric, model, examples, loader, sampler, plan, judge, say)
    if given.resume and (folder / STATE).is_file():
        at = loop.resume()
        say(f"resumed at epoch {at.epoch + 1}, batch {at.step + 1}")
    elif main:
        (folder / RUN).write_text(json.dumps({**json.loads(run), "commit": _commit(), "torch": str(torch.__version__),
                                               "arguments": sys.argv[1:]}, indent=1))  # fmt: skip
    outcome = loop.run()
    if main:
        _conclude(folder, outcome, corpus, given, say)
    return folder


def _fitting(given: argparse.Namespace, pictures: int, say: Say) -> Recipe:
    name = fitting_recipe(pictures, given.epochs)
    say(f"recipe: {name} ({pictures:,} pictures, {given.epochs} epochs; --recipe takes another)")
    return read_recipe(name).changed(given.set)


def _model(given: argparse.Namespace, names: dict[int, str], say: Say) -> Detector:
    """What is trained: a new model, one that takes over what fits of other weights, or those weights' own."""
    if given.weights and not given.model:
        if given.option:
            raise TransferError("--option: wants --model; --weights alone is trained as it is")
        model, classes = with_classes(load(given.weights), names)
        say(f"{given.weights}: classes that it knows: {', '.join(classes) or 'none'}")
        if not model.head.dual:
            say(f"{given.weights}: has no auxiliary branch; with --model yolov9-{model.name[-1]} it gets one")
        return model
    model = build(ablate(given.model or _MODEL, **options(given.option)), names)
    if given.weights:
        copied, classes = transfer(load(given.weights), model)
        say(f"{given.weights}: {copied} tensors taken over; classes of the same name: {', '.join(classes) or 'none'}")
    return model


class _Judge:
    """Evaluates a model on the held-out pictures, as it will be served: without its auxiliary branch, fused."""

    def __init__(self, corpus: Corpus, size: int) -> None:
        self._corpus = corpus
        self._size = size

    def __call__(self, model: Detector) -> dict[str, float]:
        return self.report(model).metrics

    def report(self, model: Detector) -> Report:
        assert self._corpus.validation is not None
        threads = torch.get_num_threads()
        engine = TorchEngine(model, max_batch=16, threads=threads)
        try:
            return evaluate(engine, self._corpus.validation, names=model.names, input_size=self._size)
        finally:
            engine.close()


def _conclude(folder: Path, outcome: Outcome, corpus: Corpus, given: argparse.Namespace, say: Say) -> None:
    """Evaluate the best weights, write the bundle, say what lies where."""
    draw_curves(folder / RESULTS, folder / "curves.png")
    if outcome.interrupted:
        say(f"interrupted in epoch {outcome.epochs + 1}; go on with the same command and --resume ({folder / STATE})")
        return
    from yolov9.export import ExportError, export  # brings onnx

    best = folder / (BEST if (folder / BEST).is_file() else LAST)
    model = load(best)
    lineage = {**story_of(folder), "epochs": outcome.epochs}
    real = []
    if corpus.validation is not None:
        some = spread([item.image for item in corpus.validation.items], _CHECKED)
        real = [(path.name, pixels) for path in some for pixels in read_inputs([path], given.imgsz, say)]
        report = _Judge(corpus, given.imgsz).report(model)
        say(report.table())
        report.write(folder / "val")
        lineage["metrics"] = report.metrics
    try:
        bundle = export(
            model, folder / "bundle", name=folder.resolve().name, input_size=given.imgsz, real=real, lineage=lineage,
            say=say,
        )  # fmt: skip
    except ExportError as error:
        raise TrainingError(f"the weights are in {best}, but no bundle was written: {error}") from error
    say(f"weights: {best}\nbundle: {bundle.path} (python -m server --model {bundle.path})")


def _precision(device: str) -> Any:
    """Mixed precision in bfloat16, where it is fast."""
    if device != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if "avx512_bf16" in cpu_flags() else "32-true"


def _commit() -> str | None:
    """Of this code, where it runs from its repository; not of one that happens to hold an installed copy."""
    here = Path(__file__)
    try:
        for command in (["git", "ls-files", "--error-unmatch", here.name], ["git", "rev-parse", "HEAD"]):
            done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True)
            if done.returncode:
                return None
    except OSError:
        return None
    return done.stdout.strip()


def _counter(what: str, main: bool) -> Any:
    def step(done: int, total: int) -> None:
        if main and (done == total or done % 500 == 0):
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

    return step


def _pair(text: str) -> tuple[str, str]:
    old, sep, new = text.partition("=")
    if not (old and sep and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def _batch(text: str) -> int | None:
    """None: to be found."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 nor auto")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m yolov9.train", description="Train a detector.")
    p.add_argument("--data", required=True, action="append", metavar="D", help="data.yaml, folder or JSON; repeatable")
    p.add_argument(
        "--model",
        metavar="NAME",
        help=f"architecture, such as yolov9-t or gelan-c (default: that of --weights, else {_MODEL})",
    )
    p.add_argument("--option", action="append", default=[], metavar="K=V", help="ablation, such as auxiliary=pgi")
    p.add_argument("--weights", metavar="W", help="start from these: any checkpoint, pruned, too, or a bundle")
    p.add_argument("--epochs", type=int, default=500)
    p.add_argument(
        "--batch",
        type=_batch,
        default=CPU_BATCH,
        metavar="N|auto",
        help="pictures a step and process; auto: as fit the GPU (%(default)s)",
    )
    p.add_argument("--imgsz", type=int, default=640, help="input size, a multiple of 32 (%(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/train"), metavar="DIR", help="the run's folder (%(default)s)")
    p.add_argument("--resume", action="store_true", help="go on where the state in --out says")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    p.add_argument("--devices", default="auto", help="how many, or which")
    p.add_argument("--nodes", type=int, default=1)
    p.add_argument("--precision", help="32-true, bf16-mixed, 16-mixed; by default the fastest that is safe")
    p.add_argument(
        "--recipe",
        default=AUTO,
        metavar="NAME|FILE",
        help="coco (as published), small (for small data sets), YAML with fields of a recipe, or auto: by the pictures "
        "and epochs (%(default)s)",
    )
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one field of the recipe")
    p.add_argument(
        "--classes", type=lambda t: t.split(","), default=[], help="the model's, by comma; default: the data's"
    )
    p.add_argument("--rename", action="append", type=_pair, default=[], metavar="OLD=NEW", help="a class of the data")
    p.add_argument("--without", action="append", default=[], metavar="CLASS", help="leave out pictures that show it")
    p.add_argument("--val", metavar="D", help="evaluate on the val split of these data (default: of --data)")
    p.add_argument("--val-every", type=int, default=1, metavar="N", help="epochs (%(default)s)")
    p.add_argument("--patience", type=int, default=0, metavar="N", help="stop after N epochs without a better one")
    p.add_argument("--freeze", type=lambda t: t.split(","), default=[], metavar="NAMES", help="layers or sections")
    p.add_argument("--cache", choices=("ram", "disk", "none"), default="ram", help="decoded pictures (%(default)s)")
    p.add_argument("--workers", type=int, default=max(min((os.cpu_count() or 2) // 2, 8), 1), help="(%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    # Of 1x1 convolutions, whose weights lie the same either way.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        input_shapes(given.imgsz)
        train(given)
    except TrainingError as error:
        print(f"yolov9.train: {error}", file=sys.stderr)
        return 1
    except EngineError as error:
        print(f"yolov9.train: evaluation failed: {error}", file=sys.stderr)
        return 1
    except _USER_ERRORS as error:
        print(f"yolov9.train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
