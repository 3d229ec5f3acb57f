"""What `predict` reads and writes: finds images and videos, decodes a video frame by frame, encodes a drawn one."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from yolov9.images import SUFFIXES as IMAGE_SUFFIXES

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".264",
    ".265", ".h264", ".h265", ".hevc",
})
# fmt: on
OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0
"""Of a URL. libavformat would wait for ever."""
_DEFAULT_RATE = Fraction(25)
"""Of a drawn video whose source states none."""
_TICK = Fraction(1, 90_000)
"""Time base of a drawn video: every usual frame rate is a whole number of ticks."""
_BT709 = 1
"""Matrix, primaries and transfer of a drawn video: the number is the same in all three tables."""


class MediaError(Exception):
    """A source that is not there, or a video that cannot be opened, read or written. Names it, without credentials."""


@dataclass(frozen=True, slots=True)
class Source:
    address: str
    """What is opened. May hold credentials: show `label`."""
    label: str
    is_image: bool


def find(source: str) -> list[Source]:
    """An image, a video, a folder of both (not of folders), a glob or a URL -> what to read, in order. MediaError."""
    if "://" in source:
        return [Source(source, masked(source), is_image=False)]
    path = Path(source)
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    elif path.exists():
        paths = [path]
    elif glob.has_magic(source):
        paths = [p for p in map(Path, sorted(glob.glob(source, recursive=True))) if p.is_file()]
    else:
        raise MediaError(f"{source}: no such file or folder")
    if not paths:
        raise MediaError(f"{source}: no images or videos there")
    return [Source(str(p), str(p), p.suffix.lower() in IMAGE_SUFFIXES) for p in paths]


def masked(url: str) -> str:
    """A URL without user information and query. A password may hold `@`, `/` and `?`: all up to the last `@` goes."""
    return re.sub(r"://.*@", "://", url, flags=re.S).split("?")[0].split("#")[0]


class Video:
    """Decodes the first video stream, every frame, in presentation order. `damaged`: packets the decoder refused."""

    def __init__(self, source: Source) -> None:
        """Open it. MediaError."""
        self._label = source.label
        self.damaged = 0
        remote = "://" in source.address
        try:
            self._container = av.open(source.address, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S) if remote else None)
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f"{source.label}: {_reason(error)}") from None  # the error's text holds the address
        if not self._container.streams.video:
            self._container.close()
            raise MediaError(f"{source.label}: holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or _DEFAULT_RATE
        self.frames = self._stream.frames
        """As the file states it; 0 if it does not."""

    def __iter__(self) -> Iterator[av.VideoFrame]:
        """MediaError where the file or the connection breaks; packets that the decoder refuses are counted only."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                raise MediaError(f"{self._label}: {_reason(error)}") from None
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                self.damaged += 1
                continue
            yield from decoded

    def close(self) -> None:
        """May be called at any frame, and again."""
        context = self._stream.codec_context
        if context.is_open:
            # Idle threads: one that logs while the context is freed would wait for the GIL for ever.
            context.flush_buffers()
        self._container.close()


def presentation_time(frame: av.VideoFrame) -> float | None:
    """Seconds on the video's own clock; None if the frame carries no time."""
    return None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)


class VideoWriter:
    """Encodes RGB pictures as H.264 (MPEG-4 where FFmpeg has no libx264) in MP4, each at its own time."""

    def __init__(self, path: Path, rate: Fraction, width: int, height: int) -> None:
        """`rate` is what the file states; `width` and `height` are rounded down to even, as 4:2:0 needs. MediaError."""
        self._step = max(round(1 / rate / _TICK), 1)
        self._last = -self._step
        self._scaler = VideoReformatter()
        self._size = max(width // 2 * 2, 2), max(height // 2 * 2, 2)
        try:
            self._container = av.open(str(path), "w", format="mp4")
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f"{path}: {_reason(error)}") from None
        h264 = "libx264" in av.codecs_available
        options = {"crf": "21", "preset": "veryfast"} if h264 else {"qscale": "4"}
        self._stream = self._container.add_stream("libx264" if h264 else "mpeg4", rate=rate, options=options)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = _TICK
        context.color_range, context.colorspace = ColorRange.MPEG, _BT709
        context.color_primaries, context.color_trc = _BT709, _BT709

    def write(self, picture: npt.NDArray[np.uint8], seconds: float | None) -> None:
        """(h, w, 3) RGB. Another size than the file's is scaled to it. Without a time, or with one that is not later
        than the one before (both occur in damaged files), it follows at the next possible one."""
        width, height = self._size
        frame = self._scaler.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24"),
            width=width, height=height, format="yuv420p",
            src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG, dst_colorspace=Colorspace.ITU709,
        )  # fmt: skip
        self._last = self._last + self._step if seconds is None else max(round(seconds / _TICK), self._last + 1, 0)
        frame.pts, frame.time_base = self._last, _TICK
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def _reason(error: Exception) -> str:
    """What went wrong without the address, which libav puts into its texts."""
    return getattr(error, "strerror", None) or type(error).__name__
