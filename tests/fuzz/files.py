"""Targets that read files: checkpoints, model bundles, labels, settings."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from server.models.intake import ArchiveError, ArchiveKind, Place, take_archive
from server.settings import SettingsError, load_settings
from yolov9.bundle import MANIFEST, ONNX, Bundle, BundleError
from yolov9.checkpoints.errors import WeightsError
from yolov9.checkpoints.reading import read
from yolov9.data import DataError, open_dataset
from yolov9.nn.architecture import ArchitectureError
from yolov9.onnx_header import OnnxFormatError, read_header
from yolov9.weights import open_checkpoint, skeleton

Check = Callable[[bytes], None]

RECORDS = {"data/0": 96, "data/1": 96, "data/2": 8, "data/3": 4}
"""Bytes of the storages beside a fuzzed pickle: two of 24 floats, a long, a float."""
_PICTURE = (64, 48)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="yolov9-fuzz-") as name:
        yield Path(name)


@contextmanager
def checkpoint() -> Iterator[Check]:
    """A whole file, as `yolov9.load` opens it."""
    with _folder() as folder:
        path = folder / "w.pt"

        def check(data: bytes) -> None:
            path.write_bytes(data)
            _open(path)

        yield check


@contextmanager
def pickles() -> Iterator[Check]:
    """The pickle inside of an intact torch archive: what a checksum hides from a fuzzer of whole files."""
    with _folder() as folder:
        path = folder / "w.pt"

        def check(data: bytes) -> None:
            path.write_bytes(torch_archive(data))
            _open(path)

        yield check


def torch_archive(pickle: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("w/data.pkl"), pickle)
        for record, size in RECORDS.items():
            archive.writestr(zipfile.ZipInfo(f"w/{record}"), bytes(range(size)))
    return stream.getvalue()


def _open(path: Path) -> None:
    try:
        found = read(path)
        tensors = found.tensors()
        assert tensors.keys() == found.shapes.keys()
        assert all(torch.Size(found.shapes[key].shape) == tensor.shape for key, tensor in tensors.items())
        skeleton(open_checkpoint(path))
    except (WeightsError, ArchitectureError) as error:
        _said_in_one_line(error)


def _said_in_one_line(error: Exception) -> None:
    assert str(error)
    assert len(str(error)) < 20_000, "an error of this length floods a log"


@contextmanager
def bundle() -> Iterator[Check]:
    """model.json beside a model that it may describe."""
    with _folder() as folder:
        (folder / ONNX).write_bytes(b"\x08\x08")
        manifest = folder / MANIFEST

        def check(data: bytes) -> None:
            manifest.write_bytes(data)
            _load(folder)

        yield check


@contextmanager
def onnx() -> Iterator[Check]:
    """model.onnx under a manifest that lists it truly."""
    with _folder() as folder:
        model, manifest = folder / ONNX, folder / MANIFEST

        def check(data: bytes) -> None:
            try:
                read_header(data)
            except OnnxFormatError as error:
                _said_in_one_line(error)
            model.write_bytes(data)
            manifest.write_bytes(manifest_of(data))
            _load(folder)

        yield check


@contextmanager
def zipped_bundle() -> Iterator[Check]:
    """A model as it is uploaded."""
    with _folder() as folder:
        yield _intake(folder, "zip")


@contextmanager
def tarred_bundle() -> Iterator[Check]:
    with _folder() as folder:
        yield _intake(folder, "tar")


def _intake(folder: Path, kind: ArchiveKind) -> Check:
    models = folder / "models"
    place = Place(models, "uploaded", frozenset(), 1 << 20)

    def check(data: bytes) -> None:
        try:
            taken = take_archive(io.BytesIO(data), kind, place)
        except (ArchiveError, BundleError) as error:
            _said_in_one_line(error)
            assert not list(models.iterdir()), "a refused upload leaves nothing behind"
        else:
            assert taken.path.parent == models
            assert sum(file.stat().st_size for file in taken.path.rglob("*") if file.is_file()) < 2 << 20
            shutil.rmtree(taken.path)
        assert list(folder.iterdir()) == [models], "nothing is written elsewhere"

    return check


def manifest_of(model: bytes) -> bytes:
    """model.json for a model of two classes."""
    entry = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    return json.dumps(
        {"format": 1, "name": "tiny", "names": ["red", "blue"], "input_size": 64, "stride": 32, "precision": "fp32",
         "files": {ONNX: entry}, "lineage": {}}
    ).encode()  # fmt: skip


def _load(folder: Path) -> None:
    try:
        loaded = Bundle.load(folder)
    except BundleError as error:
        _said_in_one_line(error)
    else:
        assert list(loaded.names) == list(range(len(loaded.names)))
        assert all((folder / name).resolve().is_relative_to(folder.resolve()) for name in loaded.files)


def _picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", _PICTURE).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def yolo_labels() -> Iterator[Check]:
    with _folder() as folder:
        for name in ("images/train", "labels/train"):
            (folder / name).mkdir(parents=True)
        (folder / "images/train/a.png").write_bytes(_picture())
        (folder / "data.yaml").write_text("train: images/train\nnames: [car, person]\n")
        yield _data_set(folder, folder / "labels/train/a.txt")


@contextmanager
def data_yaml() -> Iterator[Check]:
    with _folder() as folder:
        for name in ("images/train", "labels/train"):
            (folder / name).mkdir(parents=True)
        (folder / "images/train/a.png").write_bytes(_picture())
        (folder / "labels/train/a.txt").write_text("0 .5 .5 .2 .2\n")
        check = _data_set(folder / "data.yaml", folder / "data.yaml")
        # Absolute paths are allowed, and would have the whole machine searched for pictures.
        yield lambda data: check(re.sub(rb"(?<![A-Za-z0-9])/|~", b"", data))


@contextmanager
def coco_labels() -> Iterator[Check]:
    with _folder() as folder:
        (folder / "a.png").write_bytes(_picture())
        (folder / "b.png").write_bytes(_picture())
        yield _data_set(folder / "train.json", folder / "train.json")


@contextmanager
def voc_labels() -> Iterator[Check]:
    with _folder() as folder:
        (folder / "a.png").write_bytes(_picture())
        yield _data_set(folder, folder / "a.xml")


def _data_set(path: Path, file: Path) -> Check:
    def check(data: bytes) -> None:
        file.write_bytes(data)
        try:
            with np.errstate(all="raise"):  # an overflow would be an infinity among the labels
                found = open_dataset(path, "all", polygons=True)
        except DataError as error:
            _said_in_one_line(error)
            return
        for item in found.items:
            assert item.boxes.shape == (len(item.classes), 4)
            assert item.width > 0
            assert item.height > 0
            assert (item.boxes >= 0).all()
            assert (item.boxes <= [item.width, item.height] * 2).all()
            assert all(0 <= number < len(found.names) for number in item.classes)
            assert np.isfinite(item.areas).all()
        for problem in found.problems[:100]:
            assert len(str(problem)) < 20_000

    return check


@contextmanager
def settings() -> Iterator[Check]:
    """The server's settings: a file that is broken must not end a server that reads it anew."""
    with _folder() as folder:
        path = folder / "server.yaml"

        def check(data: bytes) -> None:
            path.write_bytes(data)
            try:
                load_settings(path)
            except SettingsError as error:
                _said_in_one_line(error)

        yield check
