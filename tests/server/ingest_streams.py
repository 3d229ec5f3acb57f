"""Coded streams of known pictures for the tests of ingest: small, made once, by PyAV alone."""

from __future__ import annotations

import functools
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from server.ingest.nal import is_reference
from server.ingest.source import AccessUnit

FPS = 25

CODINGS = {
    "p": ("libx264", "keyint=10:min-keyint=10:bframes=0:scenecut=0"),
    "baseline": ("libx264", "keyint=10:min-keyint=10:bframes=0:scenecut=0:cabac=0:no-8x8dct=1:ref=1"),
    "slices": ("libx264", "keyint=10:min-keyint=10:bframes=0:scenecut=0:slices=3:sliced-threads=0"),
    "b": ("libx264", "keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0:open-gop=0"),
    "open-gop": ("libx264", "keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0:open-gop=1"),
    "refresh": ("libx264", "keyint=10:bframes=0:scenecut=0:intra-refresh=1:ref=1"),
    "hevc": ("libx265", "keyint=10:min-keyint=10:bframes=0:scenecut=0:log-level=none:pools=1:frame-threads=1"),
    "hevc-b": (
        "libx265",
        "keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0:open-gop=0:log-level=none:pools=1:frame-threads=1",
    ),
    "hevc-cra": (
        "libx265",
        "keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0:open-gop=1:log-level=none:pools=1:frame-threads=1",
    ),
}


def codec_of(coding: str) -> str:
    return "hevc" if coding.startswith("hevc") else "h264"


def picture(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) RGB: a texture under a moving window, with a block that jumps."""
    rng = np.random.default_rng(7)
    texture = rng.integers(0, 255, (height * 2, width * 2), np.uint8)
    smooth = (texture[:-1, :-1] // 4 + texture[1:, 1:] // 4 + texture[:-1, 1:] // 4 + texture[1:, :-1] // 4)[:height, :]
    window = np.roll(smooth, number * 2, axis=1)[:, :width]
    image = np.repeat(window[:, :, None], 3, axis=2)
    left = number * 7 % (width - 32)
    image[16:48, left : left + 32] = (number * 40 % 256, 200, 60)
    return np.ascontiguousarray(image)


@functools.cache
def encoded(
    coding: str, frames: int = 40, width: int = 192, height: int = 128, first: int = 0
) -> tuple[AccessUnit, ...]:
    """Access units in decoding order, Annex B, parameter sets in front of each keyframe. `pts` in seconds."""
    encoder, parameters = CODINGS[coding]
    context = av.CodecContext.create(encoder, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
    name = "x265-params" if encoder == "libx265" else "x264-params"
    context.options = {name: parameters + ":threads=1" * (encoder == "libx264"), "preset": "fast", "crf": "24"}
    units: list[AccessUnit] = []
    for number in range(frames + 1):
        frame = None
        if number < frames:
            frame = av.VideoFrame.from_ndarray(picture(first + number, width, height), "rgb24").reformat(
                format="yuv420p"
            )
            frame.pts, frame.time_base = number, context.time_base
        for packet in context.encode(frame):
            data = bytes(packet)
            assert packet.pts is not None
            units.append(
                AccessUnit(
                    data=data,
                    pts=packet.pts / FPS,
                    arrived_at=len(units) / FPS,
                    received_unix=1.8e9 + len(units) / FPS,
                    keyframe=packet.is_keyframe,
                    reference=is_reference(codec_of(coding), data),
                )
            )
    assert len(units) == frames
    return tuple(units)
