"""Bundles from elsewhere, a folder or an archive, into the server's own folder: whole, checked, or not at all.

An archive is read with as little trust as a bundle. Nothing but the files that its model.json lists is ever written,
under names that were checked before; links and devices are left out, and every file has the size that model.json states
or is refused. So what is unpacked is bounded by what model.json may state, whatever the archive claims. Blocking: to be
called in a thread.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import secrets
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

from yolov9.bundle import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, Bundle, BundleError, FileEntry, read_manifest

ArchiveKind = Literal["zip", "tar"]

_CHUNK_BYTES = 1 << 20
_MAX_MEMBERS = 10 * MAX_FILES
_MAX_PIECE_BYTES = 4 << 20
"""The most that a reader of archives may want at once: directories and headers are read whole."""
_TAR_OVERHEAD_BYTES = _MAX_MEMBERS * 4096 + MAX_MANIFEST_BYTES
"""Headers, and what is not of the bundle: a tar is read past it to get to the next file."""
_SUFFIX = ".tmp"


class ArchiveError(Exception):
    """The archive cannot be read, or does not hold a bundle. One sentence."""


class Place(NamedTuple):
    """Where a bundle is to go."""

    models: Path
    """The folder of all registered models."""
    name: str | None
    """None: as the bundle calls itself."""
    taken: frozenset[str]
    """Names that are no longer free."""
    max_bytes: int


def take_folder(source: Path, place: Place) -> Bundle:
    """Copy the bundle in `source`. BundleError, FileExistsError, OSError."""
    bundle = Bundle.load(source)
    _check_size(bundle.files.values(), place.max_bytes)
    with _stage(place.models) as fresh:
        for file in (MANIFEST, *bundle.files):
            limit = MAX_MANIFEST_BYTES if file == MANIFEST else bundle.files[file].bytes
            with _open_regular(source / file) as stream:
                _write(fresh / file, stream.read, limit)
        return _settle(fresh, place)


def take_archive(archive: IO[bytes], kind: ArchiveKind, place: Place) -> Bundle:
    """Unpack a bundle. Its files lie at the top or in one folder. ArchiveError, BundleError,
    FileExistsError, OSError (from the disk)."""
    with _stage(place.models) as fresh:
        with _readable(), _members(archive, kind, place.max_bytes) as members:
            root = _root(members)
            _unpack(members[root + MANIFEST], fresh / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = read_manifest(fresh)
        _check_size(manifest.files.values(), place.max_bytes)
        with _readable(), _members(archive, kind, place.max_bytes) as members:
            for file, entry in manifest.files.items():
                member = members.get(root + file)
                if member is None:
                    raise ArchiveError(f"{file} is not in the archive, though {MANIFEST} lists it")
                _unpack(member, fresh / file, entry.bytes)
        return _settle(fresh, place)


def sweep(models: Path) -> None:
    """Remove what a server that was killed left behind."""
    for path in models.glob(f".*{_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def upload_file(models: Path) -> IO[bytes]:
    """A file without a name for what is being uploaded, where the bundle will lie. OSError."""
    models.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=models)


# Into the folder.


@contextmanager
def _stage(models: Path) -> Iterator[Path]:
    models.mkdir(parents=True, exist_ok=True)
    fresh = models / f".fresh.{secrets.token_hex(4)}{_SUFFIX}"
    fresh.mkdir()
    try:
        yield fresh
    except BundleError as error:
        raise BundleError(str(error).replace(f"{fresh}/", "").replace(str(fresh), "the bundle")) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _settle(fresh: Path, place: Place) -> Bundle:
    """Check the copy, then let it appear under its name."""
    bundle = Bundle.load(fresh)
    target = place.models / (place.name or bundle.name)
    if target.name in place.taken or target.exists():
        raise FileExistsError(target.name)
    fresh.rename(target)
    folder = os.open(place.models, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
    return replace(bundle, path=target)


def _check_size(files: Iterable[FileEntry], max_bytes: int) -> None:
    total = sum(entry.bytes for entry in files)
    if total > max_bytes:
        raise BundleError(f"{MANIFEST}: files: {total} bytes altogether, but a model may have {max_bytes} at most")


def _open_regular(path: Path) -> IO[bytes]:
    """OSError also for what is no regular file any more."""
    descriptor = os.open(path.resolve(), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file any more")
    return os.fdopen(descriptor, "rb")


def _write(path: Path, read: Callable[[int], bytes], limit: int) -> None:
    """At most `limit` bytes and one more, by which the check of the bundle sees that it is too long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = limit + 1
    with path.open("xb") as out:
        while left > 0 and (piece := read(min(_CHUNK_BYTES, left))):
            out.write(piece)
            left -= len(piece)
        out.flush()
        os.fsync(out.fileno())


