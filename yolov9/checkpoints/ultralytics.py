"""Checkpoints of Ultralytics (`yolov9t.pt` and kin): a pickled module in R1's converted layout, names inside.

They differ from R1's in the head's towers only: the box tower is not grouped, the T model's class tower is 80 wide, and
some releases (8.3.0 and around) built the class tower of depthwise convolutions. `matching` reads all that from shapes.
"""

from __future__ import annotations

from dataclasses import replace

from yolov9.checkpoints import r1
from yolov9.checkpoints.layouts import Contents
from yolov9.checkpoints.modules import Module

PACKAGE = "ultralytics."


def from_module(module: Module, part: str) -> Contents:
    """Contents of a pickled Ultralytics module. WeightsError for one that is no YOLOv9 detector."""
    return replace(r1.from_module(module, part), layout="ultralytics")
