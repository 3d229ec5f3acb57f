"""Models by name: `NAME` on every command line.

The ones that come inside the distribution are in `yolov9/models/NAME/`. Published checkpoints (`yolov9-c`, ...) that
were fetched with `python -m yolov9.weights get NAME` are known by their names, too.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT = "street-t"
"""What `python -m server` runs when no model is named."""


class ModelNotFound(Exception):
    """Neither a folder nor a packaged name; the message says what there is and what to do."""


def names() -> list[str]:
    """Names of the packaged models, sorted."""
    root = folder()
    return sorted(p.name for p in root.iterdir() if (p / "model.json").is_file()) if root.is_dir() else []


def resolve(name_or_path: str | Path) -> Path:
    """The path itself if something is there, the bundle folder of a packaged name, or the file of a published one.

    ModelNotFound otherwise.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    if len(path.parts) == 1 and str(name_or_path) in names():
        return folder() / str(name_or_path)
    published = _published(str(name_or_path))
    if published is not None:
        return published
    have = ", ".join(names()) or "none"
    raise ModelNotFound(
        f"model {str(name_or_path)!r} is neither a folder nor a packaged model (packaged: {have}). Make a bundle from "
        "a checkpoint with: python -m yolov9.export --weights WEIGHTS --out BUNDLE"
    )


def _published(name: str) -> Path | None:
    """The file of a published checkpoint, None if that is no such name. ModelNotFound if it has to be fetched."""
    from yolov9.checkpoints import releases  # with it come the modules for HTTP

    try:
        path = releases.cached(name)
    except releases.ReleaseError as e:
        raise ModelNotFound(str(e)) from None
    if path is None and name.removesuffix(".pt") in releases.RELEASES:
        raise ModelNotFound(
            f"{name} is a published checkpoint that is not on this machine yet: python -m yolov9.weights get {name}"
        )
    return path


def folder() -> Path:
    """Where the packaged models lie."""
    return Path(str(files("yolov9") / "models"))
