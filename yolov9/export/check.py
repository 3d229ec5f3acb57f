"""Does an exported file compute what the model does? Both run on the same pictures before the file is declared good."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from yolov9 import openvino_core
from yolov9.bundle import INPUT_NAME
from yolov9.export.errors import ExportError
from yolov9.export.graph import ServingGraph, quiet
from yolov9.export.suppression import Suppression
from yolov9.geometry import Letterbox, input_shape
from yolov9.nn.model import Detector
from yolov9.postprocess import postprocess, to_source

SCORE_BOUND = 1e-4
LOGIT_BOUND = 0.02
BOX_BOUND = 0.05
"""Largest differences from PyTorch that the check lets pass: class scores; the same before the sigmoid, since on
pictures that show nothing all scores are small and a wrong one hides; box sides in input pixels. Sums in another order
move a side by some thousandths of a pixel; a wrong anchor moves it by half a stride, 4 pixels."""
OWN_FACTOR = 4.0
"""Rounding may also move an output so many times as far as it moves PyTorch's own. A network that has hardly learnt
can magnify its rounding a thousandfold: .0003 and .3 px after the first epoch of a training. Then double precision is
the yardstick, for PyTorch and for the file."""
_LEAST_SCORE = 1e-4
"""Smaller ones are not compared before the sigmoid: engines approximate it to within some 1e-7."""

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Run = Callable[[Images], Floats]
"""(B, H, W, 3) -> the file's output for it."""


@dataclass(frozen=True)
class Case:
    """Pictures, and what the model that was loaded makes of them."""

    what: str
    images: Images
    expected: Floats
    exact: Callable[[], Floats] | None = None
    """The same, computed in double precision: for a model that magnifies its own rounding."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences between a file and the model."""

    engine: str
    score: float
    logit: float
    box_px: float
    images: int

    def __str__(self) -> str:
        return f"scores by {self.score:.2g} (logits by {self.logit:.2g}), boxes by {self.box_px:.2g} px"

    @property
    def acceptable(self) -> bool:
        """False for NaN too."""
        return self.within(Difference(self.engine, 0, 0, 0, 0))

    def within(self, own: Difference) -> bool:
        """Acceptable beside `own`, PyTorch's error by rounding."""
        pairs = (
            (self.score, SCORE_BOUND, own.score),
            (self.logit, LOGIT_BOUND, own.logit),
            (self.box_px, BOX_BOUND, own.box_px),
        )
        return all(found <= max(bound, OWN_FACTOR * rounding) for found, bound, rounding in pairs)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cases(model: Detector, input_size: int, real: Sequence[tuple[str, Images]] = ()) -> list[Case]:
    """`model` (as it is, in eval mode) on drawn pictures of several shapes and batches, then on `real`: name and
    (1, H, W, 3) of each."""
    wide = input_shape(input_size, 16, 9)
    shapes = [(1, *wide), (1, input_size, input_size), (2, *wide), (1, wide[1], wide[0])]
    chosen = [
        (f"drawn pictures of {width}x{height}, batch {batch}", pictures(batch, height, width, seed=number))
        for number, (batch, height, width) in enumerate(shapes)
    ]
    single = copy.deepcopy(model).cpu().float().eval()

    @cache
    def double() -> Detector:
        return copy.deepcopy(single).double()

    def exact(images: Images) -> Floats:
        with torch.inference_mode():
            found: Floats = double()((torch.from_numpy(images).double() / 255).permute(0, 3, 1, 2)).numpy()
        return found

    reference = ServingGraph(single)
    with torch.inference_mode():
        return [
            Case(what, images, reference(torch.from_numpy(images)).numpy(), partial(exact, images))
            for what, images in (*chosen, *real)
        ]


def compare(what: str, engine: str, run: Run, compared: Sequence[Case]) -> Difference:
    """Run a file on every case. ExportError if it differs from the model."""
    worst = Difference(engine, 0, 0, 0, sum(len(case.images) for case in compared))
    for case in compared:
        given = run(case.images)
        if given.shape != case.expected.shape:
            raise ExportError(
                f"{what} gives {given.shape} for {case.images.shape}, PyTorch {case.expected.shape} ({engine})"
            )
        found = _difference(engine, given, case.expected)
        if not found.acceptable and not _rounds_like_pytorch(engine, given, case):
            raise ExportError(f"{what} differs from PyTorch on {case.what}: {found} ({engine})")
        worst = Difference(
            engine, max(worst.score, found.score), max(worst.logit, found.logit), max(worst.box_px, found.box_px),
            worst.images,
        )  # fmt: skip
    return worst


def _rounds_like_pytorch(engine: str, given: Floats, case: Case) -> bool:
    """Whether the file is about as near to double precision as PyTorch is. False for NaN too."""
    if case.exact is None:
        return False
    exact = case.exact()
    return _difference(engine, given, exact).within(_difference("torch", case.expected, exact))


def compare_detections(what: str, plain: Run, suppressing: Run, chosen: Suppression, compared: Sequence[Case]) -> int:
    """Run a graph with NMS and the one without beside each other: the one must give what `postprocess` makes of the
    other. The number of detections; ExportError if any differs."""
    total = 0
    for case in compared:
        predictions, given = plain(case.images), suppressing(case.images)
        height, width = case.images.shape[1:3]
        whole = Letterbox.fit(width, height, width, height)
        for prediction, rows in zip(predictions, given, strict=True):
            expected = postprocess(
                prediction, whole, chosen.confidence, chosen.iou, max_detections=chosen.max_detections
            )
            found = to_source(rows[rows[:, 4] > 0], whole)
            if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=BOX_BOUND):
                raise ExportError(
                    f"{what} finds {len(found)} objects on {case.what} where yolov9.postprocess finds {len(expected)}"
                    if found.shape != expected.shape
                    else f"{what} finds other objects than yolov9.postprocess on {case.what}"
                )
            total += len(found)
    return total


def _difference(engine: str, given: Floats, expected: Floats) -> Difference:
    gap = np.abs(given - expected)
    scores = expected[:, 4:].astype(np.float64)
    # Divided by the sigmoid's slope, a small difference of scores is the difference before it.
    slope = np.where(np.minimum(scores, 1 - scores) > _LEAST_SCORE, scores * (1 - scores), np.inf)
    return Difference(
        engine, float(gap[:, 4:].max()), float((gap[:, 4:] / slope).max()), float(gap[:, :4].max()), len(given)
    )


def pictures(batch: int, height: int, width: int, seed: int) -> Images:
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


def onnx_runner(graph: bytes) -> tuple[str, Run]:
    """(its name, how to run it) of an engine for ONNX that is installed, in fp32 on the CPU."""
    try:
        import onnxruntime as ort
    except ImportError:
        return openvino_runner(graph, b"")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {ort.__version__}", lambda images: session.run(None, {INPUT_NAME: images})[0]


def openvino_runner(model: bytes, weights: bytes) -> tuple[str, Run]:
    """Of an .xml and a .bin file, or of an ONNX graph and nothing."""
    import openvino as ov

    core = openvino_core.core()
    compiled = core.compile_model(core.read_model(model, weights), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return f"openvino {ov.__version__.split('-')[0]}", lambda images: np.array(compiled(images)[0])


def torchscript_runner(file: bytes) -> tuple[str, Run]:
    with quiet():
        module = torch.jit.load(io.BytesIO(file), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(images: Images) -> Floats:
        with torch.inference_mode():
            predictions: Floats = module(torch.from_numpy(images)).numpy()
        return predictions

    return f"torch {torch.__version__}", run
