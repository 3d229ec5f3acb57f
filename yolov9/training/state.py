"""What a training run keeps on disk, so that a kill at any moment costs no more than the time since the last write.

Every file is written beside its place, flushed to the disk and renamed over the old one. `state.safetensors` holds all
that a run needs to go on as if it had not stopped: weights, averaged weights, the optimizer's tensors and, in its
header, the counters. `last.safetensors` and `best.safetensors` hold the averaged weights for everything else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from yolov9.files import write_file
from yolov9.nn.model import Detector
from yolov9.training.optimization import Average
from yolov9.weights import to_bytes

STATE, LAST, BEST = "state.safetensors", "last.safetensors", "best.safetensors"


class StateError(Exception):
    """A state that cannot be read, or is not of this run. One sentence that names the file."""


@dataclass
class Progress:
    """How far a run has come. Everything here is plain data."""

    epoch: int = 0
    """The one that runs, from 0."""
    step: int = 0
    """Its batches that are done."""
    updates: int = 0
    """Of the optimizer, since the beginning."""
    best: float = -1.0
    """Fitness."""
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)
    """Losses of the epoch so far, summed over its batches."""
    seconds: float = 0.0
    """Of training, in all sessions together."""


def write_weights(path: Path, average: Average, facts: dict[str, Any]) -> None:
    """The averaged weights, and `facts` (epoch, metrics) as JSON beside them."""
    write_file(path, to_bytes(average.model))
    write_file(path.with_suffix(".json"), json.dumps(facts, indent=1).encode())


def write_state(
    folder: Path, model: Detector, average: Average, optimizer: torch.optim.Optimizer, progress: Progress, run: str
) -> None:
    """`run`: what identifies the run (its settings as JSON): another one's state is refused."""
    tensors: dict[str, Tensor] = {}
    for prefix, source in (("model.", model), ("average.", average.model)):
        tensors |= {prefix + key: value for key, value in source.state_dict().items()}
    names = _names(model, optimizer)
    for p, entries in optimizer.state.items():
        tensors |= {f"optimizer.{key}.{names[p]}": torch.as_tensor(value) for key, value in entries.items()
                    if value is not None}  # fmt: skip
    metadata = {"progress": json.dumps(asdict(progress)), "averages": str(average.updates), "run": run}
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_file(folder / STATE, safetensors.torch.save(contiguous, metadata))


def read_state(folder: Path, model: Detector, average: Average, optimizer: torch.optim.Optimizer, run: str) -> Progress:
    """Put everything back in place, -> how far the run had come. StateError."""
    path = folder / STATE
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise StateError(f"{path}: there is none, so this run cannot be resumed") from None
    except safetensors.SafetensorError as error:
        raise StateError(f"{path}: not readable: {error}") from None
    if metadata.get("run") != run:
        raise StateError(f"{path}: was written with other settings: {_difference(metadata.get('run'), run)}")
    try:
        model.load_state_dict(_part(tensors, "model."))
        average.model.load_state_dict(_part(tensors, "average."))
        progress = Progress(**json.loads(metadata["progress"]))
        average.updates = int(metadata["averages"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"{path}: does not fit: {' '.join(str(error).split())[:300]}") from None
    parameters = {name: p for p, name in _names(model, optimizer).items()}
    for key, value in _part(tensors, "optimizer.").items():
        entry, _, name = key.partition(".")
        if name not in parameters:
            raise StateError(f"{path}: has {key!r}, which the model does not")
        p = parameters[name]
        placed = value if entry == "step" else value.to(p.device).contiguous(memory_format=_format(p))
        optimizer.state[p][entry] = placed
    return progress


def _names(model: Detector, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    mine = {p for group in optimizer.param_groups for p in group["params"]}
    return {p: name for name, p in model.named_parameters() if p in mine}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _format(p: Tensor) -> torch.memory_format:
    return (
        torch.channels_last
        if p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
        else (torch.contiguous_format)
    )


def _difference(before: str | None, now: str) -> str:
    try:
        old, new = json.loads(before or "{}"), json.loads(now)
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    except (ValueError, AttributeError):
        return "which cannot be read"
    return ", ".join(sorted(changed)) or "none that are known"
