"""Writes checkpoints as other implementations do, from a model of ours: the same weights in their layouts.

R1 and Ultralytics pickle their modules by class; the classes exist here only while a file is written, in modules that
are not there before or after. R2's keys are made by walking the blocks, not by rewriting ours.
"""

from __future__ import annotations

import copy
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolov9.nn.model import Detector, build

State = dict[str, Tensor]
R1_CLASSES = {"Detector": "models.yolo.DetectionModel", "Bottleneck": "models.common.RepNBottleneck"}
ULTRALYTICS_CLASSES = {
    "Detector": "ultralytics.nn.tasks.DetectionModel",
    "Conv": "ultralytics.nn.modules.conv.Conv",
    "Concat": "ultralytics.nn.modules.conv.Concat",
    "RepConvN": "ultralytics.nn.modules.conv.RepConv",
    "Bottleneck": "ultralytics.nn.modules.block.RepBottleneck",
    "RepNCSP": "ultralytics.nn.modules.block.RepCSP",
    "Detect": "ultralytics.nn.modules.head.Detect",
}


def trained(name: str, classes: Any = 3, seed: int = 0, **options: Any) -> Detector:
    """A model none of whose tensors is as a new one's, so that no two can be exchanged unseen."""
    torch.manual_seed(seed)
    model = build(name, classes, **options)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            assert m.num_batches_tracked is not None
            nn.init.uniform_(m.weight, 0.8, 1.2)
            nn.init.normal_(m.bias, std=0.1)
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
            m.num_batches_tracked.fill_(7)
    return model.eval()


def write_r1(
    path: Path,
    model: Detector,
    *,
    names: Any = None,
    epoch: int = -1,
    ema: Detector | None = None,
    half: bool = False,
    head: str | None = None,
) -> None:
    """As R1's training and conversion scripts write: pickled modules, `ema` beside `model` while training runs.

    `head`: class of the head, by default that of the model's.
    """
    classes = {**R1_CLASSES, "Detect": head or f"models.yolo.{'Dual' if model.head.dual else ''}DDetect"}
    with _Classes("models.common") as fake:
        content = {
            "epoch": epoch,
            "best_fitness": None,
            "model": _root(model, classes, fake, names, half),
            "ema": None,
            "updates": None,
            "optimizer": None,
            "opt": None,
            "git": None,
            "date": None,
        }
        if ema is not None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.937)
            content |= {
                "best_fitness": np.array([0.25]),
                "ema": _root(ema, classes, fake, names, half),
                "updates": np.int64(1200),
                "optimizer": optimizer.state_dict(),
                "opt": {"save_dir": Path("runs/train/exp"), "lr": np.float32(0.01), "imgsz": 640},
                "date": datetime(2024, 3, 1).isoformat(),
            }
        torch.save(content, path)


def write_ultralytics(path: Path, model: Detector, *, names: Any = None) -> None:
    """As Ultralytics writes a finished training: half precision, names as a table."""
    with _Classes("ultralytics.nn.modules.block") as fake:
        content = {
            "date": "2024-10-02T17:55:55",
            "version": "8.3.3",
            "epoch": -1,
            "model": _root(model, ULTRALYTICS_CLASSES, fake, names or model.names, half=True),
            "ema": None,
            "train_args": {"data": "x.yaml"},
        }
        torch.save(content, path)


def r2_state(model: Detector) -> State:
    """The state dict that R2 has of the same model: trunk, main head, auxiliary layers and auxiliary head, in order."""
    main, auxiliary = [], []
    for named, module in zip(model.arch.layers[:-1], model.model[:-1], strict=True):
        if type(module).__name__ != "Identity":
            (auxiliary if named.section == "auxiliary" else main).append(module)
    head = model.head
    state: State = {}
    for number, module in enumerate(main):
        state |= _r2_block(module, f"{number}.")
    boxes, scores, dfl = (head.cv4, head.cv5, head.dfl2) if head.dual else (head.cv2, head.cv3, head.dfl)
    state |= _r2_head(boxes, scores, dfl, f"{len(main)}.")
    if head.dual:
        for number, module in enumerate(auxiliary, len(main) + 1):
            state |= _r2_block(module, f"{number}.")
        state |= _r2_head(head.cv2, head.cv3, head.dfl, f"{len(main) + 1 + len(auxiliary)}.")
    return {key: tensor.detach() for key, tensor in state.items()}


