"""All targets by name, and the inputs that each one begins with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from . import files, network
from .files import Check

CORPUS = Path(__file__).parent / "corpus"

TARGETS: dict[str, Callable[[], AbstractContextManager[Check]]] = {
    "checkpoint": files.checkpoint,
    "pickle": files.pickles,
    "bundle": files.bundle,
    "onnx": files.onnx,
    "zip": files.zipped_bundle,
    "tar": files.tarred_bundle,
    "yolo": files.yolo_labels,
    "data-yaml": files.data_yaml,
    "coco": files.coco_labels,
    "voc": files.voc_labels,
    "settings": files.settings,
    "streams": network.streams,
    "playlist": network.playlist,
    "sdp": network.sdp,
    "rtsp": network.rtsp,
    "rtp": network.rtp,
    "websocket": network.websocket,
    "http": network.http,
}


def corpus(name: str) -> list[bytes]:
    """The target's inputs in the order of their names: made ones, and those that once failed."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
