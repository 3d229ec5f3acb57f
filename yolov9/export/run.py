"""A model as a bundle with files of the wanted formats: made, run beside the model, then written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from yolov9.bundle import NMS_ONNX, OPENVINO_MODEL, OPENVINO_WEIGHTS, TORCHSCRIPT, Bundle, write_bundle
from yolov9.engines.base import EngineError
from yolov9.export import check as checks
from yolov9.export.errors import ExportError
from yolov9.export.graph import OPSET, to_onnx, to_openvino, to_torchscript
from yolov9.export.suppression import Suppression, add_suppression
from yolov9.geometry import input_shapes
from yolov9.metadata import metadata
from yolov9.nn.cost import gflops, parameters
from yolov9.nn.model import Detector
from yolov9.weights import to_bytes

Format = Literal["onnx", "openvino", "torchscript", "tensorrt"]
FORMATS: tuple[Format, ...] = ("onnx", "openvino", "torchscript", "tensorrt")

Say = Callable[[str], None]


def export(
    model: Detector,
    folder: str | Path,
    *,
    name: str | None = None,
    input_size: int = 640,
    formats: Sequence[Format] = ("onnx",),
    nms: Suppression | None = None,
    check: bool = True,
    real: Sequence[tuple[str, checks.Images]] = (),
    engines: Path | None = None,
    half_weights: bool = False,
    lineage: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
) -> Bundle:
    """Write `model` (left as it is) as a bundle and return it. model.onnx is always in it.

    `name`: the bundle's, by default the folder's. `input_size`: long side of the pictures, a multiple of 32. `nms`:
    also a graph with suppression. `check`: run every file beside the model before anything is written, on drawn
    pictures and on `real` (name, (1, H, W, 3) RGB). `engines`: folder of TensorRT's engine, by default where it is
    looked for. `half_weights`: round the weights to half precision first: model.safetensors is half as large, and all
    files still hold the same model. `lineage`: what is known of the weights. `say` gets progress lines.
    Raises ExportError, BundleError, ValueError for an input size that cannot be, OSError from the disk.
    """
    input_shapes(input_size)
    if "tensorrt" in formats:
        tensorrt_here()
    target = Path(folder)
    slim = copy.deepcopy(model).cpu().float().eval().prune_auxiliary()
    weights = to_bytes(_rounded(slim) if half_weights else slim)
    model = copy.deepcopy(slim.float()) if half_weights else model
    served = slim.fuse()
    cost = {"parameters": parameters(served), "gflops": round(gflops(served, input_size, input_size), 2)}
    say(f"{served.name}: {cost['parameters']:,} parameters fused, {cost['gflops']} GFLOPs at {input_size}x{input_size}")
    bundle_name = name or target.resolve().name
    about = metadata(model.names, stride=served.stride, name=bundle_name, input_size=input_size)
    graph = to_onnx(served, about)
    say(f"ONNX graph: {len(graph) / 1e6:.1f} MB, opset {OPSET}, dynamic batch, height and width")
    extra = _more(served, graph, about, formats, nms, say)
    story = {**(lineage or {}), "architecture": served.name, **cost, "torch": str(torch.__version__)}
    if check:
        compared = checks.cases(model, input_size, real)
        story["check"] = _check(graph, extra, nms, compared, say)
        if not real:
            say("checked on drawn pictures; --data checks on real ones")
    bundle = write_bundle(
        target,
        name=bundle_name,
        names=model.names,
        input_size=input_size,
        precision="fp32",
        onnx=graph,
        safetensors=weights,
        lineage=story,
        extra=extra,
    )
    if "tensorrt" in formats:
        build_tensorrt(bundle, engines, say)
    return bundle


def _rounded(model: Detector) -> Detector:
    """In half precision. ExportError where that does not reach."""
    model = model.half()
    broken = next((key for key, value in model.state_dict().items() if not value.isfinite().all()), None)
    if broken is not None:
        raise ExportError(f"half weights: {broken} holds numbers that are too large for half precision")
    return model


def _more(
    served: Detector,
    graph: bytes,
    about: Mapping[str, str],
    formats: Sequence[Format],
    nms: Suppression | None,
    say: Say,
) -> dict[str, bytes]:
    """Files beside model.onnx."""
    extra: dict[str, bytes] = {}
    if nms is not None:
        extra[NMS_ONNX] = with_suppression(graph, len(served.names), nms)
    if "openvino" in formats:
        extra[OPENVINO_MODEL], extra[OPENVINO_WEIGHTS] = to_openvino(graph, about)
    if "torchscript" in formats:
        extra[TORCHSCRIPT] = to_torchscript(served, about)
    for file, data in extra.items():
        say(f"{file}: {len(data) / 1e6:.1f} MB")
    return extra


def with_suppression(graph: bytes, classes: int, nms: Suppression) -> bytes:
    """A graph of ours with suppression behind it."""
    import onnx

    model = onnx.load_from_string(graph)
    add_suppression(model, classes, nms)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**properties, "output": nms.output})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _check(
    graph: bytes, extra: Mapping[str, bytes], nms: Suppression | None, compared: Sequence[checks.Case], say: Say
) -> dict[str, Any]:
    """By format, how far it is from the model. ExportError."""
    plain = checks.onnx_runner(graph)
    runners = {"onnx": ("the ONNX graph", *plain)}
    if OPENVINO_MODEL in extra:
        made = checks.openvino_runner(extra[OPENVINO_MODEL], extra[OPENVINO_WEIGHTS])
        runners["openvino"] = ("the OpenVINO model", *made)
    if TORCHSCRIPT in extra:
        runners["torchscript"] = ("the TorchScript file", *checks.torchscript_runner(extra[TORCHSCRIPT]))
    found: dict[str, Any] = {}
    for key, (what, engine, run) in runners.items():
        difference = checks.compare(what, engine, run, compared)
        found[key] = difference.to_json()
        say(
            f"checked {key} in {engine} on {difference.images} images: differs from PyTorch at most in {difference} "
            f"(bounds {checks.SCORE_BOUND}, {checks.LOGIT_BOUND}, {checks.BOX_BOUND} px)"
        )
    if nms is not None:
        engine, run = checks.onnx_runner(extra[NMS_ONNX])
        count = checks.compare_detections("the graph with NMS", plain[1], run, nms, compared)
        found["nms"] = {"engine": engine, "detections": count}
        say(f"checked nms in {engine}: the {count} detections of yolov9.postprocess")
    return found


def tensorrt_here() -> str:
    """Which TensorRT there is. ExportError says what to install."""
    from yolov9.engines.tensorrt.api import load

    try:
        return str(load())
    except EngineError as error:
        raise ExportError(f"format tensorrt: {error}") from None


def build_tensorrt(bundle: Bundle, engines: Path | None, say: Say) -> Path:
    """Build the engine of a bundle that is written. ExportError leaves the bundle."""
    from yolov9.engines.tensorrt.cache import default_folder
    from yolov9.engines.tensorrt.provide import build_engine

    say("tensorrt: building for every input shape takes minutes")
    try:
        return build_engine(bundle, engines or default_folder(), say=say)
    except EngineError as error:
        raise ExportError(
            f"the bundle is written to {bundle.path}, but TensorRT cannot build its engine: {error}"
        ) from None
