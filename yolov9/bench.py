"""`python -m yolov9.bench`: how fast each engine runs each model here, at which precision, batch and input shape.

Figures of a shared machine wander by a quarter from minute to minute. So cells are not measured one after the other but
in turns, each in a process of its own, and compared with a baseline of the same rounds: the ratios hold.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolov9.benchmark import machine, report
from yolov9.benchmark.cells import MODES, ROOF, Cell, Reference, reference, roof_cells, table
from yolov9.benchmark.models import BenchError, Model, open_models
from yolov9.benchmark.rounds import Plan, Result, run
from yolov9.benchmark.worker import Evaluate, Job
from yolov9.commands import count, say
from yolov9.data import DataError, open_dataset
from yolov9.engines import ENGINES
from yolov9.engines.cpu import available_cpus
from yolov9.geometry import STRIDE

TORCH_VARIANTS = ("torch-eager", "torch-compile", "torch-compile-graphs")
"""Of `yolov9.benchmark.torch_variants`, which imports PyTorch."""
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
_USUAL_ENGINES = {"cpu": ["openvino", "onnxruntime", "torch"], "cuda": ["tensorrt", "torch", "torch-eager"]}
_USUAL_PRECISIONS = {"cpu": ["fp32", "bf16", "int8"], "cuda": ["fp16", "bf16", "int8"]}
_ROOF_PRECISIONS = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "fp16", "bf16")}


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m yolov9.bench", description="Measure engines, precisions, batches, shapes.")
    p.add_argument("--weights", nargs="+", default=[], metavar="W", help="bundles, packaged names or checkpoints; "
                   "int8 is measured of bundles that python -m yolov9.quantize has made")  # fmt: skip
    p.add_argument("--model", nargs="+", default=[], metavar="NAME", help="architectures with random weights: gelan-c")
    p.add_argument("--engines", type=_words([*ENGINES, *TORCH_VARIANTS]), metavar="E,E",
                   help=f"of {', '.join([*ENGINES, *TORCH_VARIANTS])} (cpu: openvino,onnxruntime,torch; "
                   "cuda: tensorrt,torch,torch-eager)")  # fmt: skip
    p.add_argument("--precisions", type=_words(PRECISIONS), metavar="P,P",
                   help=f"of {', '.join(PRECISIONS)} (cpu: fp32,bf16,int8; cuda: fp16,bf16,int8)")  # fmt: skip
    p.add_argument("--batches", type=_batches, default=[1], metavar="N,N", help="images a call (default: 1)")
    p.add_argument("--shapes", type=_shapes, default=[(640, 640)], metavar="WxH,WxH",
                   help="width x height, multiples of 32 (default: 640x640)")  # fmt: skip
    p.add_argument("--modes", type=_words(MODES), default=[*MODES], metavar="M,M",
                   help="latency (one call at a time) and throughput (as many as pay) (default: both)")  # fmt: skip
    p.add_argument("--suppress", action="store_true", help="time non-maximum suppression too, as the server does it")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    p.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: all that this process may use)")
    p.add_argument("--repeat", type=count, default=5, metavar="N", help="rounds (default: %(default)s)")
    p.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="a cell and round (default: %(default)s)")
    p.add_argument("--together", type=count, default=12, metavar="N",
                   help="cells that take turns; more are measured group by group (default: %(default)s)")  # fmt: skip
    p.add_argument("--baseline", metavar="WORDS", help="what cells are compared with, such as openvino,fp32 or "
                   "gelan-t,torch,fp32,640x640,b1: its other fields are those of the cell "
                   "(default: the first engine and precision)")  # fmt: skip
    p.add_argument("--roof", action="store_true", help="measure what 3x3 convolutions reach, and the share of it")
    p.add_argument("--data", metavar="D", help="data set for AP, as for python -m yolov9.val")
    p.add_argument("--split", default="val", help="of the data set (default: %(default)s)")
    p.add_argument("--limit", type=count, metavar="N", help="only so many of its pictures")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    p.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.bench`. 0; 1 if no cell has figures; 2 for bad input; 130 if interrupted (what there
    is, is written)."""
    given = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "yolov9.bench", *(sys.argv[1:] if arguments is None else arguments)])
    with tempfile.TemporaryDirectory(prefix="yolov9-bench-") as scratch:
        try:
            if not given.weights and not given.model:
                raise BenchError("nothing to measure: give --weights or --model")
            models = open_models(given.weights, given.model, Path(scratch), say)
            cells, base, plan = _plan(given, models)
        except (BenchError, DataError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        surroundings = machine.machine(given.threads or available_cpus())
        results: dict[Cell, Result] = {}
        interrupted = False
        try:
            run(plan, say, results)
        except KeyboardInterrupt:
            say("interrupted: the table holds what was measured")
            interrupted = True
        everything = _report(given, models, cells, base, results, surroundings, command)
    measured = any(cell["ms_p50"] for cell in everything["cells"])
    status = _write(everything, given)
    return 130 if interrupted else status or (0 if measured else 1)


def _plan(given: argparse.Namespace, models: Sequence[Model]) -> tuple[list[Cell], Reference, Plan]:
    engines = given.engines or _USUAL_ENGINES[given.device]
    precisions = given.precisions or _USUAL_PRECISIONS[given.device]
    labels = [model.label for model in models]
    cells = table(labels, given.shapes, given.batches, engines, precisions, given.modes)
    base = reference(given.baseline if given.baseline is not None else f"{engines[0]},{precisions[0]}", cells)
    roofs = roof_cells(_ROOF_PRECISIONS[given.device]) if given.roof else []
    by_label = {model.label: model for model in models}
    threads = given.threads or available_cpus()
    jobs = {
        cell: Job(cell, str(by_label[cell.model].bundle.path), threads, given.device, given.suppress) for cell in cells
    }
    jobs |= {cell: Job(cell, "", threads, given.device, given.suppress) for cell in roofs}
    evaluations: dict[Cell, Evaluate] = {}
    if given.data:
        open_dataset(given.data, given.split)  # what cannot be read is said now, not after all rounds
        for cell in report.evaluated_cells(cells):
            size = max(cell.width, cell.height)
            evaluations[cell] = Evaluate(given.data, given.split, given.limit, size)
    return cells, base, Plan(cells, roofs, base, jobs, given.together, given.repeat, given.seconds, evaluations)


def _report(
    given: argparse.Namespace,
    models: Sequence[Model],
    cells: Sequence[Cell],
    base: Reference,
    results: dict[Cell, Result],
    surroundings: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    by_label = {model.label: model for model in models}

    def operations(cell: Cell) -> float | None:
        per_pixel = by_label[cell.model].operations_per_pixel
        return per_pixel and per_pixel * cell.width * cell.height

    figures = [
        report.cell_figures(results[cell], results, base, operations, report.shared_accuracy(cell, results))
        for cell in cells
        if cell in results
    ]
    return {
        "command": command,
        "date": machine.today(),
        "machine": surroundings,
        "versions": machine.versions(),
        "settings": {
            "device": given.device, "repeat": given.repeat, "seconds": given.seconds, "baseline": str(base),
            "suppress": given.suppress, "data": given.data, "split": given.split, "limit": given.limit,
        },
        "models": [
            {"label": m.label, "bundle": m.bundle.name, "hash": m.bundle.hash, "files": [*m.bundle.files]}
            for m in models
        ],
        "roof": [report.roof_figures(result) for cell, result in results.items() if cell.engine == ROOF],
        "cells": figures,
    }  # fmt: skip


def _write(everything: dict[str, Any], given: argparse.Namespace) -> int:
    text = report.markdown(everything)
    print(text)
    try:
        for path, content in ((given.json, json.dumps(everything, indent=1) + "\n"), (given.markdown, text)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
                print(f"wrote {path.resolve()}")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _words(known: Sequence[str]) -> Any:
    """An argument's type: words of `known` with commas between them, each once."""

    def read(text: str) -> list[str]:
        words = [*dict.fromkeys(word.strip() for word in text.split(",") if word.strip())]
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise argparse.ArgumentTypeError(f"{(unknown or [text])[0]!r} is not among {', '.join(known)}")
        return words

    return read


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = []
    for word in text.split(","):
        try:
            width, height = (int(side) for side in word.lower().split("x"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not WIDTHxHEIGHT") from None
        if width <= 0 or height <= 0 or width % STRIDE or height % STRIDE:
            raise argparse.ArgumentTypeError(f"{word}: the sides are not multiples of {STRIDE}")
        shapes.append((width, height))
    return [*dict.fromkeys(shapes)]


def _batches(text: str) -> list[int]:
    return [*dict.fromkeys(count(word) for word in text.split(","))]


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return value


if __name__ == "__main__":
    sys.exit(main())
