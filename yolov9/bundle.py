"""The model bundle: a folder that an engine can run, and that says what it is.

    model.onnx          input `images` uint8 (B, H, W, 3) RGB, output `predictions` float32 (B, 4+nc, A)
    model.safetensors   optional: the same weights for PyTorch (`yolov9.load`)
    int8.onnx           optional: the graph in int8 (symmetric QDQ) for ONNX Runtime and TensorRT
    nms.onnx, model.torchscript   optional: other forms of model.onnx, for programs that are not ours
    openvino/model.xml  optional, with model.bin: files of one engine, used by that engine instead of model.onnx; in
                        int8, they leave model.onnx for the other precisions
    model.json          names, input size, precision, size and SHA-256 of every file above, lineage

A bundle is untrusted input: nothing in it is ever executed, nothing outside the folder is read, every file is checked
against model.json before an engine sees it, and every error names the file and the field.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from yolov9.geometry import STRIDE
from yolov9.onnx_header import FLOAT, UINT8, OnnxFormatError, read_header

FORMAT = 1
"""Version of model.json. Readers refuse what is newer than they are."""
MANIFEST = "model.json"
ONNX = "model.onnx"
SAFETENSORS = "model.safetensors"
INT8_ONNX = "int8.onnx"
NMS_ONNX = "nms.onnx"
TORCHSCRIPT = "model.torchscript"
OPENVINO_MODEL, OPENVINO_WEIGHTS = "openvino/model.xml", "openvino/model.bin"
INPUT_NAME = "images"
OUTPUT_NAME = "predictions"

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 30
"""The largest model of the family has 58 million weights: 232 MB in fp32. protobuf itself ends at 2 GiB."""
MAX_FILES = 64
MAX_INPUT_SIZE = 4096
MAX_CLASSES = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Precision = Literal["fp32", "fp16", "bf16", "int8"]


class BundleError(Exception):
    """The folder is not a bundle, or not an intact one. One sentence that names the file and the field."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    """64 lower-case hexadecimal digits."""
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """model.json, as it is written."""

    format: int
    name: str
    """Letters, digits, `.`, `_` and `-`: it is used in file names, URLs and metric labels."""
    names: list[str] | dict[int, str]
    """Class names by id, as a list or as {id: name} with the ids 0..nc-1."""
    input_size: int
    """Long side in pixels for which the model was trained."""
    stride: int
    precision: Precision
    """What model.onnx holds; int8 means that it is quantised (QDQ). Files for int8 beside it do not count."""
    files: dict[str, FileEntry]
    """Relative POSIX path -> what it must be."""
    lineage: dict[str, Any]
    """Where the weights come from and what they reach: free JSON."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest, files and graph have been checked. Made by `Bundle.load` or `write_bundle`."""

    path: Path
    name: str
    names: dict[int, str]
    """{class id: name}, ids 0..nc-1 in order."""
    input_size: int
    stride: int
    precision: Precision
    files: Mapping[str, FileEntry]
    lineage: dict[str, Any]
    hash: str
    """12 hexadecimal digits that change with weights, names or input size, for metrics and caches. Not with lineage."""

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read and check the bundle in folder `path`. Raises BundleError."""
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such folder")
        root = folder.resolve()
        manifest = _read_manifest(folder)
        names = _check_manifest(folder, manifest)
        for file, entry in manifest.files.items():
            _check_file(root, folder, file, entry)
        for file in (ONNX, INT8_ONNX):
            if file in manifest.files:
                _check_onnx(folder / file, len(names))
        return cls(
            path=folder,
            name=manifest.name,
            names=names,
            input_size=manifest.input_size,
            stride=manifest.stride,
            precision=manifest.precision,
            files=manifest.files,
            lineage=manifest.lineage,
            hash=_hash(manifest, names),
        )

    @property
    def onnx(self) -> Path:
        return self.path / ONNX

    @property
    def safetensors(self) -> Path | None:
        return self.file(SAFETENSORS)

    def file(self, name: str) -> Path | None:
        """The path of a file that model.json lists; None for any other, even if it lies in the folder."""
        return self.path / name if name in self.files else None


def write_bundle(
    folder: str | Path,
    *,
    name: str,
    names: Sequence[str] | Mapping[int, str],
    input_size: int,
    precision: Precision,
    onnx: bytes,
    safetensors: bytes | None = None,
    lineage: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write a bundle and read it back; `folder` shows either the old or the complete and checked new one.

    `extra` are files of single engines by relative path, such as `openvino/model.xml`. An existing bundle in `folder`
    is replaced, and so is an empty folder; anything else is refused. Raises BundleError, and OSError from the disk.
    """
    target = Path(folder).resolve()
    check_replaceable(target)
    contents = {ONNX: onnx, **({SAFETENSORS: safetensors} if safetensors is not None else {}), **(extra or {})}
    for file in contents:
        _check_file_name(target, file)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        names=[*names] if not isinstance(names, Mapping) else {int(k): v for k, v in names.items()},
        input_size=input_size,
        stride=STRIDE,
        precision=precision,
        files={f: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for f, data in contents.items()},
        lineage=dict(lineage or {}),
    )
    try:
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{target}/{MANIFEST}: cannot be written as JSON: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(target) as fresh:
        for file, data in {**contents, MANIFEST: text}.items():
            _write_synced(fresh / file, data)
        try:
            Bundle.load(fresh)
        except BundleError as error:
            raise BundleError(str(error).replace(str(fresh), str(target))) from None
        _swap(fresh, target)
    return Bundle.load(folder)


