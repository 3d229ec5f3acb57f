"""From a bundle to the same bundle with int8 in it: calibrated, compared with what it was, measured, written.

model.onnx and the weights stay as they are, so that the bundle runs in every precision.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openvino as ov

from yolov9 import openvino_core
from yolov9.bundle import INT8_ONNX, ONNX, OPENVINO_MODEL, OPENVINO_WEIGHTS, SAFETENSORS, Bundle, write_bundle
from yolov9.data import Dataset
from yolov9.data.inputs import Inputs, spread
from yolov9.engines import make
from yolov9.metadata import metadata
from yolov9.quantization import QuantizeError
from yolov9.quantization.deviation import Deviation, deviation
from yolov9.quantization.for_onnx import quantize_onnx
from yolov9.quantization.for_openvino import quantize_openvino
from yolov9.quantization.packages import ENGINES, check_installed, versions
from yolov9.quantization.pictures import read_inputs
from yolov9.quantization.sensitivity import By, Part, sensitivity
from yolov9.val import evaluate

MAX_AP_LOST = 0.02
"""More is not accepted. .005 is what good calibration reaches, and what AP on a hundred pictures can tell."""
MAX_BOX, MAX_SCORE = 0.1, 0.1
"""Largest `Deviation` that is accepted: ten times that of a good model, a tenth of that of a broken one."""
_CHECKED = 16
"""Pictures on which predictions are compared."""
_MEASURED = ("map", "map50", "map75")

Say = Callable[[str], None]
Metrics = dict[str, float]


@dataclass
class Outcome:
    """What one engine's int8 is worth."""

    deviation: Deviation
    """From the same engine in fp32, on calibration pictures."""
    after: Metrics = field(default_factory=dict)


@dataclass
class Quantised:
    bundle: Bundle
    story: dict[str, Any]
    """What the bundle's lineage says of it, under `int8`."""
    before: Metrics
    """In fp32; empty where nothing was measured."""
    outcomes: dict[str, Outcome]
    """By engine."""
    measured: int
    """Pictures."""
    sensitivity: list[Part]

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle.name,
            "hash": self.bundle.hash,
            **self.story,
            "sensitivity": [part.to_json() for part in self.sensitivity],
        }


def quantize(
    bundle: Bundle,
    folder: str | Path,
    calibration: Sequence[Path],
    *,
    images: int = 128,
    engines: Sequence[str] = ENGINES,
    input_size: int | None = None,
    evaluation: Dataset | None = None,
    limit: int | None = None,
    check: bool = True,
    by: By | None = None,
    lineage: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
) -> Quantised:
    """Write `bundle` with int8 files for `engines` to `folder`, which may be the bundle's own.

    `calibration`: pictures, of which `images` are used, spread evenly. `input_size`: long side, else the bundle's.
    `evaluation`: what AP before and after is measured on (`limit` of its pictures); none without. `check`: refuse a
    result whose predictions or AP are far off. `by`: also measure the sensitivity of each block or layer, in OpenVINO.
    `lineage`: what is known of the data. QuantizeError; BundleError, EngineError, EvaluationError, DataError, OSError.
    """
    check_installed(engines)
    if bundle.precision == "int8":
        raise QuantizeError(f"{bundle.path}: is quantised already; take the bundle that it was made of")
    size = input_size or bundle.input_size
    inputs = read_inputs(spread(calibration, images), size, say)
    say(f"calibrating on {len(inputs)} images: " + ", ".join(_shapes(inputs)))
    files = _files(bundle, engines, inputs, say)
    with tempfile.TemporaryDirectory() as scratch:
        trial = _write(bundle, Path(scratch) / "trial", files, bundle.lineage)
        outcomes = {engine: Outcome(_deviation(trial, engine, inputs)) for engine in engines}
        for engine, outcome in outcomes.items():
            say(f"{engine}: int8 differs from fp32 in {outcome.deviation}")
            if check and not (outcome.deviation.boxes <= MAX_BOX and outcome.deviation.scores <= MAX_SCORE):
                raise QuantizeError(
                    f"{engine} in int8 differs from fp32 in {outcome.deviation}; {MAX_BOX:.0%} and {MAX_SCORE}"
                    " are the most that is accepted (--no-check writes it)"
                )
        before, measured = _measure(trial, outcomes, evaluation, size, limit, say)
        if check:
            _check_accuracy(before, outcomes)
        parts = [] if by is None else _sensitivity(trial, inputs, by, say)
    story = {**(lineage or {}), **_story(before, outcomes, inputs, measured), "of": bundle.hash}
    written = _write(bundle, folder, files, {**bundle.lineage, "int8": story})
    return Quantised(written, story, before, outcomes, measured, parts)


