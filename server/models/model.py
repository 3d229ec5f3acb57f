"""The model that answers, as results and thresholds know it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Model:
    """What results say of the model that made them. Replaced as a whole at activation."""

    name: str
    generation: int
    """Counts activations since the server's start, from 1."""
    names: dict[int, str]
    input_size: int


def missing_classes(
    names: dict[int, str], classes: Sequence[str] | None, class_confidence: Mapping[str, float] | None
) -> list[str]:
    """Classes that are asked for and that the model does not have, each once."""
    known = set(names.values())
    return [name for name in dict.fromkeys([*(classes or ()), *(class_confidence or ())]) if name not in known]


def class_thresholds(
    names: dict[int, str],
    confidence: float,
    classes: Sequence[str] | None = None,
    class_confidence: Mapping[str, float] | None = None,
) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
    """float32[nc], 2.0 for a class that is not wanted; None if one confidence holds for all.

    ValueError `FIELD: ...` for a class that the model does not have.
    """
    if classes is None and not class_confidence:
        return None
    known = {name: class_id for class_id, name in names.items()}
    chosen = class_confidence or {}
    for field, asked in (("classes", classes or ()), ("class_confidence", chosen)):
        for name in asked:
            if name not in known:
                raise ValueError(f"{field}: the model has no class {name!r}")
    wanted = known if classes is None else set(classes)
    thresholds = np.full(max(names) + 1, 2.0, np.float32)
    for name, class_id in known.items():
        if name in wanted:
            thresholds[class_id] = chosen.get(name, confidence)
    return thresholds