def torch_file(path: Path, content: bytes, records: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A file of torch.save's shape around any pickle. `records`: such as {"data/0": b"..."}."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for name, record in (records or {}).items():
            archive.writestr(f"archive/{name}", record)
    return path


class Writer(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes pickles with names of modules that do not exist: `Name`, `Call`, `Raw` objects stand for instructions."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Raw):
            self.write(obj.code)
        elif isinstance(obj, Name):
            self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(b"R")
            if obj.state is not None:
                self.save(obj.state)
                self.write(b"b")
        elif isinstance(obj, Persistent):
            self.save(obj.id)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


class Raw:
    """Instructions as they are."""

    def __init__(self, code: bytes) -> None:
        self.code = code


class Name:
    """A global name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """A call, and what its result is built from."""

    def __init__(self, function: Any, arguments: Any = (), state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state


class Persistent:
    """A persistent id."""

    def __init__(self, id: Any) -> None:
        self.id = id


def pickled(value: Any, protocol: int = 2) -> bytes:
    """The pickle of plain data with `Name`, `Call`, `Persistent` and `Raw` in it."""
    stream = io.BytesIO()
    Writer(stream, protocol).dump(value)
    return stream.getvalue()


def storage(key: Any = "0", numel: Any = 4, kind: str = "FloatStorage") -> Persistent:
    return Persistent(("storage", Name("torch", kind), key, "cpu", numel))


def tensor(*arguments: Any) -> Call:
    """A tensor of a storage: offset, shape, strides."""
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"), (*arguments, False, Call(Name("collections", "OrderedDict")))
    )


FLOATS = struct.pack("<4f", 1, 2, 3, 4)
"""A record for `storage()`."""


class _Classes:
    """Classes by full name, in modules that exist while a file is written."""

    def __init__(self, default: str) -> None:
        self._default = default
        self._made: dict[str, type[nn.Module]] = {}
        self._modules: list[str] = []

    def __enter__(self) -> _Classes:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._modules:
            del sys.modules[name]

    def __getitem__(self, name: str) -> type[nn.Module]:
        module, _, short = (name if "." in name else f"{self._default}.{name}").rpartition(".")
        full = f"{module}.{short}"
        if full not in self._made:
            made = type(short, (nn.Module,), {"__module__": module})
            for parent in _parents(module):
                if parent not in sys.modules:
                    sys.modules[parent] = types.ModuleType(parent)
                    self._modules.append(parent)
            setattr(sys.modules[module], short, made)
            self._made[full] = made
        return self._made[full]


def _parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _root(model: Detector, classes: Mapping[str, str], fake: _Classes, names: Any, half: bool) -> nn.Module:
    root = fake[classes["Detector"]]()
    layers = [_mimic(layer, classes, fake) for layer in model.model]
    root.model = nn.Sequential(*layers)
    root.__dict__ |= {
        "names": list(model.names.values()) if names is None else names,
        "nc": len(model.names),
        "yaml": {"nc": len(model.names), "backbone": [[-1, 1, "Conv", [64, 3, 2]]]},
        "stride": torch.tensor([8.0, 16.0, 32.0]),
        "inplace": True,
    }
    return root.half() if half else root


def _mimic(module: nn.Module, classes: Mapping[str, str], fake: _Classes) -> nn.Module:
    """The same weights in classes of another implementation."""
    kind = type(module)
    if kind.__module__.startswith("torch."):
        if not list(module.children()):
            return copy.deepcopy(module)
        twin = kind()
    else:
        twin = fake[classes.get(kind.__name__, kind.__name__)]()
    for name, child in module.named_children():
        twin.add_module(name, _mimic(child, classes, fake))
    return twin


_R2_NAMES: dict[str, dict[str, str]] = {
    "RepConvN": {"conv1": "conv1", "conv2": "conv2"},
    "Bottleneck": {"cv1": "conv1", "cv2": "conv2"},
    "RepNCSP": {"cv1": "conv1", "cv2": "conv2", "cv3": "conv3", "m": "bottleneck"},
    "ELAN1": {"cv1": "conv1", "cv2": "conv2", "cv3": "conv3", "cv4": "conv4"},
    "RepNCSPELAN4": {"cv1": "conv1", "cv2": "conv2", "cv3": "conv3", "cv4": "conv4"},
    "AConv": {"cv1": "conv"},
    "ADown": {"cv1": "conv1", "cv2": "conv2"},
    "SPPELAN": {"cv1": "conv1", "cv5": "conv5"},
}


def _r2_block(module: nn.Module, prefix: str) -> State:
    children = dict(module.named_children())
    known = _R2_NAMES.get(type(module).__name__)
    if known is None or not children:
        if all(not list(child.children()) for child in children.values()):  # Conv, CBLinear and torch's own
            return {prefix + key: t for key, t in module.state_dict().items()}
        known = {name: name for name in children}  # Sequential
    state: State = {}
    for name, child in children.items():
        if list(child.state_dict()):
            state |= _r2_block(child, f"{prefix}{known[name]}.")
    return state


def _r2_head(boxes: nn.Module, scores: nn.Module, dfl: nn.Module, prefix: str) -> State:
    state: State = {}
    for level, (box, score) in enumerate(zip(boxes.children(), scores.children(), strict=True)):
        at = f"{prefix}heads.{level}."
        state |= {f"{at}anchor_conv.{key}": t for key, t in box.state_dict().items()}
        state |= {f"{at}class_conv.{key}": t for key, t in score.state_dict().items()}
        state[f"{at}anc2vec.anc2vec.weight"] = dfl.state_dict()["conv.weight"].reshape(1, 16, 1, 1, 1)
    return state


@contextmanager
def nothing_happens(folder: Path) -> Iterator[None]:
    """Fails if what runs inside leaves a trace: a file in `folder`, the environment, an imported module of a file's."""
    import os

    def world() -> tuple[Any, ...]:
        foreign = [n for n in sys.modules if n.split(".")[0] in ("models", "utils", "ultralytics", "yolo", "pty")]
        return sorted(os.listdir(folder)), dict(os.environ), foreign, os.getcwd(), sorted(os.listdir())

    before = world()
    yield
    assert world() == before
