"""`python -m yolov9.export`: from a checkpoint to a model bundle that the server and every engine can run.

The graph is the fused model without its auxiliary branch. It takes uint8 pictures as cameras give them and gives
decoded boxes; batch, height and width stay dynamic, and everything that depends on them alone (anchors) folds away
when an engine makes them static. Before the bundle is written, the graph is run beside the model that was loaded.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from yolov9 import packaged
from yolov9.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, BundleError, write_bundle
from yolov9.geometry import input_shape, input_shapes
from yolov9.nn.cost import gflops, parameters
from yolov9.nn.model import Detector
from yolov9.weights import WeightsError, load, to_bytes

OPSET = 17
"""It has every operator of the graph; onnxruntime since 1.12, OpenVINO since 2022.3, TensorRT since 8.5 read it."""
SCORE_BOUND = 1e-4
LOGIT_BOUND = 0.02
BOX_BOUND = 0.05
"""Largest differences from PyTorch that the check lets pass: class scores; the same before the sigmoid, since on
pictures that show nothing all scores are small and a wrong one hides; box sides in input pixels. Sums in another order
move a side by some thousandths of a pixel; a wrong anchor moves it by half a stride, 4 pixels."""
_LEAST_SCORE = 1e-4
"""Smaller ones are not compared before the sigmoid: engines approximate it to within some 1e-7."""
_TRACE_SHAPE = (2, 96, 160)
"""Pictures of the traced call: batch, height, width all different, so that none can be taken for another."""

Array = npt.NDArray[np.generic]
Say = Callable[[str], None]


class ExportError(Exception):
    """The graph cannot be made, or does not compute what the model does."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences between the graph and the model."""

    engine: str
    score: float
    logit: float
    box_px: float

    def __str__(self) -> str:
        return f"scores by {self.score:.2g} (logits by {self.logit:.2g}), boxes by {self.box_px:.2g} px"

    @property
    def acceptable(self) -> bool:
        """False for NaN too."""
        return self.score <= SCORE_BOUND and self.logit <= LOGIT_BOUND and self.box_px <= BOX_BOUND


