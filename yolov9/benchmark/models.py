"""The models that are measured, as bundles: given ones as they are; checkpoints and random ones are exported first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolov9 import openvino_core, packaged
from yolov9.bundle import MANIFEST, Bundle, BundleError
from yolov9.opening import ModelError, load_checkpoint

if TYPE_CHECKING:
    from yolov9.nn.model import Detector

_SETTLING_SIDE = 256
Say = Callable[[str], None]


class BenchError(Exception):
    """The measurement cannot be begun. One sentence."""


@dataclass(frozen=True)
class Model:
    label: str
    """Unique in the run."""
    bundle: Bundle
    operations_per_pixel: float | None
    """Of one image, two for a multiply-add of the convolutions; None where OpenVINO is not there to count them."""


def open_models(weights: list[str], architectures: list[str], scratch: Path, say: Say) -> list[Model]:
    """`weights`: bundles, packaged names, checkpoints. `architectures`: names such as gelan-c, with random weights.
    What has to be exported goes into `scratch`. BenchError."""
    found: list[tuple[str, Bundle]] = []
    try:
        for source in weights:
            path = packaged.resolve(source)
            is_bundle = (path / MANIFEST).is_file()
            bundle = Bundle.load(path) if is_bundle else _export_checkpoint(path, scratch / str(len(found)), say)
            found.append((bundle.name if is_bundle else path.stem, bundle))
        for name in architectures:
            found.append((f"{name} (random)", _export_random(name, scratch / str(len(found)), say)))
    except (packaged.ModelNotFound, BundleError) as error:
        raise BenchError(str(error)) from error
    labels = _unique([label for label, _ in found])
    return [Model(label, bundle, _operations(bundle)) for label, (_, bundle) in zip(labels, found, strict=True)]


def operations(bundle: Bundle, width: int, height: int) -> int:
    """For one image of that size, counted in the graph: two for each multiply-add of its convolutions."""
    graph = openvino_core.core().read_model(str(bundle.onnx))
    graph.reshape([1, height, width, 3])
    total = 0
    for node in graph.get_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution"):
            weights, output = node.input(1).get_shape(), node.output(0).get_shape()
            per_output = weights[1:] if node.get_type_name() == "Convolution" else weights[2:]
            total += 2 * math.prod(output) * math.prod(per_output)
    return total


def _operations(bundle: Bundle) -> float | None:
    side = 320
    try:
        return operations(bundle, side, side) / side**2
    except ImportError:
        return None


def _unique(labels: list[str]) -> list[str]:
    taken: dict[str, int] = {}
    result = []
    for label in labels:
        taken[label] = taken.get(label, 0) + 1
        result.append(label if taken[label] == 1 else f"{label}-{taken[label]}")
    return result


def _export_checkpoint(path: Path, folder: Path, say: Say) -> Bundle:
    try:
        model = load_checkpoint(path)
    except ModelError as error:
        raise BenchError(str(error)) from error
    return _export(model, folder, path.stem, say)


def _export_random(name: str, folder: Path, say: Say) -> Bundle:
    try:
        import torch

        from yolov9.nn.architecture import ArchitectureError
        from yolov9.nn.model import build
    except ImportError as error:
        raise BenchError(f"--model {name} needs PyTorch: pip install 'yolov9-server[train]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = build(name)
        except (ArchitectureError, ValueError) as error:
            raise BenchError(str(error)) from error
        _settle(model)
    return _export(model, folder, name, say)


def _settle(model: Detector) -> None:
    """Set the running statistics to those of noise: in a new model signals fade from layer to layer to numbers so small
    that CPUs compute with them at a hundredth of their speed."""
    import torch

    from yolov9.nn.statistics import measure_statistics

    measure_statistics(model, [torch.rand(2, 3, _SETTLING_SIDE, _SETTLING_SIDE)])


def _export(model: Detector, folder: Path, name: str, say: Say) -> Bundle:
    from yolov9.export import ExportError, export

    say(f"{name}: exported for this run")
    try:
        return export(model, folder, name=_plain(name), check=False)
    except (ExportError, ValueError, OSError) as error:
        raise BenchError(f"{name}: {error}") from error


def _plain(name: str) -> str:
    """As a bundle's name may be."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("._-")[:100] or "model"
