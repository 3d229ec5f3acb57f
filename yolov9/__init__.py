"""YOLOv9: GELAN and programmable gradient information. Importing it brings no torch; models load it when asked for.

model = yolov9.build("gelan-t", ["person", "car"])     # a new one
model = yolov9.load("weights.safetensors")             # a trained one, or a bundle's folder, or a packaged name
yolov9.save(model, "copy.safetensors")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolov9.nn.model import build as build
    from yolov9.weights import load as load
    from yolov9.weights import save as save

_LAZY = {"build": "yolov9.nn.model", "load": "yolov9.weights", "save": "yolov9.weights"}
__all__ = ["build", "load", "save"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as e:
        if e.name not in ("torch", "safetensors"):
            raise
        raise ImportError(f"yolov9.{name} needs {e.name}: pip install 'yolov9-server[train]'") from e


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
