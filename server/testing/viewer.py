"""A plain viewer on libavformat: the independent client that a camera is tested with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import av
import av.error
import numpy as np

from server.testing.synthetic import read_counter


@dataclass(frozen=True, slots=True)
class Seen:
    """One decoded picture."""

    number: int | None
    """As the picture bears it (`synthetic`); None if it has none or is damaged."""
    pts_s: float | None
    width: int
    height: int
    at: float
    """CLOCK_MONOTONIC seconds when the decoder gave it."""


def watch(
    url: str,
    *,
    frames: int | None = None,
    transport: Literal["tcp", "udp"] = "tcp",
    open_timeout_s: float = 5.0,
    read_timeout_s: float = 2.0,
    limit_s: float = 20.0,
) -> list[Seen]:
    """Open the address and decode until so many pictures came, the source ends or falls silent, or `limit_s` is over.

    Decoding errors are passed over, as a player does. Raises `av.error.FFmpegError` if it cannot be opened.
    """
    deadline = time.monotonic() + limit_s
    options = {"rtsp_transport": transport, "analyzeduration": "200000"}
    seen: list[Seen] = []
    with av.open(url, options=options, timeout=(open_timeout_s, read_timeout_s)) as container:
        try:
            for packet in container.demux(container.streams.video[0]):
                try:
                    pictures = packet.decode()
                except av.error.InvalidDataError:
                    continue
                for picture in pictures:
                    assert isinstance(picture, av.VideoFrame)
                    number = read_counter(np.asarray(picture.to_ndarray(format="rgb24"), np.uint8))
                    seen.append(Seen(number, picture.time, picture.width, picture.height, time.monotonic()))
                if (frames is not None and len(seen) >= frames) or time.monotonic() > deadline:
                    break
        except av.error.ExitError:
            pass  # the read time-out: the camera fell silent
    return seen
