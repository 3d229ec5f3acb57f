"""Engine files on disk: each says what it is, shows damage, is written whole or not at all, and the folder is bounded.

    magic | length of the header | header (JSON: recipe, size and SHA-256 of the rest) | serialised engine

One process builds at a time in a folder: measuring kernels side by side would spoil both measurements, and the second
mostly finds what the first has built. Readers need no lock, because a file is only ever replaced by renaming.

An engine is machine code. It is loaded from the user's own cache, or from a file that the user names, never out of a
model bundle, which may come from anywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.build import BuildCancelled
from yolov9.engines.tensorrt.recipe import Recipe

log = logging.getLogger("yolov9.engines.tensorrt")

_MAGIC = b"yolov9 tensorrt engine 1\n"
_MAX_HEADER = 1 << 20
DEFAULT_BOUND = 4 << 30
"""Bytes of a folder. An engine of T has 60 MB, one of E some 700."""
_POLL_S = 0.2
_LOCK = "building.lock"


class EngineFileError(EngineError):
    """A file that is no engine, is damaged, or holds another one than is wanted."""


class Sealed(NamedTuple):
    recipe: Recipe
    plan: bytes


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recipe: Recipe
    bytes: int
    sha256: str


def default_folder() -> Path:
    """Of the user: $XDG_CACHE_HOME/yolov9/engines, by default below ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "yolov9" / "engines"


def write(path: Path, recipe: Recipe, plan: bytes) -> None:
    """Replace `path`, atomically. OSError from the disk."""
    header = msgspec.json.encode(_Header(recipe, len(plan), hashlib.sha256(plan).hexdigest()))
    _write(path, _MAGIC + len(header).to_bytes(4, "little") + header, plan)


def read(path: Path) -> Sealed:
    """EngineFileError says what is wrong with the file; FileNotFoundError if there is none."""
    data = path.read_bytes()
    start = len(_MAGIC) + 4
    if not data.startswith(_MAGIC):
        raise EngineFileError(f"{path}: is not an engine file")
    size = int.from_bytes(data[len(_MAGIC) : start], "little")
    if size > _MAX_HEADER:
        raise EngineFileError(f"{path}: its header is damaged")
    try:
        header = msgspec.json.decode(data[start : start + size], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise EngineFileError(f"{path}: its header is damaged") from None
    plan = data[start + size :]
    if len(plan) != header.bytes:
        raise EngineFileError(f"{path}: has {len(plan)} bytes of an engine of {header.bytes}")
    if hashlib.sha256(plan).hexdigest() != header.sha256:
        raise EngineFileError(f"{path}: its content is damaged (SHA-256)")
    return Sealed(header.recipe, plan)


class EngineCache:
    """A folder of engine files. `bound`: bytes that it may hold; what was used longest ago goes first."""

    def __init__(self, folder: Path, bound: int = DEFAULT_BOUND) -> None:
        self.folder = folder
        self._bound = bound

    def path(self, recipe: Recipe) -> Path:
        return self.folder / recipe.file

    def find(self, recipe: Recipe) -> bytes | None:
        """The engine; None if it is not there. A file that is damaged or another engine's is removed, and logged."""
        path = self.path(recipe)
        try:
            found = read(path)
            if found.recipe != recipe:
                raise EngineFileError(f"{path}: holds {found.recipe} for {found.recipe.target}")
        except FileNotFoundError:
            return None
        except EngineFileError as error:
            log.warning("engine file removed: %s", error)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # a read-only folder serves as well
            os.utime(path)  # used now
        return found.plan

    def holds(self, recipe: Recipe) -> bool:
        """Whether there is a file for it, good or bad."""
        return self.path(recipe).is_file()

    def add(self, recipe: Recipe, plan: bytes) -> Path:
        """Write it and make room. OSError from the disk."""
        path = self.path(recipe)
        write(path, recipe, plan)
        self._evict(path)
        return path

    def timing(self, recipe: Recipe) -> bytes | None:
        """What earlier builds by this version on this device have measured. TensorRT checks it itself."""
        try:
            return self._timing_path(recipe).read_bytes()
        except FileNotFoundError:
            return None

    def add_timing(self, recipe: Recipe, data: bytes) -> None:
        _write(self._timing_path(recipe), data)

    def kernels(self, recipe: Recipe) -> bytes | None:
        """What a portable engine compiled when it was last run here. TensorRT checks it itself."""
        try:
            return self._kernels_path(recipe).read_bytes()
        except OSError:  # none, or none that we may read: it is compiled anew
            return None

    def add_kernels(self, recipe: Recipe, data: bytes) -> None:
        _write(self._kernels_path(recipe), data)

    @contextlib.contextmanager
    def building(self, cancelled: threading.Event | None = None) -> Iterator[None]:
        """Alone in this folder, over all processes. The lock goes with its process, however that ends.
        BuildCancelled while waiting."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / _LOCK).open("ab") as file:
            waiting = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waiting:
                        log.info("waiting for another process that builds an engine in %s", self.folder)
                    waiting = True
                if cancelled is not None and cancelled.is_set():
                    raise BuildCancelled("building an engine was cancelled while another process built one")
                time.sleep(_POLL_S)
            yield

    def _kernels_path(self, recipe: Recipe) -> Path:
        return self.path(recipe).with_suffix(".kernels")

    def _timing_path(self, recipe: Recipe) -> Path:
        device = hashlib.sha256(recipe.target.encode()).hexdigest()[:8]
        return self.folder / f"{recipe.flavour}-{recipe.version}-{device}.timing"

    def _evict(self, newest: Path) -> None:
        """What was used longest ago goes, so engines of versions that are no longer installed do by themselves. The one
        just written stays, whatever its size. What a killed process left half-written goes too."""
        for part in self.folder.glob(".*.engine.*.part"):
            part.unlink(missing_ok=True)  # written under the lock that we hold
        files = []
        for path in self.folder.glob("*.engine"):
            with contextlib.suppress(OSError):  # gone meanwhile
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._bound or path == newest:
                continue
            path.unlink(missing_ok=True)
            path.with_suffix(".kernels").unlink(missing_ok=True)
            total -= size
            log.info("engine file removed to make room: %s", path)


def _write(path: Path, *parts: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
