"""What an RTSP server says of its media (SDP, RFC 8866), as far as receiving one video track needs it.

Pure. Tolerant where cameras are known to be sloppy (LF only, stray spaces, unknown lines, broken base64); strict
about what would make us receive something else than we believe.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass, field

MAX_SDP_BYTES = 256 * 1024
START_CODE = b"\x00\x00\x00\x01"

CODECS = {"H264": "h264", "H265": "hevc", "HEVC": "hevc", "JPEG": "mjpeg"}
"""Encoding names of the SDP that we depacketise, and FFmpeg's name of the codec."""

_STATIC_ENCODINGS = {26: ("JPEG", 90_000), 31: ("H261", 90_000), 32: ("MPV", 90_000), 33: ("MP2T", 90_000)}
_SPROP_KEYS = {
    "h264": ("sprop-parameter-sets",),
    "hevc": ("sprop-vps", "sprop-sps", "sprop-pps"),
    "mjpeg": (),
}


class SdpError(ValueError):
    """The description cannot be used; the text says why."""


class UnsupportedMedia(SdpError):
    """There is no video track that we can depacketise."""


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """The video track to receive."""

    codec: str
    """h264 | hevc | mjpeg"""
    payload_type: int
    clock_rate: int
    control: str
    """Absolute URL for SETUP."""
    aggregate: str
    """Absolute URL for PLAY and TEARDOWN."""
    parameter_sets: tuple[bytes, ...] = ()
    """NAL units without start codes, in the order in which a decoder wants them."""
    fps: float = 0.0
    """As stated; 0: not stated."""
    play_range: str = "npt=0.000-"
    """Value of the Range header for PLAY."""

    @property
    def extradata(self) -> bytes:
        """The parameter sets as Annex B."""
        return b"".join(START_CODE + nal for nal in self.parameter_sets)


@dataclass(slots=True)
class _Media:
    kind: str
    protocol: str
    payload_types: list[int]
    control: str | None = None
    fps: float = 0.0
    range: str | None = None
    rtpmap: dict[int, tuple[str, int]] = field(default_factory=dict)
    fmtp: dict[int, dict[str, str]] = field(default_factory=dict)


def select_video(sdp: bytes, request_url: str, content_base: str | None = None) -> VideoTrack:
    """The first video track that we support. `content_base` is the answer's Content-Base or Content-Location.

    Raises SdpError for what is no session description and UnsupportedMedia, naming what there is instead.
    """
    session, medias = _parse(sdp)
    base = _base_url(request_url, content_base)
    aggregate = join_control(base, session.control)
    if _is_absolute(session.control):
        base = aggregate
    refused = []
    for media in medias:
        if media.kind != "video":
            continue
        if not re.fullmatch(r"RTP/AVPF?(/(TCP|UDP))?", media.protocol, re.I):
            refused.append(media.protocol or "a track without a protocol")
            continue
        for payload_type in media.payload_types:
            name, rate = _encoding(media, payload_type)
            codec = CODECS.get(name)
            fmtp = media.fmtp.get(payload_type, {})
            problem = f"{name or 'an unnamed codec'}" if codec is None else _interleaving(codec, fmtp)
            if codec is None or problem:
                refused.append(problem)
                continue
            return VideoTrack(
                codec=codec,
                payload_type=payload_type,
                clock_rate=rate,
                control=join_control(base, media.control),
                aggregate=aggregate,
                parameter_sets=_parameter_sets(codec, fmtp),
                fps=media.fps or session.fps,
                play_range=_play_range(media.range or session.range),
            )
    if refused:
        raise UnsupportedMedia(f"no supported video: the camera offers {', '.join(dict.fromkeys(refused))}")
    raise UnsupportedMedia("the session has no video track")


def join_control(base: str, control: str | None) -> str:
    """The URL of a control attribute. Cameras mean "append", also after a query, and not RFC 3986 resolution."""
    control = (control or "").strip()
    if control in ("", "*"):
        return base
    if _is_absolute(control):
        return control
    if control.startswith("?"):
        return base + control
    return base.rstrip("/") + "/" + control.lstrip("/")


def _is_absolute(control: str | None) -> bool:
    return re.match(r"rtsps?://[^/]", control or "", re.I) is not None


