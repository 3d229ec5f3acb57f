"""What libavcodec says while it decodes, and what of it condemns a picture.

libavcodec conceals damage: it returns a picture and mentions the damage in its log only. So everything that it says at
level warning or above counts against the picture, but for what is known to concern no pixels. The log is global to the
process and carries no name of the camera: another reason why each camera has a process of its own.
"""

from __future__ import annotations

import functools
import re

import av.logging

from server.ingest.wire import DecodeErrorKind

_CONCEALING = "concealing"
"""`concealing 264 DC, 264 AC, 264 MV errors in I frame`: at level info, and the only sign of a lost slice."""
_WARNINGS_COUNT = frozenset(("h264", "hevc", "mjpeg"))
"""What cameras send; `_HARMLESS` knows their warnings. Decoders of other codecs warn of every oddity of a file."""
_HARMLESS = re.compile(
    r"\bSEI\b"  # supplemental information: time codes, captions, makers' own
    r"|\bVUI\b|aspect ratio|display window"  # how to show the picture
    r"|reorder buffer|num_reorder_frames"  # B frames where the headers promised none
    r"|APP fields"  # JPEG application data
    r"|skipping NAL unit|multi-?layer"  # scalable layers above the base
    r"|unref (short|long) failure",  # to forget a picture from before the keyframe at which decoding began
    re.IGNORECASE,
)
_MISSING_REFERENCE = re.compile(
    r"missing reference|could not find ref|reference picture missing|number of reference frames"
    r"|co located POCs|zero refs",
    re.IGNORECASE,
)


class Listener:
    """Hears the decoders of this process, from all of their threads, whenever they speak."""

    def __init__(self) -> None:
        av.logging.set_level(av.logging.INFO)
        # Equal lines in a row are counted by PyAV instead of told; here each of them belongs to a frame of its own.
        av.logging.set_skip_repeated(False)
        self._lines = av.logging.Capture(local=False).__enter__()  # for as long as the process lives

    def take(self, codec: str) -> list[tuple[DecodeErrorKind, str]]:
        """What the decoder of this name (FFmpeg's) complained about since the last call. Lines of others (scalers,
        demuxers) are thrown away."""
        complaints: list[tuple[DecodeErrorKind, str]] = []
        while self._lines:
            level, name, message = self._lines.pop(0)
            kind = classify(level, name, message) if name == codec else None
            if kind is not None:
                complaints.append((kind, message.strip()))
        return complaints


@functools.cache
def listener() -> Listener:
    """The listener of this process; from the first call on libav's log goes nowhere else."""
    return Listener()


def classify(level: int, codec: str, message: str) -> DecodeErrorKind | None:
    """What kind of complaint a line of a decoder is; None if it condemns nothing."""
    if level > (av.logging.WARNING if codec in _WARNINGS_COUNT else av.logging.ERROR):
        return DecodeErrorKind.BITSTREAM if message.startswith(_CONCEALING) else None
    if _MISSING_REFERENCE.search(message):
        return DecodeErrorKind.MISSING_REFERENCE
    return None if _HARMLESS.search(message) else DecodeErrorKind.BITSTREAM