def read_manifest(folder: str | Path) -> Manifest:
    """model.json alone, checked for all that it can get wrong alone; its files may not be there. BundleError."""
    manifest = _read_manifest(Path(folder))
    _check_manifest(Path(folder), manifest)
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{path}: missing, so this folder is not a model bundle")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    try:
        # The version is looked at first: a newer format may have fields that would only be called unknown.
        version = msgspec.json.decode(data, type=_Version).format
        if version != FORMAT:
            raise BundleError(f"{path}: format: version {version}, but this release reads version {FORMAT}")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is one of them and names the field
        raise BundleError(f"{path}: {error}") from None
    except RecursionError:
        raise BundleError(f"{path}: nested too deeply") from None


class _Version(msgspec.Struct):
    format: int


def _check_manifest(folder: Path, manifest: Manifest) -> dict[int, str]:
    """Everything that model.json alone can get wrong -> {class id: name}."""

    def fail(field: str, problem: str) -> BundleError:
        return BundleError(f"{folder / MANIFEST}: {field}: {problem}")

    if not _NAME.fullmatch(manifest.name):
        raise fail("name", f"{manifest.name[:100]!r} is not made of 1 to 100 letters, digits, '.', '_' and '-'")
    given = manifest.names
    names = dict(enumerate(given)) if isinstance(given, list) else dict(sorted(given.items()))
    if not 1 <= len(names) <= MAX_CLASSES:
        raise fail("names", f"{len(names)} classes, but 1 to {MAX_CLASSES} are possible")
    if list(names) != list(range(len(names))):
        raise fail("names", f"the ids are not 0 to {len(names) - 1}")
    for class_id, text in names.items():
        if not 1 <= len(text) <= 100 or not text.isprintable() or text != text.strip():
            raise fail(f"names[{class_id}]", "a class name is 1 to 100 printable characters without outer blanks")
    if len(set(names.values())) != len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise fail("names", f"{twice!r} occurs twice, so filters by name would be ambiguous")
    if manifest.stride != STRIDE:
        raise fail("stride", f"{manifest.stride}, but models of this family have {STRIDE}")
    if not STRIDE <= manifest.input_size <= MAX_INPUT_SIZE or manifest.input_size % STRIDE:
        raise fail("input_size", f"{manifest.input_size} is not a multiple of {STRIDE} up to {MAX_INPUT_SIZE}")
    if len(manifest.files) > MAX_FILES:
        raise fail("files", f"{len(manifest.files)} files, but at most {MAX_FILES} are possible")
    if ONNX not in manifest.files:
        raise fail("files", f"{ONNX} is not among them")
    for file, entry in manifest.files.items():
        _check_file_name(folder, file)
        if not _SHA256.fullmatch(entry.sha256):
            raise fail(f"files[{file!r}].sha256", "not 64 lower-case hexadecimal digits")
        if not 0 < entry.bytes <= MAX_FILE_BYTES:
            raise fail(f"files[{file!r}].bytes", f"{entry.bytes} is not between 1 and {MAX_FILE_BYTES}")
    return names


