"""What is calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from yolov9.data import inputs
from yolov9.data.inputs import Inputs
from yolov9.quantization import QuantizeError


def read_inputs(images: Sequence[Path], input_size: int, say: Callable[[str], None] = lambda line: None) -> Inputs:
    """As `yolov9.data.inputs.read_inputs`. QuantizeError if no picture is left."""
    found = inputs.read_inputs(images, input_size, say)
    if not found:
        raise QuantizeError(f"none of {len(images)} images can be decoded: there is nothing to calibrate on")
    return found
