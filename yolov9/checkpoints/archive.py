"""The container of a torch checkpoint: an uncompressed zip archive with one pickle and one record a storage.

Everything that the archive declares is checked against the size of the file before a record is read, so that no
declaration costs memory. `torch.save` never compresses: an archive that does is not its work, and refusing it takes
zip bombs away as a kind.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Self

from yolov9.checkpoints.errors import RefusedError, WeightsError

PICKLE = "data.pkl"
MAX_PICKLE = 64 << 20
"""Bytes of the pickle. The largest YOLOv9 with its optimiser and its average has some 6 MB."""
MAX_RECORDS = 100_000
"""Files in an archive: the same checkpoint has some 10,000."""
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".pt", ".pth", ".ckpt", ".safetensors")
"""Names of files that somebody packed once more."""
_BROKEN = (
    zipfile.BadZipFile,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
)
"""What zipfile raises on bytes that are no archive."""


class Archive:
    """The records of one checkpoint, by their name inside its folder: `data.pkl`, `data/0`, `byteorder`, ...

    A context manager: the file stays open in between. WeightsError, RefusedError, OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("rb")
        try:
            try:
                self._zip = zipfile.ZipFile(self._file)
            except _BROKEN as e:
                raise WeightsError(f"a zip archive that is cut off or damaged ({_short(e)})") from e
            self._records = self._checked(self._file.seek(0, 2))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._zip.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def size(self, name: str) -> int | None:
        """Bytes of a record, None if there is none of that name."""
        info = self._records.get(name)
        return None if info is None else info.file_size

    def read(self, name: str) -> bytes:
        """The record, its checksum verified."""
        info = self._records[name]
        try:
            content = self._zip.read(info)
        except _BROKEN as e:
            raise WeightsError(f"its record {info.filename} is damaged ({_short(e)})") from e
        if len(content) != info.file_size:
            raise WeightsError(f"its record {info.filename} has {len(content)} bytes instead of {info.file_size}")
        return content

    def pickle(self) -> bytes:
        """The pickle that describes the checkpoint."""
        size = self._records[PICKLE].file_size
        if size > MAX_PICKLE:
            raise RefusedError(f"its {PICKLE} has {size:,} bytes, more than the {MAX_PICKLE:,} that are read")
        return self.read(PICKLE)

    def _checked(self, file_size: int) -> dict[str, zipfile.ZipInfo]:
        """Records by name inside the one folder that torch writes."""
        infos = self._zip.infolist()
        if len(infos) > MAX_RECORDS:
            raise RefusedError(f"an archive of {len(infos):,} files, more than the {MAX_RECORDS:,} that are read")
        declared = 0
        for info in infos:
            declared += info.file_size
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise RefusedError(f"its record {info.filename!r} is compressed, which PyTorch never writes")
            if not 0 <= info.header_offset < file_size:
                raise WeightsError(f"a zip archive that is damaged (its record {info.filename!r} begins nowhere)")
            if info.flag_bits & 0x1:
                raise RefusedError(f"its record {info.filename!r} is encrypted, which PyTorch never writes")
        if declared > file_size:
            raise RefusedError(f"declares {declared:,} bytes of records in a file of {file_size:,}")
        folder = _folder([info.filename for info in infos])
        records = {info.filename.removeprefix(folder): info for info in infos}
        if len(records) != len(infos):
            raise RefusedError("has two records of one name")
        return records


def _folder(names: list[str]) -> str:
    """The folder with the pickle, "name/" or "". It is the only one."""
    pickles = [name for name in names if PurePosixPath(name).name == PICKLE]
    if len(pickles) > 1:
        raise RefusedError(f"holds {len(pickles)} pickles ({', '.join(pickles[:3])}), a checkpoint holds one")
    if not pickles:
        inner = [name for name in names if name.lower().endswith(_ARCHIVES)]
        if inner:
            raise WeightsError(f"a zip archive around {inner[0]!r}, which is not opened: unpack it first")
        raise WeightsError(f"a zip archive without {PICKLE}, so not a file of torch.save")
    folder = pickles[0].removesuffix(PICKLE)
    if any(name.removeprefix(folder).startswith("code/") or name == f"{folder}constants.pkl" for name in names):
        raise WeightsError(
            "a TorchScript archive: a program, not weights. Take the checkpoint that it was exported from"
        )
    outside = [name for name in names if not name.startswith(folder)]
    if outside or folder.count("/") > 1:
        raise RefusedError(f"has the record {(outside or pickles)[0]!r}, which is not where PyTorch writes its own")
    return folder


def _short(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
