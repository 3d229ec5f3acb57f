"""`python -m yolov9.prune`: a smaller, faster model out of a trained one, by removing whole channels.

What goes is chosen by what it is worth (`--criterion`) against what it costs, until a target is met: a share of the
channels, of the operations, or milliseconds in the engine that will serve it. Pictures without labels are enough for
the best criterion, and to fit the remaining weights afterwards (`--repair`). What cannot be made up for in that way
takes training: OUT.safetensors is a checkpoint like any other, so it is trained on as `--weights` of the trainer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolov9 import packaged
from yolov9.commands import count, say, share
from yolov9.data import DataError, Dataset, find_source, open_dataset
from yolov9.engines import ENGINES, EngineError
from yolov9.evaluation.results import EvaluationError
from yolov9.geometry import input_shapes
from yolov9.nn.channels import ChannelError
from yolov9.nn.model import Detector
from yolov9.postprocess import PredictionError
from yolov9.pruning.criteria import DEFAULTS, Criterion
from yolov9.pruning.latency import Stopwatch
from yolov9.pruning.pictures import Pictures, find
from yolov9.pruning.pruner import Options, Pruned, Target, prune
from yolov9.pruning.report import summary, text
from yolov9.pruning.selection import NORMALISATIONS
from yolov9.pruning.spaces import PruneError
from yolov9.val import evaluate
from yolov9.weights import WeightsError, load, save

_LATENCY = re.compile(r"([0-9]*\.?[0-9]+)(ms|x)")


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m yolov9.prune", description="Remove channels of a trained model.",
        epilog="It writes OUT.safetensors, which every command takes as --weights, and OUT.json, the report.",
    )  # fmt: skip
    p.add_argument("--weights", required=True, metavar="W", help="checkpoint, bundle's folder, or packaged name")
    p.add_argument("--out", required=True, type=Path, metavar="OUT.safetensors", help="where the pruned model goes")
    target = p.add_mutually_exclusive_group(required=True)
    target.add_argument("--ratio", type=_share, metavar="X", help="remove this share of the channels: .3")
    target.add_argument("--flops", type=_share, metavar="X", help="keep this share of the operations at --imgsz: .6")
    target.add_argument("--latency", type=_latency, metavar="T", help="until it takes at most 12ms, or .7x as long")
    p.add_argument("--criterion", choices=[*DEFAULTS], help="what a channel is worth (fisher with pictures, else l2)")
    p.add_argument("--scope", choices=["global", "layer"], default="global",
                   help="where it loses least, or the same share of every layer (%(default)s)")  # fmt: skip
    p.add_argument("--normalise", choices=NORMALISATIONS, help="of scores between layers (the criterion's own)")
    p.add_argument("--per-cost", action=argparse.BooleanOptionalAction,
                   help="weigh worth against operations saved (yes, but for --ratio)")  # fmt: skip
    p.add_argument("--round", type=count, default=8, metavar="N",
                   help="pruned widths are multiples of it (%(default)s; 16 suits tensor cores)")  # fmt: skip
    p.add_argument("--floor", type=_share, default=0.1, metavar="X", help="every width keeps this share (%(default)s)")
    p.add_argument("--protect", nargs="+", default=[], metavar="PATTERN",
                   help="layers whose outputs stay: 'stem*', 'detect.cv2', 'stage3.cv?.1'")  # fmt: skip
    p.add_argument("--steps", type=count, default=1, metavar="N",
                   help="score, cut and repair in so many steps (%(default)s)")  # fmt: skip
    p.add_argument("--repair", choices=["weights", "statistics", "none"], default="weights",
                   help="with pictures: fit the remaining weights, or the scale and mean of each channel only, "
                   "to what the whole model computes (%(default)s)")  # fmt: skip
    p.add_argument("--data", metavar="D", help="data set: AP before and after on its val split, pictures of train")
    p.add_argument("--images", type=Path, metavar="DIR", help="pictures without labels, instead of those of --data")
    p.add_argument("--pictures", type=count, default=64, metavar="N", help="so many of them (%(default)s)")
    p.add_argument("--limit", type=count, metavar="N", help="pictures for AP (all)")
    p.add_argument("--imgsz", type=int, default=640, metavar="N", help="side of the input (%(default)s)")
    p.add_argument("--engine", choices=["auto", *ENGINES], default="auto",
                   help="that measures latency and AP (%(default)s)")  # fmt: skip
    p.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (%(default)s)")
    p.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True,
                   help="latency before and after; always with --latency")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of whatever is drawn (%(default)s)")
    return p


def _share(given: str) -> float:
    """Between 0 and 1, which are nothing and all."""
    value = share(given)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"{given} is not between 0 and 1")
    return value


def _latency(given: str) -> tuple[float, str]:
    found = _LATENCY.fullmatch(given)
    if not found or float(found[1]) <= 0 or (found[2] == "x" and float(found[1]) >= 1):
        raise argparse.ArgumentTypeError(f"{given} is neither milliseconds (12ms) nor a share of the time (.7x)")
    return float(found[1]), found[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.prune`. 0; 1 if it failed on its way; 2 for bad input; 130 if interrupted."""
    given = _parser().parse_args(arguments)
    try:
        if given.out.suffix != ".safetensors" or not given.out.parent.is_dir():
            raise PruneError(f"{given.out}: wants a name that ends in .safetensors, in a folder that is there")
        input_shapes(given.imgsz)
        whole = load(given.weights)
        dataset = _dataset(given.data)
        pictures, which = _pictures(given)
    except (PruneError, WeightsError, packaged.ModelNotFound, DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(f"{given.weights}: {whole.name}, {len(whole.names)} classes")
    try:
        report = _run(given, whole, dataset, pictures)
    except (PruneError, ChannelError, DataError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (EngineError, PredictionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if dataset is not None and dataset.split == which:
        report["note"] = f"AP is measured on the split {which!r}, of which pictures were used to prune"
        say(report["note"])
    file = given.out.with_suffix(".json")
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text(report))
    print(f"wrote {given.out.resolve()} and the report {file.resolve()}")
    return 0


def _run(
    given: argparse.Namespace, whole: Detector, dataset: Dataset | None, pictures: Pictures | None
) -> dict[str, Any]:
    """Measure, prune, write the model, measure again; the report."""
    measured = given.measure or given.latency is not None or dataset is not None
    watch = Stopwatch(whole, given.engine, given.precision, given.imgsz) if measured else None
    try:
        result, options = _prune(given, whole, pictures, watch)
        save(result.model, given.out)
        report = summary(whole, result, given.imgsz)
        report["options"] = options
        if watch is not None:
            report["engine"] = watch.engine
            if given.measure or given.latency is not None:
                report["before"]["latency_ms"] = round(watch.whole_ms, 3)
                report["after"]["latency_ms"] = round(watch(result.model), 3)
        if watch is not None and dataset is not None:
            for when, model in (("before", whole), ("after", result.model)):
                with watch.running(model) as engine:
                    metrics = evaluate(
                        engine, dataset, names=model.names, input_size=given.imgsz, limit=given.limit, say=say
                    ).metrics
                report[when] |= {key: round(metrics[key], 4) for key in ("map", "map50", "map75")}
    finally:
        if watch is not None:
            watch.close()
    return report


def _prune(
    given: argparse.Namespace, whole: Detector, pictures: Pictures | None, watch: Stopwatch | None
) -> tuple[Pruned, dict[str, Any]]:
    criterion: Criterion = given.criterion or ("fisher" if pictures is not None else "l2")
    options = Options(
        criterion=criterion, scope=given.scope, normalisation=given.normalise, per_cost=given.per_cost,
        round_to=given.round, floor=given.floor, protect=tuple(given.protect), steps=given.steps, repair=given.repair,
        seed=given.seed,
    )  # fmt: skip
    if given.latency is not None and watch is not None:
        value, unit = given.latency
        target = Target("latency", value if unit == "ms" else value * watch.whole_ms)
    else:
        target = Target("ratio", given.ratio) if given.ratio is not None else Target("flops", given.flops)
    used = len(pictures) if pictures is not None else 0
    say(f"criterion {criterion}, target {target.kind} {target.value:.4g}, {used} pictures")
    result = prune(whole, target, options, pictures=pictures, input_size=given.imgsz, measure=watch, say=say)
    told = {
        "weights": str(given.weights), "target": {target.kind: target.value}, "criterion": criterion,
        "scope": given.scope, "normalise": given.normalise or DEFAULTS[criterion],
        "per_cost": given.per_cost if given.per_cost is not None else target.kind != "ratio", "round": given.round,
        "floor": given.floor, "protect": given.protect, "steps": given.steps,
        "repair": given.repair if pictures is not None else "none", "pictures": used, "seed": given.seed,
    }  # fmt: skip
    return result, told


def _dataset(data: str | None) -> Dataset | None:
    """What AP is measured on: the split val, or another one where there is none."""
    if data is None:
        return None
    splits = find_source(data).splits
    return open_dataset(data, next((s for s in ("val", "test", "train") if s in splits), "val"))


def _pictures(given: argparse.Namespace) -> tuple[Pictures | None, str | None]:
    """What is looked at while pruning, and of which split of the data set it is: train, or another one if need be."""
    if given.images is not None:
        return Pictures(find(given.images), given.imgsz, given.pictures, say), None
    if given.data is None:
        return None, None
    splits = find_source(given.data).splits
    dataset = open_dataset(given.data, next((s for s in ("train", "val", "test") if s in splits), "train"))
    files = [item.image for item in dataset.items]
    return Pictures(files, given.imgsz, given.pictures, say), dataset.split


if __name__ == "__main__":
    sys.exit(main())