class ServingGraph(nn.Module):
    """What the bundle's graph computes: (B, H, W, 3) uint8 RGB -> (B, 4 + classes, A) float32."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        # Transposed last: engines whose convolutions read channels-last cancel it against their own reordering
        # (OpenVINO: 1 ms of 33 at 640x384 on one thread).
        out: Tensor = self.detector((images.float() * (1 / 255)).permute(0, 3, 1, 2))
        return out


def export(
    model: Detector,
    folder: str | Path,
    *,
    name: str | None = None,
    input_size: int = 640,
    check: bool = True,
    lineage: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
) -> Bundle:
    """Write `model` (left as it is) as a bundle and return it.

    `name`: the bundle's, by default the folder's. `input_size`: long side of the pictures, a multiple of 32.
    `lineage`: what is known of the weights. `say` gets progress lines.
    Raises ExportError, BundleError, ValueError for an input size that cannot be, OSError from the disk.
    """
    input_shapes(input_size)
    target = Path(folder)
    slim = copy.deepcopy(model).cpu().float().eval().prune_auxiliary()
    weights = to_bytes(slim)
    served = slim.fuse()
    cost = {"parameters": parameters(served), "gflops": round(gflops(served, input_size, input_size), 2)}
    say(f"{served.name}: {cost['parameters']:,} parameters fused, {cost['gflops']} GFLOPs at {input_size}x{input_size}")
    bundle_name = name or target.resolve().name
    graph = to_onnx(served, {"name": bundle_name, "input_size": str(input_size)})
    say(f"ONNX graph: {len(graph) / 1e6:.1f} MB, opset {OPSET}, dynamic batch, height and width")
    story = {**(lineage or {}), "architecture": served.name, **cost, "torch": str(torch.__version__)}
    if check:
        difference = compare(graph, model, input_size)
        say(
            f"checked in {difference.engine}: differs from PyTorch at most in {difference} "
            f"(bounds {SCORE_BOUND}, {LOGIT_BOUND}, {BOX_BOUND} px)"
        )
        story["check"] = asdict(difference)
    return write_bundle(
        target,
        name=bundle_name,
        names=model.names,
        input_size=input_size,
        precision="fp32",
        onnx=graph,
        safetensors=weights,
        lineage=story,
    )


def to_onnx(model: Detector, metadata: Mapping[str, str]) -> bytes:
    """The ONNX graph of a fused model, with `metadata` and the class names in its properties. ExportError."""
    try:
        import onnx
    except ImportError as e:
        raise ExportError("export needs the package onnx: pip install 'yolov9-server[train]'") from e
    batch, height, width = _TRACE_SHAPE
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        # The exporter by tracing: it needs no onnxscript, keeps module names in node names, writes plain operators.
        torch.onnx.export(
            ServingGraph(model).eval(),
            (torch.zeros(batch, height, width, 3, dtype=torch.uint8),),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={
                INPUT_NAME: {0: "batch", 1: "height", 2: "width"},
                OUTPUT_NAME: {0: "batch", 2: "anchors"},
            },
        )
        proto = onnx.load(file)
    properties = {**metadata, "names": json.dumps(model.names), "stride": str(model.stride)}
    onnx.helper.set_model_props(proto, properties)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4 + len(model.names)  # the exporter leaves it open
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def compare(graph: bytes, model: Detector, input_size: int = 640) -> Difference:
    """Run graph and model (as it is, in eval mode) on pictures of several shapes. ExportError if they differ."""
    engine, run = _runner(graph)
    reference = ServingGraph(copy.deepcopy(model).cpu().float().eval())
    wide = input_shape(input_size, 16, 9)
    cases = [(1, *wide), (1, input_size, input_size), (2, *wide), (1, wide[1], wide[0])]
    worst = Difference(engine, 0, 0, 0)
    for number, (batch, height, width) in enumerate(cases):
        images = pictures(batch, height, width, seed=number)
        with torch.inference_mode():
            expected = reference(torch.from_numpy(images)).numpy()
        given = run(images)
        if given.shape != expected.shape:
            raise ExportError(f"the graph gives {given.shape} for {images.shape}, PyTorch {expected.shape}")
        found = _difference(engine, given, expected)
        if not found.acceptable:
            raise ExportError(f"the graph differs from PyTorch at {width}x{height}, batch {batch}: {found}")
        worst = Difference(
            engine, max(worst.score, found.score), max(worst.logit, found.logit), max(worst.box_px, found.box_px)
        )
    return worst


def _difference(engine: str, given: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> Difference:
    gap = np.abs(given - expected)
    scores = expected[:, 4:].astype(np.float64)
    # Divided by the sigmoid's slope, a small difference of scores is the difference before it.
    slope = np.where(np.minimum(scores, 1 - scores) > _LEAST_SCORE, scores * (1 - scores), np.inf)
    return Difference(engine, float(gap[:, 4:].max()), float((gap[:, 4:] / slope).max()), float(gap[:, :4].max()))


def pictures(batch: int, height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """(B, H, W, 3) uint8 with the statistics of photographs: shading, sharp-edged objects, a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    images = np.empty((batch, height, width, 3), np.uint8)
    for image in images:
        canvas = np.full((height, width, 3), 128.0)
        for _ in range(6):
            fx, fy, phase = random.uniform(0.5, 6, 3)
            canvas += np.sin(fx * x + fy * y + phase)[..., None] * random.uniform(-40, 40, 3)
        for _ in range(12):
            top, left = int(random.integers(height - 8)), int(random.integers(width - 8))
            h, w = (int(n) for n in random.integers(8, max(height // 3, 9), 2))
            canvas[top : top + h, left : left + w] = random.uniform(0, 255, 3)
        image[...] = (canvas + random.normal(0, 4, canvas.shape)).clip(0, 255)
    return images


def _runner(graph: bytes) -> tuple[str, Callable[[Array], npt.NDArray[np.float32]]]:
    """(its name, images -> predictions) of an engine that is installed, in fp32 on the CPU."""
    try:
        import onnxruntime as ort
    except ImportError:
        import openvino as ov

        core = ov.Core()
        compiled = core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return f"OpenVINO {ov.__version__}", lambda images: np.array(compiled(images)[0])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {ort.__version__}", lambda images: session.run(None, {INPUT_NAME: images})[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of itself (deprecated since dynamo) and of numbers in shapes, which are meant to be fixed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _lineage(weights: str) -> dict[str, Any]:
    """Which file the weights were read from."""
    path = packaged.resolve(weights)
    file = path / "model.safetensors" if path.is_dir() else path
    with file.open("rb") as stream:
        return {"weights": file.name, "weights_sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.export`; the exit status."""
    parser = argparse.ArgumentParser("python -m yolov9.export", description="Write a checkpoint as a model bundle.")
    parser.add_argument(
        "--weights", required=True, help="safetensors, a state dict, a bundle's folder or a packaged name"
    )
    parser.add_argument("--out", required=True, help="the bundle's folder; a bundle there is replaced")
    parser.add_argument(
        "--format", choices=["onnx"], default="onnx", help="what the bundle holds (default: %(default)s)"
    )
    parser.add_argument("--imgsz", type=int, default=640, help="long side of the pictures (default: %(default)s)")
    parser.add_argument("--name", help="name of the bundle (default: the folder's)")
    parser.add_argument("--no-check", action="store_true", help="do not run the graph beside PyTorch")
    given = parser.parse_args(arguments)
    try:
        model = load(given.weights)
        print(f"{given.weights}: {model.name}, {len(model.names)} classes", flush=True)
        bundle = export(
            model,
            given.out,
            name=given.name,
            input_size=given.imgsz,
            check=not given.no_check,
            lineage=_lineage(given.weights),
            say=lambda line: print(line, flush=True),
        )
    except (WeightsError, BundleError, ExportError, packaged.ModelNotFound, ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(
        f"wrote the bundle {bundle.name} ({bundle.hash}) to {bundle.path.resolve()}: {', '.join(sorted(bundle.files))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
