"""The models that this server knows: packaged ones, those registered with it, and the one it was started with.

A name means one model. The one given at the start comes before a registered one, and that before a packaged one.
Registered bundles lie in `models/` of the data folder, one folder each, complete and checked; what somebody does to
them there later is seen when they are activated.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from server.delivery.ports import InvalidField, ServerError
from server.models import intake
from server.models.intake import ArchiveError, ArchiveKind, Place
from server.store import StoreError
from yolov9 import packaged
from yolov9.bundle import INT8_ONNX, OPENVINO_MODEL, Bundle, BundleError

log = logging.getLogger("yolov9.models")

Source = Literal["packaged", "registered", "given"]
State = Literal["ready", "loading", "active", "refused"]

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class UnknownModel(ServerError):
    """There is no model of this name."""

    status, code = 404, "model_not_found"


class ModelExists(ServerError):
    """A model of this name is there already."""

    status, code = 409, "model_exists"


class ModelInUse(ServerError):
    """The model is active or being loaded, or came with the server: it cannot be removed."""

    status, code = 409, "model_in_use"


@dataclass(slots=True)
class Entry:
    """One model."""

    name: str
    source: Source
    path: Path
    bundle: Bundle | None
    """None: it cannot be read, and `reason` says why."""
    state: State = "ready"
    reason: str | None = None
    """Why it was refused; stays until it is tried again."""
    generation: int | None = None
    """Of the active one."""
    note: str | None = None
    """What people should know of the last activation."""

    @property
    def precisions(self) -> list[str]:
        """What engines can compute in without converting anything."""
        if self.bundle is None:
            return []
        files = self.bundle.files
        int8 = INT8_ONNX in files or OPENVINO_MODEL in files
        return list(dict.fromkeys([self.bundle.precision, *(["int8"] if int8 else [])]))


class Registry:
    """`scan` once, then all else. Reading and writing happen in threads; one change at a time."""

    def __init__(self, data: Path, folders: list[Path], max_bytes: int, given: Bundle, name: str) -> None:
        """`folders`: bundles below them may be registered. `given`: the bundle that the server starts with."""
        self._models = models_folder(data)
        self._folders = [data, *folders]
        self._max_bytes = max_bytes
        self._given = given
        self._entries: dict[str, Entry] = {}
        self._scanning: asyncio.Event | None = None
        self._changing = asyncio.Lock()
        self.uploads = asyncio.Semaphore(1)
        """To be held while an archive is received: each may fill the disk by as much as a model may have."""
        self._add(Entry(name, self._source_of(given.path), given.path, given, "active", generation=1))

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    def get(self, name: str) -> Entry:
        """UnknownModel if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModel(f"there is no model {name!r}") from None

    @property
    def active(self) -> Entry:
        return next(entry for entry in self._entries.values() if entry.state == "active")

    async def scan(self) -> None:
        """Read what lies in the folder and what came with the package."""
        over = self._scanning = asyncio.Event()
        try:
            for entry in await asyncio.to_thread(self._found):
                if entry.name not in self._entries:
                    self._add(entry)
        except OSError as error:
            log.error("the models in %s cannot be read: %s", self._models, error)
        finally:
            self._scanning = None
            over.set()

    async def scanned(self) -> None:
        """Until a scan that is under way is over: large models take a second to be checked."""
        if self._scanning is not None:
            await self._scanning.wait()

    async def register_folder(self, path: str, name: str | None) -> Entry:
        """Copy a bundle from a folder of this machine. InvalidField, ModelExists, StoreError."""
        source = self._allowed(path)
        return await self._register("path", name, lambda place: intake.take_folder(source, place))

    async def register_archive(self, archive: IO[bytes], kind: ArchiveKind, name: str | None) -> Entry:
        """Unpack a bundle. InvalidField, ModelExists, StoreError."""
        return await self._register("body", name, lambda place: intake.take_archive(archive, kind, place))

    @asynccontextmanager
    async def upload_file(self) -> AsyncIterator[IO[bytes]]:
        """A file for an archive, gone at the end. StoreError."""
        try:
            file = await asyncio.to_thread(intake.upload_file, self._models)
        except OSError as error:
            raise StoreError(f"{self._models}: {error.strerror}") from error
        with file:
            yield file

    async def remove(self, name: str) -> None:
        """UnknownModel, ModelInUse, StoreError."""
        async with self._changing:
            entry = self.get(name)
            if entry.state in ("active", "loading"):
                raise ModelInUse(f"model {name!r} is {entry.state}; activate another one first")
            if entry.source != "registered":
                raise ModelInUse(f"model {name!r} is {entry.source}, not registered with this server")
            try:
                await asyncio.to_thread(shutil.rmtree, entry.path)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise StoreError(f"{entry.path}: {error.strerror}") from error
            del self._entries[name]
            log.info("model=%s removed", name)

    # Inside.

    def _add(self, entry: Entry) -> None:
        self._entries[entry.name] = entry

    async def _register(self, field: str, name: str | None, take: Callable[[Place], Bundle]) -> Entry:
        if name is not None and not re.fullmatch(MODEL_NAME, name):
            raise InvalidField("name", "must be 1 to 100 letters, digits, '.', '_' and '-'")
        async with self._changing:
            if name is not None and name in self._entries:
                raise ModelExists(f"there is a model {name!r} already")
            place = Place(self._models, name, frozenset(self._entries), self._max_bytes)
            taking = asyncio.ensure_future(asyncio.to_thread(self._take, field, take, place))
            try:
                bundle = await asyncio.shield(taking)
            except asyncio.CancelledError:  # a thread cannot be cancelled: it is finished before the next one begins
                await asyncio.wait([taking])
                raise
            name = bundle.path.name
            entry = Entry(name, "registered", bundle.path, bundle)
            self._add(entry)
            log.info("model=%s registered hash=%s", name, bundle.hash)
            return entry

    def _take(self, field: str, take: Callable[[Place], Bundle], place: Place) -> Bundle:
        try:
            return take(place)
        except (BundleError, ArchiveError) as error:
            raise InvalidField(field, str(error)) from None
        except FileExistsError as error:
            raise ModelExists(f"there is a model {error.args[0]!r} already") from None
        except OSError as error:
            raise StoreError(f"{self._models}: {error.strerror or error}") from error

    def _allowed(self, path: str) -> Path:
        """The folder, links resolved. InvalidField unless it lies below an allowed one."""
        try:
            folder = Path(path).resolve()
            allowed = any(folder.is_relative_to(parent.resolve()) for parent in self._folders)
        except (OSError, ValueError, RuntimeError):
            allowed = False
        if not allowed:
            raise InvalidField("path", "is not below a folder of models (model_folders, or the server's data folder)")
        return folder

    def _source_of(self, path: Path) -> Source:
        parent = path.resolve().parent
        if parent == self._models.resolve():
            return "registered"
        return "packaged" if parent == packaged.folder().resolve() else "given"

    def _found(self) -> list[Entry]:
        """In a thread."""
        intake.sweep(self._models)
        places: list[tuple[Source, Path]] = []
        if self._models.is_dir():
            places += [("registered", p) for p in sorted(self._models.iterdir()) if re.fullmatch(MODEL_NAME, p.name)]
        places += [("packaged", packaged.folder() / name) for name in packaged.names()]
        return [_read(source, path) for source, path in places]


def models_folder(data: Path) -> Path:
    return data / "models"


def _read(source: Source, path: Path) -> Entry:
    try:
        return Entry(path.name, source, path, Bundle.load(path))
    except BundleError as error:
        log.error("model=%s cannot be read: %s", path.name, error)
        return Entry(path.name, source, path, None, "refused", str(error))
