"""Checkpoints in and out: state dicts in the reference layout (`model.N...`), as safetensors or as torch files.

Nothing in a file is ever executed: torch files are read with `weights_only=True`, whatever needs more is refused. What
a file does not say (classes, tower widths, groups, architecture) is read from the shapes of its tensors.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from yolov9 import packaged
from yolov9.nn.architecture import Architecture, architecture, names
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector, class_names

BUNDLE_FILE = "model.safetensors"
_NESTED = ("ema", "state_dict", "model")
"""Where training scripts put the state dict inside a torch file, best first."""
_SHOWN = 4
"""Keys of each kind that an error names."""
State = Mapping[str, Tensor]


class WeightsError(Exception):
    """A checkpoint that cannot be read or written: one sentence with the file and the keys."""


def load(source: str | Path) -> Detector:
    """The model in a checkpoint, in eval mode, on the CPU, in fp32.

    `source`: a bundle's folder, the name of a packaged model, a safetensors file, or a torch file with a plain state
    dict. Class names come from the file; without them 80 classes are COCO's, others are class0, class1, ...
    Raises WeightsError, `yolov9.packaged.ModelNotFound`, or OSError from the disk.
    """
    path = packaged.resolve(source)
    if path.is_dir():
        if not (path / BUNDLE_FILE).is_file():
            raise WeightsError(f"{path}: has no {BUNDLE_FILE}: a bundle without weights for PyTorch")
        path = path / BUNDLE_FILE
    state, table = _read(path)
    try:
        return from_state_dict(state, table)
    except WeightsError as e:
        raise WeightsError(f"{path}: {e}") from None


def save(model: Detector, path: str | Path) -> None:
    """Write weights, class names and widths as safetensors, whole or not at all. WeightsError, OSError."""
    target = Path(path)
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: the name of a file of weights ends in .safetensors")
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with scratch.open("xb") as stream:
            stream.write(to_bytes(model))
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def to_bytes(model: Detector) -> bytes:
    """What `save` writes. The header's metadata: name, names (JSON), class_width, box_groups."""
    towers = model.head.towers
    metadata = {
        "format": "pt",
        "name": model.name,
        "names": json.dumps(model.names),
        "class_width": str(towers.class_width),
        "box_groups": str(towers.box_groups),
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    return safetensors.torch.save(state, metadata)


def from_state_dict(state: State, table: Any = None) -> Detector:
    """The model, in eval mode, that a state dict in the reference layout belongs to. The tensors are copied.

    `table`: class names, as a list or {id: name}; None gives COCO's or class0, ...
    """
    layout = _layout(state)
    class_table = _class_table(table, layout.classes)
    fits = [_Fit(_skeleton(arch, layout, class_table), state) for arch in layout.candidates]
    best = min(fits, key=lambda fit: fit.wrong)
    if best.wrong:
        raise WeightsError(best.describe())
    filled = {
        k: t.detach().to(torch.float32 if t.is_floating_point() else t.dtype, copy=True) for k, t in state.items()
    }
    filled |= {k: torch.zeros((), dtype=torch.long) for k in best.expected if k not in filled}  # batch counters
    best.model.load_state_dict(filled, assign=True)
    return best.model.eval()


def coco_names() -> list[str]:
    """The 80 class names of COCO, in the order of every published checkpoint."""
    data = yaml.safe_load((files("configs") / "coco.yaml").read_text(encoding="utf-8"))
    return [str(name) for name in data["names"]]


def _read(path: Path) -> tuple[State, Any]:
    """(state dict, class names or None) of a file, told apart by its first bytes."""
    with path.open("rb") as stream:
        start = stream.read(9)
    # A zip archive, or a pickle (protocol 2 to 5) that is not the length of a safetensors header and its opening brace.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:] != b"{"):
        return _read_torch(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except safetensors.SafetensorError as e:
        raise WeightsError(f"{path}: neither safetensors nor a torch file ({e})") from e
    try:
        return state, json.loads(metadata["names"]) if "names" in metadata else None
    except ValueError as e:
        raise WeightsError(f"{path}: its class names are not JSON: {e}") from e


def _read_torch(path: Path) -> tuple[State, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise WeightsError(
            f"{path}: holds pickled Python objects, which only running code from the file would open: refused. "
            "Wanted is a plain state dict: torch.save(model.state_dict(), ...)"
        ) from e
    except (RuntimeError, EOFError, ValueError, KeyError) as e:
        raise WeightsError(f"{path}: not a readable torch file: {' '.join(str(e).split())[:200]}") from e
    table = content.get("names") if isinstance(content, dict) else None
    for key in ("", *_NESTED):
        state = content.get(key) if key and isinstance(content, dict) else content
        if isinstance(state, dict) and state and all(isinstance(t, Tensor) for t in state.values()):
            return state, table
    raise WeightsError(f"{path}: holds no state dict, neither by itself nor as {', '.join(_NESTED)}")


@dataclass(frozen=True)
class _Layout:
    """What the head's tensors say."""

    classes: int
    towers: Towers
    auxiliary: Towers
    fused: bool
    candidates: list[Architecture]
    """Architectures with that many layers and branches; sizes differ in shapes only."""


def _layout(state: State) -> _Layout:
    numbers = [
        int(part[1]) for part in (key.split(".", 2) for key in state) if part[0] == "model" and part[1].isdecimal()
    ]
    last = max(numbers, default=-1)
    dual = f"model.{last}.cv5.0.2.weight" in state
    if f"model.{last}.cv3.0.2.weight" not in state:
        raise WeightsError(
            f"no detection head in the reference layout (model.N.cv3...) among {len(state)} tensors, such as "
            f"{_some(list(state))}"
        )
    arches = [architecture(name) for name in names()]
    candidates = [a for a in arches if len(a.layers) == last + 1 and bool(a.head.auxiliary) == dual]
    if not candidates:
        raise WeightsError(
            f"no architecture has {last + 1} layers with {'an' if dual else 'no'} auxiliary branch; there are "
            f"{', '.join(a.name for a in arches)}"
        )
    classes, auxiliary = _towers(state, f"model.{last}.cv2", f"model.{last}.cv3")
    main = auxiliary
    if dual:
        classes, main = _towers(state, f"model.{last}.cv4", f"model.{last}.cv5")
    fused = not any(".bn." in key for key in state)
    return _Layout(classes, main, auxiliary, fused, candidates)


def _towers(state: State, box: str, cls: str) -> tuple[int, Towers]:
    """(classes, widths) of one branch of the head, from the shapes of its finest level."""
    try:
        classes, width = state[f"{cls}.0.2.weight"].shape[:2]
        out, per_group = state[f"{box}.0.1.conv.weight"].shape[:2]
        return int(classes), Towers(int(width), int(out) // int(per_group))
    except (KeyError, ValueError, ZeroDivisionError) as e:
        raise WeightsError(f"the head {box.rsplit('.', 1)[0]} lacks tensors or has strange ones: {e}") from e


def _class_table(table: Any, classes: int) -> dict[int, str]:
    try:
        if table is None:
            return class_names(coco_names() if classes == 80 else classes)
        names = class_names({int(k): v for k, v in table.items()} if isinstance(table, dict) else list(table))
    except (TypeError, ValueError) as e:
        raise WeightsError(f"its class names are not a table of names: {e}") from e
    if len(names) != classes:
        raise WeightsError(f"names {len(names)} classes, but its head has {classes}")
    return names


def _skeleton(arch: Architecture, layout: _Layout, names: dict[int, str]) -> Detector:
    """The model without memory for its weights: shapes only."""
    try:
        with torch.device("meta"):
            model = Detector(arch, names, layout.towers, layout.auxiliary)
    except ValueError as e:
        raise WeightsError(f"its head cannot be built: {e}") from e
    return model.fuse() if layout.fused else model


class _Fit:
    """How well a state dict fits a model."""

    def __init__(self, model: Detector, state: State) -> None:
        self.model = model
        self.expected = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        given = {key: tuple(t.shape) for key, t in state.items()}
        # Converters drop the counters of batches, which only a cumulative average would read.
        self.missing = [k for k in self.expected if k not in given and not k.endswith("num_batches_tracked")]
        self.unexpected = [k for k in given if k not in self.expected]
        self.shapes = [
            f"{key} {shape} instead of {self.expected[key]}"
            for key, shape in given.items()
            if key in self.expected and shape != self.expected[key]
        ]
        self.wrong = len(self.missing) + len(self.unexpected) + len(self.shapes)

    def describe(self) -> str:
        parts = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.shapes))
        text = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in parts if keys)
        return f"fits no architecture; nearest is {self.model.name}, but of its tensors are {text}"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
