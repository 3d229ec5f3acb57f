"""From a file to what it holds: the container, the pickle, and which layout it is. The tensors are read when asked for.

Safetensors are our own format; torch files are read by this package, never by `torch.load`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from yolov9.checkpoints import pickles, r1, r2, ultralytics
from yolov9.checkpoints.archive import Archive
from yolov9.checkpoints.errors import RefusedError, WeightsError, printable, shown
from yolov9.checkpoints.globals import Global, Stub
from yolov9.checkpoints.layouts import Contents, Layout, Refs, class_table, left_out, numbered
from yolov9.checkpoints.modules import harvest, is_module
from yolov9.checkpoints.tensors import STORAGES, Storage, Storages, TensorRef, check_total, read_all

State = Mapping[str, Tensor]
_PARTS = ("ema", "model", "state_dict", "model_state_dict", "ema_state_dict")
"""Where training scripts put weights, best first: the average is what they evaluate."""
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began a file until version 1.6."""


@dataclass(frozen=True)
class Checkpoint:
    """A file, recognised. Nothing but its description has been read."""

    path: Path
    layout: Layout
    shapes: State
    """Tensors on torch's meta device under the reference layout's keys (`model.N...`): shapes and types."""
    names: Any
    """Class names as the file has them: a list, {id: name}, or None."""
    tensors: Callable[[], State]
    """Reads the tensors, which may share memory with each other and the file. RefusedError, WeightsError, OSError."""
    part: str = ""
    """Which of several sets of weights it is: ema, model, ..."""
    epoch: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""
    notes: tuple[str, ...] = ()


def read(path: Path) -> Checkpoint:
    """What is in a file. RefusedError if it is more than data, WeightsError if it is nothing known; OSError."""
    with _named(path):
        return _read(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with it."""
    try:
        yield
    except RefusedError as e:
        raise RefusedError(f"{path}: {e}") from e
    except WeightsError as e:
        raise WeightsError(f"{path}: {e}") from e


def _read(path: Path) -> Checkpoint:
    with path.open("rb") as stream:
        start = stream.read(32)
    if start[:4] == b"PK\x03\x04":
        return _read_torch(path)
    if start.startswith(_LEGACY):
        raise RefusedError(
            "a torch file in the format before PyTorch 1.6, one stream of pickles: refused. Write it anew where it "
            "comes from: torch.save(torch.load(FILE), NEW)"
        )
    # A pickle (protocol 2 to 5) that is not the length of a safetensors header and its opening brace.
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{":
        raise RefusedError("a bare pickle, not a file of torch.save: refused, nothing of it was run")
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> Checkpoint:
    with _safetensors(path) as file:
        metadata = file.metadata() or {}
        shapes = {key: _meta(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118 - not a mapping
    try:
        names = json.loads(metadata["names"]) if "names" in metadata else None
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"its class names are not JSON: {e}") from e

    def tensors() -> State:
        with _named(path), _safetensors(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    layout: Layout = "yolov9" if "class_width" in metadata else "state-dict"
    return Checkpoint(path, layout, shapes, names, tensors, metadata=metadata)


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except safetensors.SafetensorError as e:
        raise WeightsError(f"neither safetensors nor a torch file ({e})") from e


_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _meta(piece: Any) -> Tensor:
    dtype = _SAFETENSORS_TYPES.get(piece.get_dtype())
    if dtype is None:
        raise WeightsError(f"has tensors of type {piece.get_dtype()}, which no detector has")
    return torch.empty(piece.get_shape(), dtype=dtype, device="meta")


def _read_torch(path: Path) -> Checkpoint:
    with Archive(path) as archive:
        if "byteorder" in archive and archive.read("byteorder") != b"little":
            raise WeightsError("was written on a big-endian machine, which is not supported")
        value = pickles.load(archive.pickle(), _persistent(Storages(archive)))
    contents = _contents(value)
    check_total(contents.refs.values())

    def tensors() -> State:
        with _named(path), Archive(path) as archive:
            for key, tensor in read_all(archive, contents.ranges).items():
                if not torch.equal(tensor.flatten().double(), torch.arange(tensor.numel(), dtype=torch.float64)):
                    raise WeightsError(f"its {key} is not 0, 1, 2, ..., so its boxes are coded in another way")
            return read_all(archive, contents.refs)

    epoch = value.get("epoch") if isinstance(value, dict) else None
    return Checkpoint(
        path,
        contents.layout,
        {key: ref.meta() for key, ref in contents.refs.items()},
        contents.names,
        tensors,
        contents.part,
        epoch if type(epoch) is int and epoch >= 0 else None,  # finished trainings say -1
        notes=contents.notes,
    )


def _persistent(storages: Storages) -> Callable[[Any], Storage]:
    """Resolves the ids of storages: ("storage", type, number, device, elements)."""

    def resolve(given: Any) -> Storage:
        if type(given) is not tuple or len(given) != 5 or given[0] != "storage" or type(given[1]) is not Global:
            raise RefusedError(f"refers to {shown(given)}, which is not how PyTorch refers to a storage")
        _, kind, number, device, elements = given
        if kind.name not in STORAGES:
            raise RefusedError(f"has a storage of type {kind.name}, which no detector has")
        if type(device) is not str:
            raise RefusedError(f"has a storage on {shown(device)}")
        return storages.find(kind.name, number, elements)

    return resolve


def _contents(value: Any) -> Contents:
    """Which weights to take, and their layout. WeightsError if there are none."""
    table = value if isinstance(value, dict) else {}
    for part in ("", *_PARTS):
        found = table.get(part) if part else value
        if is_module(found):
            return _from_module(found, part)
        if isinstance(found, dict) and found and all(isinstance(ref, TensorRef) for ref in found.values()):
            contents = _from_state_dict(found, part, "pytorch-lightning_version" in table)
            return replace(contents, names=contents.names or class_table(table.get("names")))
    if type(value) is Stub:
        raise WeightsError(f"holds an object of {printable(value.name)}, which is no module with weights")
    raise WeightsError(f"holds no model and no state dict, neither by itself nor as {', '.join(_PARTS)}")


def _from_module(stub: Stub, part: str) -> Contents:
    module = harvest(stub)
    if module.name.startswith(ultralytics.PACKAGE):
        return ultralytics.from_module(module, part)
    return r1.from_module(module, part)


def _from_state_dict(refs: Refs, part: str, lightning: bool) -> Contents:
    if any(type(key) is not str for key in refs):
        raise WeightsError("holds a state dict whose keys are no names")
    prefix, layers, left = numbered(refs)
    if "ema" in prefix.split("."):
        part = "ema"
    if r2.is_layout(layers):
        contents = r2.from_numbered(layers, "r2-lightning" if lightning else "r2", part)
    else:
        contents = Contents("state-dict", r1.from_numbered(layers), part=part)
    return replace(contents, notes=left_out(left))