def _files(bundle: Bundle, engines: Sequence[str], inputs: Inputs, say: Say) -> dict[str, bytes]:
    graph = bundle.onnx.read_bytes()
    files: dict[str, bytes] = {}
    if "openvino" in engines:
        say("openvino: NNCF's post-training quantisation (a minute or more)")
        about = metadata(bundle.names, stride=bundle.stride, name=bundle.name, input_size=bundle.input_size)
        files[OPENVINO_MODEL], files[OPENVINO_WEIGHTS] = quantize_openvino(graph, inputs, about)
    if "onnxruntime" in engines:
        files[INT8_ONNX] = quantize_onnx(graph, inputs, say)
    return files


def _write(bundle: Bundle, folder: str | Path, files: Mapping[str, bytes], lineage: Mapping[str, Any]) -> Bundle:
    """The bundle with these files more, or instead."""
    kept = {name: (bundle.path / name).read_bytes() for name in bundle.files if name not in (ONNX, SAFETENSORS)}
    return write_bundle(
        folder,
        name=bundle.name,
        names=bundle.names,
        input_size=bundle.input_size,
        precision=bundle.precision,
        onnx=bundle.onnx.read_bytes(),
        safetensors=None if bundle.safetensors is None else bundle.safetensors.read_bytes(),
        lineage=lineage,
        extra={**kept, **files},
    )


def _deviation(bundle: Bundle, name: str, inputs: Inputs) -> Deviation:
    some = spread(inputs, _CHECKED)
    predictions = []
    for precision in ("fp32", "int8"):
        engine = make(bundle, name, precision)
        try:
            predictions.append([engine.infer([images[0]]).copy() for images in some])
        finally:
            engine.close()
    return deviation(predictions[0], predictions[1])


def _measure(
    bundle: Bundle, outcomes: Mapping[str, Outcome], data: Dataset | None, size: int, limit: int | None, say: Say
) -> tuple[Metrics, int]:
    """AP before, and the number of pictures; AP after goes into the outcomes."""
    if data is None:
        return {}, 0

    def ap(name: str, precision: str) -> tuple[Metrics, int]:
        say(f"{name} {precision}: measuring AP on {min(limit or len(data.items), len(data.items))} images")
        engine = make(bundle, name, precision)
        try:
            report = evaluate(engine, data, names=bundle.names, input_size=size, limit=limit, say=say)
        finally:
            engine.close()
        return {key: round(report.metrics[key], 5) for key in _MEASURED}, report.images

    before, measured = ap(next(iter(outcomes)), "fp32")
    for name, outcome in outcomes.items():
        outcome.after, _ = ap(name, "int8")
    return before, measured


def _check_accuracy(before: Metrics, outcomes: Mapping[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        if outcome.after and before["map"] - outcome.after["map"] > MAX_AP_LOST:
            raise QuantizeError(
                f"{name} in int8 has AP {outcome.after['map']:.4f} where fp32 has {before['map']:.4f}: more than "
                f"{MAX_AP_LOST} lost; calibrate on more pictures, or such as the model will see (--no-check writes it)"
            )


def _sensitivity(bundle: Bundle, inputs: Inputs, by: By, say: Say) -> list[Part]:
    xml = bundle.file(OPENVINO_MODEL)
    if xml is None:
        raise QuantizeError("sensitivity is measured in OpenVINO: take --engine openvino or all")
    exact = ov.convert_model(str(bundle.onnx))
    quantised = openvino_core.core().read_model(str(xml))
    whole, parts = sensitivity(exact, quantised, spread(inputs, _CHECKED), by, say)
    say(f"all of it in int8: {whole}")
    return parts


def _story(before: Metrics, outcomes: Mapping[str, Outcome], inputs: Inputs, measured: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for images in inputs:
        digest.update(repr(images.shape).encode())
        digest.update(images.tobytes())
    engines = {
        name: {"after": outcome.after, "deviation": dataclasses.asdict(outcome.deviation)}
        for name, outcome in outcomes.items()
    }
    return {
        "calibrated_on": len(inputs),
        "calibration_sha256": digest.hexdigest(),
        "measured_on": measured,
        "before": before,
        "engines": engines,
        "made_with": versions([*outcomes]),
    }


def _shapes(inputs: Inputs) -> list[str]:
    counts: dict[tuple[int, ...], int] = {}
    for images in inputs:
        counts[images.shape[1:3]] = counts.get(images.shape[1:3], 0) + 1
    return [f"{count} at {width}x{height}" for (height, width), count in sorted(counts.items(), key=lambda x: -x[1])]
