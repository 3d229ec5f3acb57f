"""`python -m yolov9.val`: how good a model is on a data set, by COCO's protocol, in the engine that will serve it.

    report = evaluate(engine, open_dataset("data.yaml"), names=names)
    report.metrics["map"]

The protocol: confidence from .001, non-maximum suppression within each class at an IoU of .7, several labels a box, at
most 300 boxes a picture (of which COCO counts the best 100 of each class), rectangular input shapes as the server has.

- Classes are matched by name; what only one side has is left out, and said.
- A picture without a box counts: whatever is found there is wrong.
- A picture that cannot be decoded is left out with its objects, and said.
- Crowds and difficult objects neither count nor cost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from yolov9.commands import count, say, share
from yolov9.data import DataError, Dataset, Item, match_classes, open_dataset
from yolov9.engines import ENGINES, Engine, EngineError
from yolov9.evaluation.coco import check_installed, coco_accuracy
from yolov9.evaluation.confusion import confusion
from yolov9.evaluation.curves import Curve, curves, mean_best
from yolov9.evaluation.report import ClassReport, Report, say_problems, write_json
from yolov9.evaluation.results import EvaluationError, Picture
from yolov9.evaluation.run import Found, Protocol, detect_all
from yolov9.geometry import input_shapes
from yolov9.opening import ModelError, open_model
from yolov9.postprocess import PredictionError

_EXCLUDED = 2.0
"""Threshold of a class that is not looked for: above every score."""

__all__ = ["EvaluationError", "Report", "evaluate", "main"]


def evaluate(
    engine: Engine,
    dataset: Dataset,
    *,
    names: Mapping[int, str],
    input_size: int = 640,
    confidence: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    batch: int | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run `engine` over the data set and compare.

    `names`: the model's classes. `input_size`: long side of the input, a multiple of 32. `batch`: pictures an
    inference, None for what the engine says pays. `limit`: so many pictures, spread evenly over the data set. `say`
    gets lines of progress. For a model in training: `evaluate(TorchEngine(model, max_batch=16), ...)`.

    Raises EvaluationError (nothing to compare, or a package is missing), DataError (no class in common), ValueError
    (an option that cannot be), EngineError and PredictionError (the engine failed).
    """
    input_shapes(input_size)
    for name, number in (("batch", batch), ("limit", limit), ("max_detections", max_detections)):
        if number is not None and number < 1:
            raise ValueError(f"{name}: {number} is less than 1")
    check_installed()
    match = match_classes(names, dataset.names)
    items = _some(dataset.items, limit)
    classes = sorted(match.to_data.values())
    if not any((np.isin(item.classes, classes) & ~item.crowd).any() for item in items):
        raise EvaluationError(
            f"{dataset.path}: split {dataset.split!r}: {len(items)} images without a single object of the model's "
            "classes, so there is nothing to compare with"
        )
    thresholds = None
    if len(match.to_data) < len(names):
        thresholds = np.array([confidence if i in match.to_data else _EXCLUDED for i in sorted(names)], np.float32)
    size = batch if batch is not None else engine.max_batch
    protocol = Protocol(input_size, confidence, iou, max_detections, size, thresholds)
    outcome = detect_all(engine, items, protocol, say)
    if not outcome.found:
        raise EvaluationError(f"{dataset.path}: no image could be decoded, such as {outcome.problems[0]}")
    say(f"comparing {sum(map(len, outcome.found.values())):,} boxes in {len(outcome.found)} images")
    # In the data's order, whatever the order of shapes: equal scores are ranked by it.
    pictures = [_picture(items[i], outcome.found[i], match.to_data, classes) for i in sorted(outcome.found)]
    accuracy = coco_accuracy(pictures, classes)
    lines = curves(pictures, classes)
    figures = [(accuracy.ap(i), accuracy.ap50(i), accuracy.ar(i)) for i in range(len(classes))]
    return Report(
        metrics=accuracy.metrics,
        classes=[
            _class_report(c, dataset.names[c], pictures, line, *values)
            for c, line, values in zip(classes, lines, figures, strict=True)
        ],
        missing=match.missing,
        unused=match.unused,
        confidence=mean_best(lines),
        images=len(pictures),
        speed=outcome.timing.milliseconds(),
        engine={"name": engine.name, "precision": engine.precision, "device": engine.device},
        settings={
            "input_size": input_size, "confidence": confidence, "iou": iou, "max_detections": max_detections,
            "batch": size, "limit": limit,
        },
        problems=outcome.problems,
        dataset=dataset,
        pictures=pictures,
        curves=lines,
        confusion=confusion(pictures, classes),
    )  # fmt: skip


