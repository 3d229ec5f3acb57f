"""The layout of WongKinYiu/yolov9 ("R1"), which is ours: `model.N.cv1...`; a head of two branches has `cv2` to `cv5`.

A file is a pickled module, for training (two branches: the first one auxiliary), converted or gelan (one branch). Its
modules say more than its tensors: activations and normalisation are checked, since other ones give wrong results that
no shape would show.
"""

from __future__ import annotations

import re

from yolov9.checkpoints.errors import WeightsError, printable, shown
from yolov9.checkpoints.layouts import Contents, Refs, class_table, head_index, left_out, numbered
from yolov9.checkpoints.modules import Module

BN_EPS = 1e-3
_SILU = "torch.nn.modules.activation.SiLU"
_ACTIVATIONS = "torch.nn.modules.activation."
_OTHER_HEADS = re.compile(r"seg|pan|pose|obb|classif|world|triple|lin", re.IGNORECASE)
"""In the name of a head's class: not a detector with one or two branches."""


def from_module(module: Module, part: str) -> Contents:
    """Contents of a pickled R1 module. WeightsError for one that is no YOLOv9 detector."""
    check_modules(module)
    prefix, refs, left = numbered(module.tensors)
    check_head(module, f"{prefix}{head_index(refs)}")
    table = class_table(module.attributes.get("names"))
    return Contents("r1", from_numbered(refs), table, part, notes=left_out(left))


def from_numbered(refs: Refs) -> Refs:
    """State dict of R1's layers, given by `N...`. WeightsError for heads that are no detector's."""
    last = head_index(refs)
    check_branches(last, refs)
    return {f"model.{key}": ref for key, ref in refs.items()}


def check_branches(last: int, refs: Refs) -> None:
    """WeightsError for a triple head, a segmentation head."""
    if f"{last}.cv7.0.2.weight" in refs or f"{last}.dfl3.conv.weight" in refs:
        raise WeightsError(
            "a triple-headed training model (yolov9-*-triple: two auxiliary branches), which is not supported; the "
            "checkpoints with one auxiliary branch and the converted ones are"
        )
    if any(key.startswith(f"{last}.proto.") for key in refs):
        raise WeightsError("a segmentation model, not a detector")


def check_modules(module: Module) -> None:
    """WeightsError where the modules compute something else than YOLOv9's blocks of the same shapes would."""
    for child in module.children:
        if child.name.startswith(_ACTIVATIONS) and child.name != _SILU:
            raise WeightsError(f"its activation {child.path} is {child.name.rsplit('.', 1)[1]}, YOLOv9's is SiLU")
        if child.name == "torch.nn.modules.batchnorm.BatchNorm2d":
            eps = child.attributes.get("eps")
            if type(eps) is not float or abs(eps - BN_EPS) > 1e-9:
                raise WeightsError(f"its normalisation {child.path} has eps {shown(eps)}, YOLOv9's has {BN_EPS}")


def check_head(module: Module, path: str) -> None:
    """WeightsError if the last layer is the head of another task, or of three branches."""
    name = next((child.name for child in module.children if child.path == path), "")
    kind = name.rsplit(".", 1)[-1]
    if _OTHER_HEADS.search(kind):
        what = "a triple-headed training model (two auxiliary branches)" if "triple" in kind.lower() else "no detector"
        raise WeightsError(f"its head is {printable(name)}: {what}, which is not supported")
