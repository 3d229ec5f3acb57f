"""`python -m yolov9.quantize`: int8 for a model, by calibration on real pictures, with its AP before and after.

The bundle that is written holds the model in floating point as it was, and beside it files in int8 for OpenVINO, and
for ONNX Runtime and TensorRT, which these engines take by themselves from then on.

Calibration takes pictures of the training split where there is one. AP is measured on the validation split, without
the pictures that were calibrated on; where both are the same pictures, at most half of them are calibrated on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolov9 import packaged
from yolov9.bundle import MANIFEST, Bundle, BundleError, check_replaceable
from yolov9.commands import count, say
from yolov9.data import ALL, DataError, Dataset, find_source, match_classes, open_dataset
from yolov9.data.inputs import find_pictures, spread
from yolov9.engines import EngineError
from yolov9.evaluation.coco import check_installed as installed_for_ap
from yolov9.evaluation.results import EvaluationError
from yolov9.geometry import input_shapes
from yolov9.opening import CHECKPOINT_SIZE, ModelError, load_checkpoint
from yolov9.postprocess import PredictionError
from yolov9.quantization import QuantizeError
from yolov9.quantization.packages import ENGINES, check_installed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.quantize`. 0; 1 if it failed on its way; 2 if it could not be begun."""
    given = _parser().parse_args(arguments)
    try:
        engines = ENGINES if given.engine == "all" else (given.engine,)
        check_installed(engines)
        check_replaceable(given.out)
        if given.sensitivity and "openvino" not in engines:
            raise QuantizeError("--sensitivity is measured in OpenVINO: take --engine openvino or all")
        if given.imgsz is not None:
            input_shapes(given.imgsz)
        calibration, evaluation, notes = split(given.data, given.images)
        for note in notes:
            say(note)
    except (BundleError, DataError, QuantizeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                bundle = _bundle(given.weights, Path(scratch) / "exported", given.out, given.imgsz)
            except (packaged.ModelNotFound, BundleError, QuantizeError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            return _quantize(given, bundle, engines, calibration, evaluation)
    except (QuantizeError, BundleError, EngineError, EvaluationError, PredictionError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing is written", file=sys.stderr)
        return 130


def split(data: str | Path, images: int) -> tuple[list[Path], Dataset | None, list[str]]:
    """Pictures to calibrate on, `images` at most; the data to measure on, without these, None if nothing is labelled;
    what is to be said of it. DataError."""
    training = find_pictures(data, "train")
    try:
        source = find_source(data)
    except DataError:  # pictures alone
        return spread(training, images), None, []
    measured = open_dataset(data, "val" if "val" in source.splits else "train" if "train" in source.splits else ALL)
    count = images
    notes = [f"{problem}" for problem in measured.problems[:3]]
    if {*training} & {item.image for item in measured.items} and images > len(training) // 2:
        count = max(len(training) // 2, 1)
        notes.append(f"{count} images are calibrated on: the others of {len(training)} measure it")
    chosen = spread(training, count)
    rest = [item for item in measured.items if item.image not in {*chosen}]
    if not rest:
        notes.append("AP is measured on the image that is calibrated on: there is no other")
        rest = list(measured.items)
    return chosen, dataclasses.replace(measured, items=rest), notes


def _bundle(weights: str, scratch: Path, out: Path, input_size: int | None) -> Bundle:
    """The bundle that `weights` are, or a new one of a checkpoint."""
    path = packaged.resolve(weights)
    if (path / MANIFEST).is_file():
        bundle = Bundle.load(path)
        if bundle.precision == "int8":
            raise QuantizeError(f"{path}: is quantised already; take the bundle that it was made of")
        return bundle
    try:
        model = load_checkpoint(path)
    except ModelError as error:
        raise QuantizeError(str(error)) from error
    from yolov9.export import ExportError, export, lineage_of

    try:
        return export(
            model, scratch, name=out.resolve().name, input_size=input_size or CHECKPOINT_SIZE,
            lineage=lineage_of(weights), say=say,
        )  # fmt: skip
    except ExportError as error:
        raise QuantizeError(str(error)) from None


def _quantize(
    given: argparse.Namespace, bundle: Bundle, engines: Sequence[str], calibration: list[Path], labelled: Dataset | None
) -> int:
    from yolov9.quantization.run import quantize

    evaluation = labelled if given.check else None
    if given.check and (why_not := _unmeasurable(bundle, labelled)) is not None:
        say(f"AP is not measured: {why_not}")
        evaluation = None
    done = quantize(
        bundle, given.out, calibration, images=given.images, engines=engines, input_size=given.imgsz,
        evaluation=evaluation, limit=given.limit, check=given.check,
        by=given.sensitivity, lineage={"data": Path(given.data).name}, say=say,
    )  # fmt: skip
    print(_table(done))
    if given.json is not None:
        _write_json(given.json, done.to_json())
        print(f"figures: {given.json.resolve()}")
    files = ", ".join(sorted(done.bundle.files))
    print(f"wrote the bundle {done.bundle.name} ({done.bundle.hash}) to {done.bundle.path.resolve()}: {files}")
    return 0


def _unmeasurable(bundle: Bundle, data: Dataset | None) -> str | None:
    """Why AP cannot be measured on this data, if so. Calibration needs pictures only."""
    if data is None or not any(len(item.classes) for item in data.items):
        return "the pictures have no labels"
    try:
        match_classes(bundle.names, data.names)
        installed_for_ap()
    except (DataError, EvaluationError) as error:
        return str(error)
    return None


def _table(done: Any) -> str:
    """AP before and after by engine; then the parts that lose most."""
    lines = []
    if done.before:
        lines.append(f"AP on {done.measured} images that were not calibrated on")
        lines.append(f"  {'fp32':<22}{done.before['map']:.4f}   AP50 {done.before['map50']:.4f}")
        for name, outcome in done.outcomes.items():
            lost = outcome.after["map"] - done.before["map"]
            lines.append(
                f"  {name + ' int8':<22}{outcome.after['map']:.4f}   AP50 {outcome.after['map50']:.4f}   ({lost:+.4f})"
            )
    if done.sensitivity:
        lines.append(f"{'in int8 alone':<40}{'scores':>10}{'boxes':>10}")
        lines += [f"{part.name:<40}{part.scores:>10.5f}{part.boxes:>10.3%}" for part in done.sensitivity]
    return "\n".join(lines)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m yolov9.quantize", description="Quantise a model to int8 on real pictures.")
    p.add_argument(
        "--weights",
        "--model",
        dest="weights",
        required=True,
        metavar="W",
        help="bundle folder, packaged model's name, or checkpoint of any format",
    )
    p.add_argument(
        "--data", required=True, metavar="D",
        help="pictures to calibrate and measure on: data.yaml, COCO JSON file, a folder with YOLO txt, COCO JSON or "
        "Pascal VOC XML; or a folder of pictures without labels, on which AP cannot be measured",
    )  # fmt: skip
    p.add_argument("--out", required=True, type=Path, metavar="BUNDLE",
                   help="the bundle's folder, which may be that of --weights; a bundle there is replaced")  # fmt: skip
    p.add_argument("--images", type=count, default=128, metavar="N", help="pictures to calibrate on (%(default)s)")
    p.add_argument(
        "--imgsz", type=int, metavar="N", help="long side of the pictures, a multiple of 32 (the model's own)"
    )
    p.add_argument("--engine", choices=[*ENGINES, "all"], default="all",
                   help="whose files to make; TensorRT reads ONNX Runtime's (%(default)s)")  # fmt: skip
    p.add_argument("--limit", type=count, metavar="N", help="measure AP on so many pictures only")
    p.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                   help="measure AP before and after, and refuse what has lost too much")  # fmt: skip
    p.add_argument("--sensitivity", nargs="?", const="block", choices=["block", "layer"],
                   help="also measure what each block (or layer) alone loses in int8")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return p


if __name__ == "__main__":
    sys.exit(main())
