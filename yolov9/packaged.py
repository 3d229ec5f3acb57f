"""Models that come inside the distribution: `NAME` on every command line. Their place is `yolov9/models/NAME/`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT = "street-t"
"""What `python -m server` runs when no model is named."""


class ModelNotFound(Exception):
    """Neither a folder nor a packaged name; the message says what there is and what to do."""


def names() -> list[str]:
    """Names of the packaged models, sorted."""
    root = _root()
    return sorted(p.name for p in root.iterdir() if (p / "model.json").is_file()) if root.is_dir() else []


def resolve(name_or_path: str | Path) -> Path:
    """The bundle folder of a packaged name, or the path itself if something is there. ModelNotFound otherwise."""
    path = Path(name_or_path)
    if path.exists():
        return path
    if len(path.parts) == 1 and str(name_or_path) in names():
        return _root() / str(name_or_path)
    have = ", ".join(names()) or "none"
    raise ModelNotFound(
        f"model {str(name_or_path)!r} is neither a folder nor a packaged model (packaged: {have}). Make a bundle from "
        "a checkpoint with: python -m yolov9.export --weights WEIGHTS --out BUNDLE"
    )


def _root() -> Path:
    return Path(str(files("yolov9") / "models"))
