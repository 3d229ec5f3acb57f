"""Decoders in hardware: which are tried, and what is said where they cannot be had.

Pictures come back to memory (NV12), since the letterbox is made there. A driver may also fail later, in the middle of a
stream: the `decoder` goes over to software then. Where hardware is not there, nothing of it is touched.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel

_QSV_CODECS = frozenset(("h264", "hevc", "mjpeg", "vp9", "av1"))
_INTEL = "0x8086"


class Unavailable(Exception):
    """One sentence: why there is no such decoder."""


def present(devices: Path = Path("/dev"), classes: Path = Path("/sys/class/drm")) -> list[str]:
    """Kinds of hardware on this machine that PyAV's FFmpeg can decode with, the best first."""
    found = []
    if (devices / "nvidiactl").exists():
        found.append("cuda")
    for node in sorted((devices / "dri").glob("renderD*")):
        try:
            vendor = (classes / node.name / "device" / "vendor").read_text().strip()
        except OSError:
            continue
        if vendor == _INTEL and "qsv" not in found:
            found.append("qsv")
    return found


def wanted(decoder: str, here: Callable[[], list[str]] = present) -> str | None:
    """The kind to try for a stream's setting (auto, software, cuda, ...); None: software."""
    if decoder == "software":
        return None
    return next(iter(here()), None) if decoder == "auto" else decoder


def context(kind: str, codec: str) -> av.VideoCodecContext:
    """A decoder, not opened yet, of `kind` (cuda, qsv, vaapi) for FFmpeg's `codec`. Raises Unavailable."""
    try:
        if kind == "qsv":
            if codec not in _QSV_CODECS:
                raise Unavailable(f"qsv does not decode {codec}")
            made = av.CodecContext.create(f"{codec}_qsv", "r")
        else:
            made = av.CodecContext.create(codec, "r", hwaccel=HWAccel(kind, allow_software_fallback=False))
            if not made.is_hwaccel:
                raise Unavailable(_no_decoder(kind, codec))
    except (NotImplementedError, ValueError):
        raise Unavailable(_no_decoder(kind, codec)) from None
    except (av.error.FFmpegError, OSError) as error:
        number = error.errno if isinstance(error.errno, int) else 0
        raise Unavailable(f"{kind}: no device ({errno.errorcode.get(number, type(error).__name__)})") from None
    if not isinstance(made, av.VideoCodecContext):
        raise Unavailable(_no_decoder(kind, codec))
    return made


def _no_decoder(kind: str, codec: str) -> str:
    hint = "; a pipeline has it (gst: ... ! vah264dec ! ...)" if kind == "vaapi" else ""
    return f"{kind} is not in this build of FFmpeg for {codec}{hint}"
