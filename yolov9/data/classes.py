"""Which class of a model is which class of a data set: by name, exactly but for case, blanks, `_` and `-`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from yolov9.data.dataset import DataError

_PLACEHOLDER = re.compile(r"(class)?[ _-]?\d+", re.IGNORECASE)
"""Names that say nothing, as models get where a checkpoint names no classes."""


@dataclass(frozen=True)
class ClassMatch:
    to_data: dict[int, int]
    """{the model's class id: the data's}, common ones only."""
    missing: list[str]
    """Classes of the data that the model does not have, in their order."""
    unused: list[str]
    """Classes of the model that the data does not have, in their order."""
    by_id: bool
    """The model's classes have no names; there are as many as in the data, and they were taken in order."""


def normalised(name: str) -> str:
    """What of a name counts: `Traffic-Light`, `traffic_light` and `trafficlight` are one."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def match_classes(model: Mapping[int, str], data: Mapping[int, str]) -> ClassMatch:
    """Pair the classes of a model with those of the data. DataError if they have none in common.

    There are no aliases: `motorbike` is not `motorcycle`. Where two names of one side differ only in what does not
    count, exact names pair; what is left over of them pairs with nothing.
    """
    exact = {name: i for i, name in data.items()}
    to_data = {i: exact[name] for i, name in model.items() if name in exact}
    loose_model = _unique({i: name for i, name in model.items() if i not in to_data})
    loose_data = _unique({i: name for i, name in data.items() if i not in to_data.values()})
    to_data |= {i: loose_data[key] for key, i in loose_model.items() if key in loose_data}
    if to_data:
        taken = set(to_data.values())
        return ClassMatch(
            dict(sorted(to_data.items())),
            missing=[name for i, name in data.items() if i not in taken],
            unused=[name for i, name in model.items() if i not in to_data],
            by_id=False,
        )
    if len(model) == len(data) and all(_PLACEHOLDER.fullmatch(name) for name in model.values()):
        return ClassMatch(dict(zip(sorted(model), sorted(data), strict=True)), [], [], by_id=True)
    raise DataError(f"no class in common: the model has {_some(model)}, the data {_some(data)}")


def _unique(names: Mapping[int, str]) -> dict[str, int]:
    """{normalised name: id} of the names that are the only ones to normalise so."""
    keys = [normalised(name) for name in names.values()]
    return {key: i for key, i in zip(keys, names, strict=True) if keys.count(key) == 1}


def _some(names: Mapping[int, str], most: int = 8) -> str:
    shown = list(names.values())[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
