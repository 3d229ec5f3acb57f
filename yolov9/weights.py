"""Checkpoints in and out: every public format in, safetensors in the reference layout (`model.N...`) out.

Nothing in a file is ever executed: `yolov9.checkpoints` reads torch files with an interpreter that can only build data.
What a file does not say (classes, tower widths, groups, architecture) is read from the shapes of its tensors.
`python -m yolov9.weights inspect | convert | get` is the command to it.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before torch is imported, which `get` does without
    from yolov9.checkpoints.command import main

    sys.exit(main())

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from yolov9 import packaged
from yolov9.checkpoints.errors import WeightsError
from yolov9.checkpoints.matching import State, coco_names, fill, match, read_layout
from yolov9.checkpoints.reading import Checkpoint, read
from yolov9.files import write_file
from yolov9.nn.architecture import Architecture, ArchitectureError, architecture, parse
from yolov9.nn.model import Detector
from yolov9.nn.widths import widths

__all__ = ["WeightsError", "coco_names", "from_state_dict", "load", "open_checkpoint", "save", "skeleton", "to_bytes"]
BUNDLE_FILE = "model.safetensors"
_log = logging.getLogger("yolov9.weights")


def load(source: str | Path) -> Detector:
    """The model in a checkpoint, in eval mode, on the CPU, in fp32.

    `source`: a bundle's folder, the name of a packaged model or of a published checkpoint that was fetched
    (`python -m yolov9.weights get`), or a file: ours, WongKinYiu/yolov9's (training, converted or gelan),
    MultimediaTechLab/YOLO's (plain or Lightning), Ultralytics', a plain state dict. Class names come from the file;
    without them 80 classes are COCO's, others are class0, class1, ...
    Raises WeightsError, `yolov9.packaged.ModelNotFound`, or OSError from the disk.
    """
    checkpoint = open_checkpoint(source)
    model = skeleton(checkpoint)
    for note in checkpoint.notes:
        _log.warning("%s: %s", checkpoint.path, note)
    return fill(model, checkpoint.tensors())


def open_checkpoint(source: str | Path) -> Checkpoint:
    """The checkpoint of a name, folder or file as in `load`, recognised; its tensors are not read yet."""
    path = packaged.resolve(source)
    if path.is_dir():
        if not (path / BUNDLE_FILE).is_file():
            raise WeightsError(f"{path}: has no {BUNDLE_FILE}: a bundle without weights for PyTorch")
        path = path / BUNDLE_FILE
    checkpoint = read(path)
    return _with_fitting_names(checkpoint)


def skeleton(checkpoint: Checkpoint) -> Detector:
    """The detector that a checkpoint holds, without its weights (on the meta device). WeightsError if none fits."""
    try:
        return match(checkpoint.shapes, checkpoint.names, _described(checkpoint), _widths(checkpoint))
    except WeightsError as e:
        raise WeightsError(f"{checkpoint.path}: {e}") from None
    except ArchitectureError as e:
        raise WeightsError(f"{checkpoint.path}: its architecture: {e}") from None


def save(model: Detector, path: str | Path) -> None:
    """Write weights, class names and widths as safetensors, whole or not at all. WeightsError, OSError."""
    target = Path(path)
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: the name of a file of weights ends in .safetensors")
    write_file(target, to_bytes(model))


def to_bytes(model: Detector) -> bytes:
    """What `save` writes. The header's metadata: name, names (JSON), class_width, box_groups.

    And architecture (YAML) unless it is the packaged one of that name; widths (JSON) if channels are pruned.
    """
    towers = model.head.towers
    metadata = {
        "format": "pt",
        "name": model.name,
        "names": json.dumps(model.names),
        "class_width": str(towers.class_width),
        "box_groups": str(towers.box_groups),
    }
    if not model.arch.packaged:
        metadata["architecture"] = model.arch.to_yaml()
    if table := widths(model):
        metadata["widths"] = json.dumps(table)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    return safetensors.torch.save(state, metadata)


def from_state_dict(state: State, table: Any = None, arch: Architecture | None = None) -> Detector:
    """The model, in eval mode, that a state dict in the reference layout belongs to. The tensors are copied.

    `table`: class names, as a list or {id: name}; None gives COCO's or class0, ...
    `arch`: of a model that is not a packaged one.
    """
    return fill(match(state, table, arch), state)


def _described(checkpoint: Checkpoint) -> Architecture | None:
    """The architecture that a file of ours describes, where that is not a packaged one or its widths do not tell."""
    text, name = (checkpoint.metadata.get(key) for key in ("architecture", "name"))
    if text is not None:
        return parse(name or "architecture", text)
    return architecture(name or "") if "widths" in checkpoint.metadata else None


def _widths(checkpoint: Checkpoint) -> Any:
    """The table of widths of a pruned model, unchecked; None if the model is not pruned."""
    text = checkpoint.metadata.get("widths")
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"its table of widths is not JSON: {e}") from e


def _with_fitting_names(checkpoint: Checkpoint) -> Checkpoint:
    """Other people's conversion scripts write 80 names beside a head of three classes: such names mean nothing."""
    if checkpoint.names is None or checkpoint.layout not in ("r1", "ultralytics"):
        return checkpoint
    try:
        classes = read_layout(checkpoint.shapes).classes
    except WeightsError as e:
        raise WeightsError(f"{checkpoint.path}: {e}") from None
    if classes == len(checkpoint.names):
        return checkpoint
    note = f"names {len(checkpoint.names)} classes where its head has {classes}: the names are not used"
    generic = [f"class{i}" for i in range(classes)]
    return replace(checkpoint, names=generic, notes=(*checkpoint.notes, note))
