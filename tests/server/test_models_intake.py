"""Bundles from elsewhere: what is whole gets in, what is hostile does not, and nothing is left of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_bundle

from server.models.intake import ArchiveError, ArchiveKind, Place, sweep, take_archive, take_folder
from yolov9.bundle import Bundle, BundleError

MB = 1 << 20
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def files(bundle: Bundle) -> Files:
    return {path.name: path.read_bytes() for path in bundle.path.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data" / "models", None, frozenset(), 10 * MB)


def zipped(files: Files, folder: str = "", method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(folder + name, data)
    return out


def tarred(files: Files, folder: str = "", pack: bool = False) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if pack else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out


def nothing_left(place: Place) -> bool:
    return not place.models.exists() or not any(place.models.iterdir())


@pytest.mark.parametrize("folder", ["", "my-model/", "./"])
@pytest.mark.parametrize(
    ("kind", "pack"), [("zip", zipped), ("tar", tarred), ("tar", lambda files, folder: tarred(files, folder, True))]
)
def test_a_bundle_comes_as_zip_tar_or_tar_gz_at_the_top_or_in_a_folder(
    kind: ArchiveKind, pack: Callable[[Files, str], io.BytesIO], folder: str, files: Files, place: Place
) -> None:
    extra = {"README.md": b"a model", "notes/../../evil": b"x"}
    taken = take_archive(pack(files | extra, folder), kind, place)
    assert taken.path == place.models / "tiny"
    assert sorted(path.name for path in taken.path.iterdir()) == ["model.json", "model.onnx"], "and nothing else"
    assert os.listdir(place.models) == ["tiny"]
    assert not (place.models.parent / "evil").exists()


def test_a_folder_is_copied_under_another_name_and_a_name_is_given_once(bundle: Bundle, place: Place) -> None:
    taken = take_folder(bundle.path, place._replace(name="mine"))
    assert (taken.path.name, taken.name, taken.hash) == ("mine", "tiny", bundle.hash)
    with pytest.raises(FileExistsError, match="mine"):
        take_folder(bundle.path, place._replace(name="mine"))
    with pytest.raises(FileExistsError, match="tiny"):
        take_folder(bundle.path, place._replace(taken=frozenset({"tiny"})))
    assert os.listdir(place.models) == ["mine"]


def changed(contents: Files, **fields: object) -> Files:
    return contents | {"model.json": json.dumps(json.loads(contents["model.json"]) | fields).encode()}


def listing(files: Files, name: str, size: int) -> Files:
    entries = json.loads(files["model.json"])["files"] | {name: {"sha256": "0" * 64, "bytes": size}}
    return changed(files, files=entries)


HOSTILE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no manifest": (lambda f: {"model.onnx": f["model.onnx"]}, r"there is no model\.json"),
    "a file that is missing": (lambda f: {"model.json": f["model.json"]}, r"model\.onnx is not in the archive"),
    "other contents": (lambda f: f | {"model.onnx": f["model.onnx"][:-1] + b"\0"}, r"^model\.onnx: SHA-256"),
    "a longer file": (lambda f: f | {"model.onnx": f["model.onnx"] + b"\0"}, r"^model\.onnx: has \d+ bytes"),
    "a way out": (lambda f: listing(f, "../../etc/cron.d/x", 3), r"^model\.json: files: '\.\./\.\./etc"),
    "an absolute path": (lambda f: listing(f, "/etc/passwd", 3), r"^model\.json: files: '/etc/passwd'"),
    "terabytes": (lambda f: listing(f, "model.safetensors", 1 << 40), r"model\.json: .*bytes"),
    "more than is allowed": (lambda f: listing(f, "model.safetensors", 11 * MB), r"10485760 at most"),
    "a huge manifest": (lambda f: f | {"model.json": b" " * (5 * MB)}, r"^model\.json: larger than"),
    "no JSON": (lambda f: f | {"model.json": b"\x80\x04."}, r"^model\.json: "),
    "a newer format": (lambda f: changed(f, format=99), "version 99"),
    "two bundles": (lambda f: {"a/model.json": f["model.json"], "b/model.json": f["model.json"]}, "more than one"),
    "thousands of files": (lambda f: f | {f"x{n}": b"" for n in range(1000)}, "more than 640 files"),
    "no graph": (
        lambda f: {"model.json": f["model.json"], "model.onnx": b"x" * len(f["model.onnx"])}, r"^model\.onnx: SHA-256",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize(("kind", "pack"), [("zip", zipped), ("tar", tarred)])
def test_what_is_no_bundle_is_refused_by_file_and_leaves_nothing(
    kind: ArchiveKind, pack: Callable[[Files], io.BytesIO], what: str, files: Files, place: Place
) -> None:
    change, message = HOSTILE[what]
    with pytest.raises((ArchiveError, BundleError), match=message) as refused:
        take_archive(pack(change(files)), kind, place)
    assert str(place.models) not in str(refused.value), "the server's folders are nobody's business"
    assert nothing_left(place)


def test_links_and_devices_are_no_files(files: Files, place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(files["model.onnx"])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        manifest = tarfile.TarInfo("model.json")
        manifest.size = len(files["model.json"])
        archive.addfile(manifest, io.BytesIO(files["model.json"]))
        link = tarfile.TarInfo("model.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    with pytest.raises(ArchiveError, match="is not in the archive"):
        take_archive(out, "tar", place)
    out = zipped({"model.json": files["model.json"]})
    with zipfile.ZipFile(out, "a") as archive:
        info = zipfile.ZipInfo("model.onnx")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, str(tmp_path / "secret"))
    with pytest.raises(ArchiveError, match="is not in the archive"):
        take_archive(out, "zip", place)
    assert nothing_left(place)


def test_a_folder_with_a_link_that_leads_out_of_it_is_refused(bundle: Bundle, place: Place, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.json").write_bytes((bundle.path / "model.json").read_bytes())
    (copy / "model.onnx").symlink_to(bundle.path / "model.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        take_folder(copy, place)


def test_bombs_are_bounded_by_what_a_model_may_have(files: Files, place: Place) -> None:
    small = place._replace(max_bytes=MB)
    bomb = gzip.compress(b"\0" * (10 * MB))
    with pytest.raises(ArchiveError):
        take_archive(io.BytesIO(bomb), "tar", small)
    bomb = tarred({"zeros": b"\0" * (10 * MB)} | files, pack=True).getvalue()
    with pytest.raises(ArchiveError, match="more than 7864320 bytes are in the archive"):
        take_archive(io.BytesIO(bomb), "tar", small)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 64 * MB
    with pytest.raises(ArchiveError, match=r"header of 67108864 bytes|cannot be read"):
        take_archive(io.BytesIO(header.tobuf() + b"\0" * 1024), "tar", small)
    lying = bytearray(zipped(files, method=zipfile.ZIP_STORED).getvalue())
    lying[-10:-6] = (1 << 31).to_bytes(4, "little")  # the size of the directory
    with pytest.raises(ArchiveError):
        take_archive(io.BytesIO(bytes(lying)), "zip", small)
    assert nothing_left(place)


def test_methods_that_only_few_readers_know_and_passwords_are_refused(files: Files, place: Place) -> None:
    with pytest.raises(ArchiveError, match="other than deflate"):
        take_archive(zipped(files, method=zipfile.ZIP_LZMA), "zip", place)
    locked = bytearray(zipped(files).getvalue())
    for at in (locked.index(b"PK\x03\x04") + 6, locked.index(b"PK\x01\x02") + 8):
        locked[at] |= 1
    with pytest.raises(ArchiveError, match=r"encrypted|password"):
        take_archive(io.BytesIO(bytes(locked)), "zip", place)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_archives_are_refused_and_nothing_else_happens(bundle: Bundle, data: st.DataObject) -> None:
    files = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    kind: ArchiveKind = data.draw(st.sampled_from(["zip", "tar"]))
    whole = (zipped(files) if kind == "zip" else tarred(files, pack=data.draw(st.booleans()))).getvalue()
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if broken:
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    models = bundle.path.parent / "registered"
    place = Place(models, "taken", frozenset(), 10 * MB)
    try:
        taken = take_archive(io.BytesIO(bytes(broken)), kind, place)
    except (ArchiveError, BundleError):
        assert nothing_left(place)
    else:
        assert taken.hash == bundle.hash, "only an intact one gets in"
        shutil.rmtree(models)


def test_what_a_killed_server_left_is_swept(place: Place, bundle: Bundle) -> None:
    taken = take_folder(bundle.path, place)
    (place.models / ".fresh.0011.tmp").mkdir()
    (place.models / ".upload.0011.tmp").write_bytes(b"x")
    sweep(place.models)
    assert list(place.models.iterdir()) == [taken.path]
