"""The graph that every format holds: uint8 pictures as cameras give them -> decoded boxes and scores.

Batch, height and width stay dynamic, and everything that depends on them alone (anchors) folds away when an engine
makes them static.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from yolov9.bundle import INPUT_NAME, OUTPUT_NAME
from yolov9.export.errors import ExportError
from yolov9.nn.model import Detector

OPSET = 17
"""It has every operator of the graph; onnxruntime since 1.12, OpenVINO since 2022.3, TensorRT since 8.5 read it."""
TORCHSCRIPT_METADATA = "metadata.json"
_TRACE_SHAPE = (2, 96, 160)
"""Pictures of the traced call: batch, height, width all different, so that none can be taken for another."""


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


def to_onnx(model: Detector, properties: Mapping[str, str]) -> bytes:
    """The ONNX graph of a fused model, with `properties` (see `yolov9.metadata`) in it. ExportError."""
    try:
        import onnx
    except ImportError as e:
        raise ExportError("export needs the package onnx: pip install 'yolov9-server[train]'") from e
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        # The exporter by tracing: it needs no onnxscript, keeps module names in node names, writes plain operators.
        torch.onnx.export(
            ServingGraph(model).eval(),
            (_example(),),
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
    onnx.helper.set_model_props(proto, dict(properties))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4 + len(model.names)  # the exporter leaves it open
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def to_torchscript(model: Detector, properties: Mapping[str, str]) -> bytes:
    """The same of a fused model as TorchScript: `torch.jit.load` needs neither this package nor Python."""
    stream = io.BytesIO()
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(ServingGraph(model).eval(), (_example(),), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, stream, _extra_files={TORCHSCRIPT_METADATA: json.dumps(dict(properties), indent=2)})
    return stream.getvalue()


def to_openvino(graph: bytes, properties: Mapping[str, str]) -> tuple[bytes, bytes]:
    """An ONNX graph -> content of OpenVINO's .xml and .bin files, in fp32."""
    import openvino as ov

    from yolov9.engines.openvino import to_files

    return to_files(ov.convert_model(io.BytesIO(graph)), properties)


def _example() -> Tensor:
    batch, height, width = _TRACE_SHAPE
    return torch.zeros(batch, height, width, 3, dtype=torch.uint8)


@contextmanager
def quiet() -> Iterator[None]:
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
