"""The published checkpoints: where they are, under which licence, and where this machine keeps them. Needs no torch.

They are other people's files. They are fetched only when somebody asks (`python -m yolov9.weights get NAME`); a file
that was put into the cache by hand is as good. What a file is must stay so: its sha256 is recorded beside it the first
time and compared whenever it is used by its name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolov9.checkpoints import download

_R1 = "https://github.com/WongKinYiu/yolov9/releases/download/v0.1/"
_R2 = "https://github.com/MultimediaTechLab/YOLO/releases/download/v1.0-alpha/"
MAX_BYTES = 1 << 30
"""The largest published file has some 280 MB."""
_VERIFIED = {"yolov9-t-converted": "61e080e964e65e32b884477c5e6344c607c7e02103d64649de810edaeb869803"}
"""sha256 that three independent projects report of the same file. No statement of the publishers is known; of the
other files the first download's is recorded."""


class ReleaseError(Exception):
    """A published checkpoint that is not to be had: one sentence that says what to do."""


@dataclass(frozen=True)
class Release:
    """One published file."""

    name: str
    url: str
    licence: str
    about: str
    sha256: str | None = None

    @property
    def file(self) -> str:
        return f"{self.name}.pt"


def _releases() -> dict[str, Release]:
    found = []
    for size in "smce":
        about = "training model, with its auxiliary branch"
        found.append(Release(f"yolov9-{size}", f"{_R1}yolov9-{size}.pt", "GPL-3.0", about))
    for size in "tsmce":
        name = f"yolov9-{size}-converted"
        about = "the same weights without the auxiliary branch" if size != "t" else "without the auxiliary branch"
        found.append(Release(name, f"{_R1}{name}.pt", "GPL-3.0", about, _VERIFIED.get(name)))
    for size in "smce":
        about = "trained without an auxiliary branch"
        found.append(Release(f"gelan-{size}", f"{_R1}gelan-{size}.pt", "GPL-3.0", about))
    for size in "tsmc":
        found.append(Release(f"v9-{size}", f"{_R2}v9-{size}.pt", "MIT (as its publisher states)", "training model"))
    return {release.name: release for release in found}


RELEASES: Mapping[str, Release] = _releases()


def find(name: str) -> Release:
    """The release of a name such as `yolov9-c` or `yolov9-c.pt`. ReleaseError with the nearest ones."""
    release = RELEASES.get(name.removesuffix(".pt"))
    if release is None:
        near = [n for n in RELEASES if n.startswith(name)] or difflib.get_close_matches(name, RELEASES, 3, 0.6)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ReleaseError(f"no published checkpoint is called {name!r}{hint}. All: {', '.join(RELEASES)}")
    return release


def cache_folder() -> Path:
    """XDG_CACHE_HOME/yolov9, by default ~/.cache/yolov9."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "yolov9"


def cached(name: str, folder: Path | None = None) -> Path | None:
    """The file of a release that this machine has, verified; None if it has none, or `name` is no release.

    ReleaseError if the file is not what it was.
    """
    release = RELEASES.get(name.removesuffix(".pt"))
    path = (folder or cache_folder()) / release.file if release else None
    if release is None or path is None or not path.is_file():
        return None
    _verify(release, path)
    return path


def get(
    release: Release,
    folder: Path,
    say: Callable[[str], None],
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Path:
    """The file of a release in `folder`, fetched if it is not there. `progress`: bytes so far, of how many.

    ReleaseError says what to do where the network fails; OSError from the disk.
    """
    path = folder / release.file
    if path.is_file():
        digest = _verify(release, path)
        if digest is None:
            digest = _record(release, path)
            say(f"{path} was put there by hand; its sha256 is recorded from now on")
    else:
        say(f"fetching {release.url}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download.fetch(
                release.url, path, limit=MAX_BYTES, check=lambda part: _check(release, part), progress=progress
            )
        except download.DownloadError as e:
            begun = path.with_name(path.name + ".part").exists()
            raise ReleaseError(
                f"{release.file}: {e}. {'Call again to go on with what is there. ' if begun else ''}By hand: download "
                f"{release.url} ({release.licence}) and put it at {path}, where it is found by its name"
            ) from e
        digest = _record(release, path)
    say(f"{path}: {path.stat().st_size:,} bytes, sha256 {digest}, licence {release.licence}")
    return path


def _check(release: Release, part: Path) -> None:
    """Whether the bytes that came are a checkpoint, and the published one. DownloadError."""
    with part.open("rb") as stream:
        start = stream.read(64)
    if not start.startswith(b"PK\x03\x04"):
        raise download.DownloadError(f"what came is not a torch file: it begins with {start[:24]!r}")
    if release.sha256 is not None and (digest := _digest(part)) != release.sha256:
        raise download.DownloadError(f"what came has the sha256 {digest}, the published file {release.sha256}")


def _verify(release: Release, path: Path) -> str | None:
    """The sha256 of a file, equal to what is published or recorded; None if nothing is. ReleaseError if it differs."""
    expected = release.sha256
    try:
        if expected is None:
            expected = str(json.loads(_manifest(path).read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise ReleaseError(f"{_manifest(path)}: not a record of a download: delete it and call get again") from e
    digest = _digest(path)
    if digest != expected:
        raise ReleaseError(
            f"{path}: its sha256 is {digest}, not {expected}: it was changed or is damaged. Delete it and fetch it anew"
        )
    return digest


def _record(release: Release, path: Path) -> str:
    digest = _digest(path)
    record = {
        "url": release.url,
        "licence": release.licence,
        "bytes": path.stat().st_size,
        "sha256": digest,
    }
    scratch = _manifest(path).with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    scratch.replace(_manifest(path))
    return digest


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
