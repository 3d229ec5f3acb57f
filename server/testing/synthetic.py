"""Clips made to measure: moving rectangles, and in every picture its own number, which a program can read back.

The number stands at the top of the picture as sixteen black or white cells over the same cells inverted, in proportion
to the picture's size: it survives coding, scaling and a change of colour format, and a torn or grey picture has none.
Clips are made once and kept in the folder for temporary files.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt

_VERSION = 1
"""Part of the cached files' names: raised when the same parameters give other pictures."""
_BITS = 16
_ROWS = 10
"""The number's cells are a tenth of the picture high; two rows of them."""
_CELL_CONTRAST = 150
"""Least difference of a cell to its inverse, of 255: grey beside black or white does not count."""

Codec = Literal["h264", "hevc"]
_ENCODER = {"h264": "libx264", "hevc": "libx265"}


@dataclass(frozen=True, slots=True)
class _Coding:
    width: int
    height: int
    fps: float
    codec: Codec
    gop: int
    b_frames: int
    quality: int
    picture_hash: bool = False

    @property
    def key(self) -> str:
        size = f"{self.codec}-{self.width}x{self.height}-{self.fps:g}"
        return f"{size}-{self.gop}-{self.b_frames}-{self.quality}" + "-hash" * self.picture_hash


def make_clip(
    *,
    width: int = 640,
    height: int = 352,
    fps: float = 25.0,
    frames: int = 100,
    codec: Codec = "h264",
    gop: int = 25,
    b_frames: int = 0,
    quality: int = 23,
    first_number: int = 0,
) -> Path:
    """An MP4 file whose picture i bears the number `first_number + i` (below 65536).

    `gop`: frames from keyframe to keyframe (all closed). `quality`: CRF; less is more bytes. Sides must be even."""
    pictures = (draw(width, height, first_number + index) for index in range(frames))
    content = f"synthetic-{_VERSION}-{first_number}-{frames}"
    return coded(content, pictures, width=width, height=height, fps=fps, codec=codec, gop=gop, b_frames=b_frames,
                 quality=quality)  # fmt: skip


def coded(
    content: str,
    pictures: Iterable[npt.NDArray[np.uint8]],
    *,
    width: int,
    height: int,
    fps: float = 25.0,
    codec: Codec = "h264",
    gop: int = 25,
    b_frames: int = 0,
    quality: int = 23,
    picture_hash: bool = False,
) -> Path:
    """An MP4 file of pictures (height, width, 3) RGB. `content` names what they show, for the cached file's name.
    `picture_hash`: with the MD5 of each decoded picture in an SEI message (H.265 only)."""
    return _cached(content, pictures, _Coding(width, height, fps, codec, gop, b_frames, quality, picture_hash))


def reencode(
    source: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    frames: int | None = None,
    codec: Codec = "h264",
    gop: int = 25,
    b_frames: int = 0,
    quality: int = 23,
) -> Path:
    """The first video of a file scaled to another size, at its own frame rate; `frames` None: all of them."""
    source = Path(source).resolve()
    with av.open(str(source)) as container:
        fps = float(container.streams.video[0].average_rate or 25)
    stamp = hashlib.sha256(f"{source} {source.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    coding = _Coding(width, height, fps, codec, gop, b_frames, quality)
    return _cached(f"{source.stem}-{_VERSION}-{stamp}-{frames}", _scaled(source, width, height, frames), coding)


def draw(width: int, height: int, number: int) -> npt.NDArray[np.uint8]:
    """Picture (height, width, 3) uint8 RGB that bears `number`; the same number gives the same picture."""
    image = _background(width, height).copy()
    for shape in range(4):
        speed, size = 2 + shape, height // (5 + shape)
        left = (number * speed * width // 200 + shape * width // 4) % (width - size)
        top = height // 4 + (number * (shape + 1) + shape * 31) % (height - height // 4 - size)
        image[top : top + size, left : left + size] = ((shape * 67 + 40) % 256, 255 - shape * 50, shape * 80)
    bits = number >> np.arange(_BITS) & 1
    row = height // _ROWS
    edges = np.arange(_BITS + 1) * width // _BITS
    for bit in range(_BITS):
        image[:row, edges[bit] : edges[bit + 1]] = 255 * bits[bit]
        image[row : 2 * row, edges[bit] : edges[bit + 1]] = 255 - 255 * bits[bit]
    return image


def read_counter(image: npt.NDArray[np.uint8]) -> int | None:
    """The number that a picture (H, W, 3) uint8 of any size bears; None where it cannot be read with certainty."""
    height, width = image.shape[:2]
    row, cell = height / _ROWS, width / _BITS
    number = 0
    for bit in range(_BITS):
        left, right = int((bit + 0.3) * cell), int((bit + 0.7) * cell) + 1
        upper = image[int(0.3 * row) : int(0.7 * row) + 1, left:right].mean()
        lower = image[int(1.3 * row) : int(1.7 * row) + 1, left:right].mean()
        if abs(upper - lower) < _CELL_CONTRAST:
            return None
        number |= int(upper > lower) << bit
    return number


@functools.lru_cache(maxsize=8)
def _background(width: int, height: int) -> npt.NDArray[np.uint8]:
    """A gradient with some texture, so that frames have a camera's weight in bytes."""
    x = np.linspace(40, 200, width)[None, :, None]
    y = np.linspace(0, 50, height)[:, None, None]
    texture = np.random.default_rng(1).normal(0, 6, (height, width, 1))
    tint = np.array([1.0, 0.9, 0.75])
    picture: npt.NDArray[np.uint8] = np.clip((x + y + texture) * tint, 0, 255).astype(np.uint8)
    return picture


def _scaled(source: Path, width: int, height: int, frames: int | None) -> Iterator[npt.NDArray[np.uint8]]:
    with av.open(str(source)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if frames is not None and index >= frames:
                return
            yield np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), np.uint8)


def _cached(content: str, pictures: Iterable[npt.NDArray[np.uint8]], coding: _Coding) -> Path:
    folder = Path(tempfile.gettempdir()) / f"yolov9-clips-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{content}-{coding.key}.mp4"
    if path.exists():
        return path
    # Under a name of its own first: tests that run side by side may want the same clip.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".mp4", delete=False) as unfinished:
        pass
    try:
        _encode(unfinished.name, pictures, coding)
        os.replace(unfinished.name, path)
    except BaseException:
        os.unlink(unfinished.name)
        raise
    return path


def _encode(path: str, pictures: Iterable[npt.NDArray[np.uint8]], coding: _Coding) -> None:
    parameters = f"keyint={coding.gop}:min-keyint={coding.gop}:scenecut=0:bframes={coding.b_frames}:open-gop=0"
    options = {"crf": str(coding.quality), "preset": "ultrafast", "threads": "1"}
    if coding.codec == "h264":
        options["x264-params"] = parameters
    else:
        options["x265-params"] = parameters + f":log-level=none:pools=1:hash={int(coding.picture_hash)}"
    rate = Fraction(coding.fps).limit_denominator(1001)
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream(_ENCODER[coding.codec], rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = coding.width, coding.height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
