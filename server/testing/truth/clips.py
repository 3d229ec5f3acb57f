"""Clips that bear the pattern: picture i has the counter i, and its place in the clip, in seconds, as its time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.testing.synthetic import Codec, coded
from server.testing.truth.pattern import draw

_VERSION = 1
"""Part of the cached files' names: raised when the same parameters give other pictures."""
WIDTH, HEIGHT = 640, 360
"""16:9, so that the model's input has a border above and below."""


def pattern_clip(
    *,
    frames: int,
    fps: float,
    codec: Codec = "h264",
    gop: int = 25,
    b_frames: int = 0,
    width: int = WIDTH,
    height: int = HEIGHT,
    quality: int = 26,
    picture_hash: bool = False,
) -> Path:
    """Path of the clip, made once and kept in the folder for temporary files; see `synthetic.coded`."""
    content = f"pattern-{_VERSION}-{frames}"
    return coded(content, _pictures(width, height, frames, fps), width=width, height=height, fps=fps, codec=codec,
                 gop=gop, b_frames=b_frames, quality=quality, picture_hash=picture_hash)  # fmt: skip


def _pictures(width: int, height: int, frames: int, fps: float) -> Iterator[npt.NDArray[np.uint8]]:
    picture = np.empty((height, width, 3), np.uint8)
    for number in range(frames):
        draw(picture, number, number / fps)
        yield picture
