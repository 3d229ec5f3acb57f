"""Storages and tensors as a checkpoint describes them, checked against the bytes that are there. Read when asked for.

A description costs nothing: a file of any size can be inspected by its pickle alone. `torch._utils._rebuild_tensor_v2`
and its kin are not called; a tensor may view its storage only inside its bounds and never more often than it has
elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from yolov9.checkpoints.archive import Archive
from yolov9.checkpoints.errors import RefusedError, WeightsError, shown

STORAGES: Mapping[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
"""The kinds that a detector's checkpoint holds. Quantised, complex and untyped ones are refused by name."""
_MAX_DIMENSIONS = 8
_MAX_TENSORS_BYTES = 2 << 30
"""Bytes of all tensors of one model together; the largest YOLOv9 has .6 GB in double precision."""


@dataclass(frozen=True)
class Storage:
    """One record of numbers, not read yet."""

    record: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor that has not been read yet: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def meta(self) -> Tensor:
        """Shape and type as a tensor on torch's meta device, which has no memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def squeezed(self, ndim: int) -> TensorRef:
        """The same numbers without trailing dimensions of size 1, down to `ndim` of them."""
        if any(n != 1 for n in self.shape[ndim:]):
            raise WeightsError(f"a tensor of shape {self.shape} is not one of {ndim} dimensions")
        return replace(self, shape=self.shape[:ndim], strides=self.strides[:ndim])


class Storages:
    """The storages that a pickle refers to by persistent ids."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._known: dict[str, Storage] = {}

    def find(self, kind: str, key: Any, numel: Any) -> Storage:
        """The storage `key` of `numel` elements of a type in STORAGES; the record has exactly that many bytes."""
        if type(key) is not str or not key.isdecimal() or not key.isascii():
            raise RefusedError(f"has a storage called {shown(key)}, which is not a number")
        if type(numel) is not int or numel < 0:
            raise RefusedError(f"has a storage of {shown(numel)} elements")
        storage = Storage(f"data/{key}", STORAGES[kind], numel)
        known = self._known.setdefault(key, storage)
        if known != storage:
            raise RefusedError(f"describes its storage {key} in two ways")
        wanted, there = numel * storage.dtype.itemsize, self._archive.size(storage.record)
        if wanted != there:
            raise RefusedError(f"its storage {key} wants {wanted:,} bytes, its record has {there or 0:,}")
        return storage


def view(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    """A tensor that lies inside its storage and shows no element twice. RefusedError for any other."""
    if not isinstance(storage, Storage):
        raise RefusedError(f"builds a tensor from {shown(storage)}, which is no storage")
    sizes = (offset, *shape, *strides) if type(shape) is tuple and type(strides) is tuple else (None,)
    if any(type(n) is not int or n < 0 for n in sizes) or len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise RefusedError(
            f"builds a tensor of offset {shown(offset)}, shape {shown(shape)} and strides {shown(strides)}"
        )
    numel = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if numel else offset
    if numel > storage.numel or last >= storage.numel + (not numel):
        raise RefusedError(
            f"builds a tensor of shape {shape}, strides {strides} and offset {offset}, which a storage of "
            f"{storage.numel:,} elements does not hold"
        )
    return TensorRef(storage, offset, shape, strides)


def read_all(archive: Archive, refs: Mapping[str, TensorRef]) -> dict[str, Tensor]:
    """The tensors, which may share memory. RefusedError if they are absurdly large together."""
    check_total(refs.values())
    storages: dict[str, Tensor] = {}
    tensors = {}
    for key, ref in refs.items():
        if ref.storage.record not in storages:
            storages[ref.storage.record] = _read(archive, ref.storage)
        flat = storages[ref.storage.record]
        tensors[key] = flat.as_strided(ref.shape, ref.strides, ref.offset)
    return tensors


def check_total(refs: Iterable[TensorRef]) -> None:
    """RefusedError if many views of one storage would take far more memory than the file has."""
    total = sum(ref.numel * ref.dtype.itemsize for ref in refs)
    if total > _MAX_TENSORS_BYTES:
        raise RefusedError(f"its tensors take {total:,} bytes, more than the {_MAX_TENSORS_BYTES:,} that are read")


def _read(archive: Archive, storage: Storage) -> Tensor:
    if not storage.numel:
        return torch.empty(0, dtype=storage.dtype)
    if archive.size(storage.record) != storage.numel * storage.dtype.itemsize:
        raise WeightsError(f"its record {storage.record} changed while it was read")
    content = bytearray(archive.read(storage.record))
    if storage.dtype is torch.bool:  # a byte that is neither 0 nor 1 is undefined behaviour as a bool
        return torch.frombuffer(content, dtype=torch.uint8) != 0
    return torch.frombuffer(content, dtype=storage.dtype)
