"""`python -m yolov9.export`: from a checkpoint to a model bundle that the server and every engine can run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from yolov9 import packaged
from yolov9.bundle import BundleError, check_replaceable
from yolov9.commands import count, say
from yolov9.data import DataError
from yolov9.export.errors import ExportError
from yolov9.export.run import FORMATS, Format, export, tensorrt_here
from yolov9.export.source import real_pictures
from yolov9.export.suppression import Suppression
from yolov9.geometry import input_shapes
from yolov9.lineage import lineage_of
from yolov9.weights import WeightsError, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.export`. 0; 1 if it failed on its way; 2 if it could not be begun."""
    given = _parser().parse_args(arguments)
    formats: list[Format] = list(dict.fromkeys(given.format))
    try:
        input_shapes(given.imgsz)
        check_replaceable(given.out)
        nms = Suppression(given.conf, given.iou, given.max_det) if given.nms else None
        if "tensorrt" in formats:
            tensorrt_here()
        real = [] if given.data is None else real_pictures(given.data, given.images, given.imgsz, say)
        if given.data is not None and not real:
            raise ExportError(f"{given.data}: none of its images can be decoded, so nothing can be checked on them")
        model = load(given.weights)
        lineage = lineage_of(given.weights)
    except (BundleError, WeightsError, ExportError, DataError, packaged.ModelNotFound, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(f"{given.weights}: {model.name}, {len(model.names)} classes")
    try:
        bundle = export(
            model, given.out, name=given.name, input_size=given.imgsz, formats=formats, nms=nms, check=given.check,
            real=real, engines=given.engines, half_weights=given.half_weights, lineage=lineage, say=say,
        )  # fmt: skip
    except (BundleError, ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    files = ", ".join(sorted(bundle.files))
    print(f"wrote the bundle {bundle.name} ({bundle.hash}) to {bundle.path.resolve()}: {files}")
    return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m yolov9.export", description="Write a checkpoint as a model bundle.")
    p.add_argument("--weights", required=True, metavar="W",
                   help="checkpoint of any format (.safetensors, .pt, .ckpt), published name, or a bundle with "
                   "model.safetensors in it")  # fmt: skip
    p.add_argument("--out", required=True, type=Path, metavar="BUNDLE",
                   help="the bundle's folder; a bundle there is replaced")  # fmt: skip
    p.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], metavar="F",
                   help=f"one or more of {', '.join(FORMATS)}; the ONNX graph is always in it (onnx)")  # fmt: skip
    p.add_argument("--imgsz", type=int, default=640, metavar="N",
                   help="long side of the pictures, a multiple of 32 (%(default)s)")  # fmt: skip
    p.add_argument("--name", help="name of the bundle (the folder's)")
    p.add_argument("--half-weights", action="store_true",
                   help="round the weights to half precision first: a smaller model.safetensors")  # fmt: skip
    p.add_argument("--nms", action="store_true", help="also an ONNX graph with non-maximum suppression, nms.onnx")
    p.add_argument("--conf", type=float, default=0.25, metavar="X", help="--nms: lowest confidence (%(default)s)")
    p.add_argument("--iou", type=float, default=0.7, metavar="X",
                   help="--nms: overlap that makes two boxes one (%(default)s)")  # fmt: skip
    p.add_argument("--max-det", type=int, default=300, metavar="N", help="--nms: boxes a picture (%(default)s)")
    p.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                   help="run every file beside PyTorch before anything is written")  # fmt: skip
    p.add_argument("--data", metavar="D", help="data set or folder of pictures to check on, besides drawn ones")
    p.add_argument("--images", type=count, default=8, metavar="N", help="how many of them (%(default)s)")
    p.add_argument("--engines", type=Path, metavar="DIR",
                   help="tensorrt: folder of the engine (where the engine looks for it by itself)")  # fmt: skip
    return p
