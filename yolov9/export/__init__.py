"""From a checkpoint to what engines run: `python -m yolov9.export`.

    graph        the model as ONNX, TorchScript and OpenVINO, in fp32
    suppression  NMS behind an ONNX graph, of standard operators
    check        every file beside the model that was loaded
    run          `export`: all of it, as a bundle
    command      the command line

The graph is the fused model without its auxiliary branch. It takes uint8 pictures as cameras give them and gives
decoded boxes. Needs PyTorch and onnx.
"""

from yolov9.export.check import Difference, pictures
from yolov9.export.errors import ExportError
from yolov9.export.graph import ServingGraph, to_onnx
from yolov9.export.run import FORMATS, Format, export
from yolov9.export.suppression import Suppression
from yolov9.lineage import lineage_of

__all__ = [
    "FORMATS",
    "Difference",
    "ExportError",
    "Format",
    "ServingGraph",
    "Suppression",
    "export",
    "lineage_of",
    "pictures",
    "to_onnx",
]