def _check_file_name(folder: Path, file: str) -> None:
    parts = file.split("/")
    if len(parts) > 4 or not all(_NAME.fullmatch(part) for part in parts) or file == MANIFEST:
        raise BundleError(f"{folder / MANIFEST}: files: {file[:200]!r} is not a plain relative path inside the bundle")


def _check_file(root: Path, folder: Path, file: str, entry: FileEntry) -> None:
    """The file lies inside the folder (symbolic links resolved) and is what model.json says."""
    path = folder / file
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root):
            raise BundleError(f"{path}: leads out of the bundle")
        if not real.is_file():
            raise BundleError(f"{path}: not a regular file")
        size = real.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{path}: has {size} bytes, but {MANIFEST} says {entry.bytes}")
        with real.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise BundleError(f"{path}: missing, though {MANIFEST} lists it") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    if digest != entry.sha256:
        raise BundleError(f"{path}: SHA-256 is {digest}, but {MANIFEST} says {entry.sha256}")


def _check_onnx(path: Path, classes: int) -> None:
    """The graph keeps everything inside its own file and has the input and the output of the contract."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        problem: str | None = None
        try:
            header = read_header(data)
        except OnnxFormatError as error:  # its frames hold views of the mapping, which could not be closed with it
            problem = f"{path}: {error}"
    if problem is not None:
        raise BundleError(problem)
    if header.external_data:
        raise BundleError(f"{path}: keeps weights in other files (external data); a bundle's graph is one file")
    if [i.name for i in header.inputs] != [INPUT_NAME] or [o.name for o in header.outputs] != [OUTPUT_NAME]:
        inputs, outputs = [i.name for i in header.inputs], [o.name for o in header.outputs]
        raise BundleError(f"{path}: has inputs {inputs} and outputs {outputs}, not {INPUT_NAME!r} and {OUTPUT_NAME!r}")
    image, prediction = header.inputs[0], header.outputs[0]
    if image.element_type != UINT8 or len(image.shape) != 4 or image.shape[3] != 3:
        raise BundleError(f"{path}: input {INPUT_NAME!r} is not uint8 of shape (B, H, W, 3)")
    if prediction.element_type != FLOAT or len(prediction.shape) != 3:
        raise BundleError(f"{path}: output {OUTPUT_NAME!r} is not float32 of shape (B, 4+nc, A)")
    rows = prediction.shape[1]
    if rows is not None and rows != 4 + classes:
        raise BundleError(f"{path}: predicts {rows - 4} classes, but {MANIFEST} names {classes}")


def _hash(manifest: Manifest, names: dict[int, str]) -> str:
    files = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    content = msgspec.json.encode([list(names.values()), manifest.input_size, manifest.precision, files])
    return hashlib.sha256(content).hexdigest()[:12]


def check_replaceable(folder: str | Path) -> None:
    """BundleError if `write_bundle` would refuse the folder: for who works long before it comes to that."""
    target = Path(folder).resolve()
    empty_or_bundle = target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
    if target.exists() and not empty_or_bundle:
        raise BundleError(f"{target} exists and is not a bundle: it is not overwritten")


@contextlib.contextmanager
def _sibling(target: Path) -> Iterator[Path]:
    """A fresh folder beside the target, on the same file system; whatever is left of it goes at the end."""
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_synced(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _swap(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`. A folder cannot be renamed over a full one: the old one steps aside first, and steps
    back if the second rename fails. Killed in between, the old bundle is found beside its place as `.NAME.*.old`."""
    if not target.exists():
        fresh.rename(target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