def _some(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """`limit` of them at even distances: the first ones of a folder are often of one scene."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _picture(item: Item, found: Found, to_data: Mapping[int, int], classes: Sequence[int]) -> Picture:
    """With the common classes only, by the data's ids."""
    table = np.full(max(to_data) + 1, -1.0, np.float32)
    table[list(to_data)] = list(to_data.values())
    found[:, 5] = table[found[:, 5].astype(np.intp)]
    common = np.isin(item.classes, classes)
    return Picture(
        id=item.id,
        file_name=item.image.name,
        width=item.width,
        height=item.height,
        boxes=item.boxes[common],
        classes=item.classes[common],
        crowd=item.crowd[common],
        areas=item.areas[common],
        found=found,
    )


def _class_report(
    class_id: int, name: str, pictures: Sequence[Picture], curve: Curve, ap: float, ap50: float, ar: float
) -> ClassReport:
    images = sum(bool(((p.classes == class_id) & ~p.crowd).any()) for p in pictures)
    # Where nothing right is found, nothing is found at the threshold of 1 either, which would be precise.
    precision, recall, f1 = curve.at(curve.confidence) if curve.f1.any() else (0.0, 0.0, 0.0)
    return ClassReport(class_id, name, curve.objects, images, ap, ap50, ar, curve.confidence, precision, recall, f1)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m yolov9.val", description="Evaluate a model on a data set, as COCO does.")
    p.add_argument("--weights", required=True, metavar="W", help="bundle folder, packaged model's name, or checkpoint")
    p.add_argument(
        "--data", required=True, metavar="D",
        help="data.yaml, COCO JSON file, or a folder with YOLO txt, COCO JSON or Pascal VOC XML",
    )  # fmt: skip
    p.add_argument("--split", default="val", help="train, val, test or all (%(default)s)")
    p.add_argument("--engine", default="auto", help=f"auto, {', '.join(ENGINES)} (%(default)s)")
    p.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (%(default)s)")
    p.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (the fastest that works)")
    p.add_argument("--imgsz", type=int, metavar="N", help="long side of the input, a multiple of 32 (the model's own)")
    p.add_argument("--batch", type=count, metavar="N", help="pictures an inference (what pays on the device)")
    p.add_argument("--conf", type=share, default=0.001, metavar="X", help="lowest confidence (%(default)s)")
    p.add_argument("--iou", type=share, default=0.7, metavar="X", help="overlap that makes two boxes one (%(default)s)")
    p.add_argument("--max-det", type=count, default=300, metavar="N", help="boxes a picture (%(default)s)")
    p.add_argument("--limit", type=count, metavar="N", help="only so many pictures, spread over the data set")
    p.add_argument("--out", type=Path, default=Path("runs/val"), metavar="DIR",
                   help="metrics, detections and pictures (%(default)s)")  # fmt: skip
    p.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write into --out")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there, too")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.val`. 0; 1 if it failed on its way; 2 if it could not be begun."""
    given = _parser().parse_args(arguments)
    try:
        check_installed()
        dataset = open_dataset(given.data, given.split)
        model = open_model(given.weights, given.engine, given.precision, device=given.device, max_batch=given.batch)
    except (EvaluationError, DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    engine = model.engine
    say(f"{dataset.path}: {dataset.format}, split {dataset.split}, {len(dataset.items)} images")
    for note in dataset.notes:
        say(note)
    say_problems(dataset.problems, say)
    say(f"engine {engine.name} {engine.precision} on {engine.device} ({model.why})")
    try:
        report = evaluate(
            engine, dataset, names=model.names, input_size=given.imgsz or model.input_size, confidence=given.conf,
            iou=given.iou, max_detections=given.max_det, batch=given.batch, limit=given.limit, say=say,
        )  # fmt: skip
    except (EvaluationError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (EngineError, PredictionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing is written", file=sys.stderr)
        return 130
    finally:
        engine.close()
    say_problems(report.problems, say)
    print(report.table())
    return _write(report, given.out if given.save else None, given.json)


def _write(report: Report, out: Path | None, file: Path | None) -> int:
    try:
        if file is not None:
            print(f"metrics: {write_json(file, report.to_json()).resolve()}")
        if out is not None:
            written = report.write(out)
            print(f"{', '.join(path.name for path in written)}: {out.resolve()}")
    except (EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
