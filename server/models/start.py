"""Which model the server begins with: the one it is told, else the one that was active last, else the packaged one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from server.models.registry import models_folder
from server.store import Store
from yolov9.bundle import Bundle, BundleError
from yolov9.packaged import DEFAULT, resolve

log = logging.getLogger("yolov9.models")

MEMORY = "model"
"""Key of the store: JSON of the active model's name and folder."""


class First(NamedTuple):
    bundle: Bundle
    name: str
    """What results call it."""


def given(model: str, data: Path) -> First:
    """What `--model` names: a folder, a registered or a packaged model. ModelNotFound, BundleError."""
    registered = models_folder(data) / model
    if not Path(model).exists() and Path(model).name == model and registered.is_dir():
        return First(Bundle.load(registered), model)
    return _load(resolve(model), data)


async def remembered(store: Store, data: Path) -> First:
    """What was active last, if it is still there; else the packaged one. ModelNotFound, BundleError, StoreError."""
    text = await store.recall(MEMORY)
    if text is not None:
        last = json.loads(text)
        try:
            here = models_folder(data) / last["name"]
            if here.is_dir():  # also where the data folder has moved
                return First(Bundle.load(here), last["name"])
            return _load(Path(last["path"]), data)
        except BundleError as error:
            log.error("model=%s was active last and cannot be loaded: %s", last["name"], error)
    return _load(resolve(DEFAULT), data)


def _load(path: Path, data: Path) -> First:
    bundle = Bundle.load(path)
    registered = path.resolve().parent == models_folder(data).resolve()
    return First(bundle, path.resolve().name if registered else bundle.name)
