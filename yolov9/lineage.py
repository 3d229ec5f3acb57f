"""Where weights come from: what a bundle's `lineage` tells of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from yolov9 import packaged
from yolov9.bundle import SAFETENSORS

RUN = "run.json"
"""In a training run's folder: its settings."""
_TOLD = ("model", "data_sha256", "pictures", "recipe", "epochs", "batch", "size", "seed", "freeze", "commit", "torch")


def lineage_of(weights: str) -> dict[str, Any]:
    """Name and SHA-256 of the file that `yolov9.weights.load` reads for this, and of a training run's weights how they
    came about. ModelNotFound, OSError."""
    path = packaged.resolve(weights)
    file = path / SAFETENSORS if path.is_dir() else path
    with file.open("rb") as stream:
        found = {"weights": file.name, "weights_sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    try:
        epoch = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        metrics = {k.removeprefix("val/"): v for k, v in epoch["figures"].items() if k.startswith("val/")}
        return {**found, **story_of(file.parent), "epoch": epoch["epoch"], "metrics": metrics}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return found  # not of a run of ours, or not whole any more: it is told, not needed


def story_of(folder: Path) -> dict[str, Any]:
    """What a bundle tells of the training run in a folder: no paths and no command line, since bundles travel."""
    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    start = run["weights"]
    told = {key: run[key] for key in _TOLD}
    return {"run": {**told, "data": [Path(d).name for d in run["data"]], "weights": start and Path(start).name}}