def _base_url(request_url: str, content_base: str | None) -> str:
    base = (content_base or "").strip()
    if _is_absolute(base):
        return base
    if base and not re.match(r"[a-z][a-z0-9+.-]*:", base, re.I) and base.startswith("/"):
        origin = re.match(r"[a-z]+://[^/?#]*", request_url, re.I)
        return (origin.group() if origin else request_url) + base
    return request_url


def _parse(sdp: bytes) -> tuple[_Media, list[_Media]]:
    if len(sdp) > MAX_SDP_BYTES:
        raise SdpError(f"the session description has {len(sdp)} bytes")
    session = _Media("session", "", [])
    medias: list[_Media] = []
    current = session
    lines = 0
    for raw in re.split(r"[\r\n\x00]+", sdp.decode("utf-8", "replace")):
        line = raw.strip()
        if len(line) < 2 or line[1] != "=":
            continue
        lines += 1
        key, value = line[0], line[2:].strip()
        if key == "m":
            current = _media(value)
            medias.append(current)
        elif key == "a":
            _attribute(current, value)
    if not lines:
        raise SdpError("the answer to DESCRIBE holds no session description")
    return session, medias


def _media(value: str) -> _Media:
    words = value.split()
    types = [int(word) for word in words[3:] if word.isascii() and word.isdigit() and int(word) < 128]
    return _Media(words[0].lower() if words else "", words[2] if len(words) > 2 else "", types)


def _attribute(media: _Media, value: str) -> None:
    name, _, rest = value.partition(":")
    name, rest = name.strip().lower(), rest.strip()
    if name == "control":
        media.control = rest
    elif name == "range":
        media.range = rest
    elif name in ("framerate", "x-framerate"):
        media.fps = _rate(rest)
    elif name == "rtpmap":
        match = re.match(r"(\d{1,3})\s+([^/\s]+)\s*(?:/\s*(\d{1,9}))?", rest, re.ASCII)
        if match:
            media.rtpmap[int(match[1])] = (match[2].upper(), int(match[3] or 0) or 90_000)
    elif name == "fmtp":
        match = re.match(r"(\d{1,3})\s+(.*)", rest, re.ASCII)
        if match:
            media.fmtp.setdefault(int(match[1]), {}).update(_parameters(match[2]))


def _parameters(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs if key.strip()}


def _rate(text: str) -> float:
    number, _, divisor = text.partition("/")
    try:
        fps = float(number) / float(divisor or 1)
    except (ValueError, ZeroDivisionError):
        return 0.0
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0


def _encoding(media: _Media, payload_type: int) -> tuple[str, int]:
    if payload_type in media.rtpmap:
        return media.rtpmap[payload_type]
    if payload_type in _STATIC_ENCODINGS:
        return _STATIC_ENCODINGS[payload_type]
    # Without an rtpmap the parameter sets say what it is.
    fmtp = media.fmtp.get(payload_type, {})
    for name, codec in (("H264", "h264"), ("H265", "hevc")):
        if any(key in fmtp for key in _SPROP_KEYS[codec]):
            return name, 90_000
    return "", 90_000


def _interleaving(codec: str, fmtp: dict[str, str]) -> str:
    """Why the packetisation is not supported, or "". Both need reordering by decoding order numbers, which no camera
    is known to use."""
    if codec == "h264" and fmtp.get("packetization-mode") == "2":
        return "H264 in packetization-mode 2 (interleaved)"
    if codec == "hevc" and fmtp.get("sprop-max-don-diff", "0").strip("0"):
        return "H265 with sprop-max-don-diff > 0 (interleaved)"
    return ""


def _parameter_sets(codec: str, fmtp: dict[str, str]) -> tuple[bytes, ...]:
    wanted = {7, 8} if codec == "h264" else {32, 33, 34}
    nals = []
    for key in _SPROP_KEYS[codec]:
        for text in fmtp.get(key, "").split(","):
            nal = _base64(text)
            if nal.startswith(START_CODE):
                nal = nal[4:]
            if len(nal) > 2 and (nal[0] & 0x1F if codec == "h264" else nal[0] >> 1 & 0x3F) in wanted:
                nals.append(nal)
    return tuple(nals)


def _base64(text: str) -> bytes:
    text = text.strip().rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _play_range(stated: str | None) -> str:
    # Ranges other than npt (clock=, smpte=) belong to recordings; `now-` is the only start that a live session names.
    return "npt=now-" if stated and re.match(r"npt\s*=\s*now\s*-", stated, re.I) else "npt=0.000-"