# Archives.

Member = Callable[[], IO[bytes]]


def _unpack(member: Member, path: Path, limit: int) -> None:
    with member() as stream:

        def read(size: int) -> bytes:
            with _readable():
                return stream.read(size)

        _write(path, read, limit)


@contextmanager
def _readable() -> Iterator[None]:
    """Whatever the readers of archives raise means that the archive is bad."""
    try:
        yield
    except (ArchiveError, BundleError):
        raise
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError,
        RuntimeError, IndexError, KeyError, gzip.BadGzipFile,
    ) as error:  # fmt: skip
        raise ArchiveError(f"the archive cannot be read: {' '.join(str(error).split())[:200]}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning
            raise
        raise ArchiveError("the archive cannot be read: it points to a place outside of itself") from None


@contextmanager
def _members(archive: IO[bytes], kind: ArchiveKind, max_bytes: int) -> Iterator[Mapping[str, Member]]:
    """The regular files of an archive by name."""
    archive.seek(0)
    if kind == "zip":
        with zipfile.ZipFile(cast(IO[bytes], _Guarded(archive))) as zipped:
            yield _zip_members(zipped)
        return
    packed = archive.read(2) == b"\x1f\x8b"
    archive.seek(0)
    plain = cast(IO[bytes], gzip.GzipFile(fileobj=archive)) if packed else archive
    guarded = _Guarded(plain, _TAR_OVERHEAD_BYTES + max_bytes)
    with tarfile.open(fileobj=cast(IO[bytes], guarded), mode="r:") as tarred:
        yield _tar_members(tarred)


def _zip_members(zipped: zipfile.ZipFile) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for info in zipped.infolist():
        if info.is_dir() or not _plain_in_zip(info):
            continue
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{info.filename[:200]!r} is packed by a method other than deflate")
        _add(members, info.filename, partial(zipped.open, info))
    return members


def _plain_in_zip(info: zipfile.ZipInfo) -> bool:
    """Not a link or a device, where the archive was made on a system that has them."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind in (0, stat.S_IFREG)


def _tar_members(tarred: tarfile.TarFile) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for info in tarred:
        if info.isfile():
            _add(members, info.name, partial(_open_member, tarred, info))
    return members


def _open_member(tarred: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tarred.extractfile(info)
    assert stream is not None, "a regular file can be read"
    return stream


def _add(members: dict[str, Member], name: str, member: Member) -> None:
    name = name.removeprefix("./")
    if name in members:
        raise ArchiveError(f"{name[:200]!r} is in the archive twice")
    if len(members) >= _MAX_MEMBERS:
        raise ArchiveError(f"more than {_MAX_MEMBERS} files are in the archive")
    members[name] = member


def _root(members: Mapping[str, Member]) -> str:
    """Where model.json lies: "" or "FOLDER/"."""
    found = sorted({name[: -len(MANIFEST)] for name in members if f"/{name}".endswith(f"/{MANIFEST}")}, key=len)
    places = [place for place in found if place.count("/") <= 1 and not place.startswith(("__MACOSX/", "/"))]
    if not places:
        raise ArchiveError(f"there is no {MANIFEST} in the archive, neither at its top nor in a folder there")
    if len(places) > 1 and places[0]:
        raise ArchiveError(f"more than one bundle is in the archive: {', '.join(places)[:200]}")
    return places[0]


class _Guarded(io.RawIOBase):
    """A file that is read in small pieces only, and to a bound: headers that claim gigabytes are not believed."""

    def __init__(self, stream: IO[bytes], bound: int | None = None) -> None:
        self._stream = stream
        self._bound = bound

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._bound is not None and whence == os.SEEK_SET and offset > self._bound:
            raise ArchiveError(f"more than {self._bound} bytes are in the archive")
        return self._stream.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_PIECE_BYTES:
            raise ArchiveError(f"the archive has a header of {size} bytes")
        if self._bound is not None and self._stream.tell() > self._bound:
            raise ArchiveError(f"more than {self._bound} bytes are in the archive")
        return self._stream.read(_MAX_PIECE_BYTES if size < 0 else size)
