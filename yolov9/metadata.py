"""What every exported file says of itself, as text by key, for whoever has the file alone.

In ONNX it lies in `metadata_props`, in OpenVINO's XML in `rt_info` under `yolov9`, in TorchScript in the extra file
`metadata.json`. Nothing of ours reads it: a bundle's model.json says the same, and is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

IMAGES = "uint8 RGB, (batch, height, width, 3); sides are multiples of 32, borders are filled with 114"
PREDICTIONS = "float32 (batch, 4 + classes, boxes): x1, y1, x2, y2 in input pixels, then scores 0..1; without NMS"


def metadata(
    names: Mapping[int, str], *, stride: int, name: str, input_size: int, output: str = PREDICTIONS
) -> dict[str, str]:
    """`names` are written as JSON: {"0": "person", ...}. `stride`: what the sides are multiples of."""
    return {
        "name": name,
        "names": json.dumps({str(i): text for i, text in names.items()}),
        "stride": str(stride),
        "input_size": str(input_size),
        "input": IMAGES,
        "output": output,
    }
