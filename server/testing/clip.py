"""A clip as a camera sends it: coded frames in decoding order, each already cut into RTP payloads.

Reads any file that libavformat reads, once; nothing is decoded. The payloads come from libavformat's RTP muxer (single
NAL units, STAP-A/AP, FU-A/FU), so that a receiver of ours is tested against packets that are not of our making.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.bitstream import BitStreamFilterContext

CLOCK_HZ = 90_000
PAYLOAD_TYPE = 96
RTP_HEADER_BYTES = 12
_PACKET_BYTES = 1400
"""RTP header included: fits an Ethernet frame, as cameras send it."""
_RTCP_TYPES = range(200, 208)
_ANNEXB_FILTER = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
_START_CODE = re.compile(rb"\x00\x00\x01")


class ClipError(Exception):
    """The file cannot be played as a camera: one sentence that names it."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What follows the header of one RTP packet."""

    data: bytes
    marker: bool


@dataclass(frozen=True, slots=True)
class CodedFrame:
    """One access unit. Times are ticks of 1/90000 s from the start of the clip; `dts` never decreases."""

    pts: int
    dts: int
    rank: int
    """Its place in presentation order, from 0."""
    keyframe: bool
    payloads: tuple[Payload, ...]
    without_sets: tuple[Payload, ...]
    """The same without SPS, PPS and VPS (`payloads` itself where it has none)."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Plays in a loop: after `duration` ticks it starts again at its first frame, which is a keyframe."""

    path: Path
    codec: str
    """h264 | hevc"""
    width: int
    height: int
    fps: float
    frames: tuple[CodedFrame, ...]
    duration: int
    parameter_sets: tuple[bytes, ...]
    """NAL units without start codes, in the order of the stream: VPS (H.265 only), SPS, PPS."""

    def sdp_format(self, with_sets: bool = True) -> str:
        """The rtpmap and fmtp lines of SDP; `with_sets` tells whether the parameter sets are given out of band."""
        name = {"h264": "H264", "hevc": "H265"}[self.codec]
        fields = ["packetization-mode=1"] if self.codec == "h264" else []
        if self.codec == "h264":
            sps = next(nal for nal in self.parameter_sets if _nal_type(self.codec, nal) == 7)
            fields.append(f"profile-level-id={sps[1:4].hex().upper()}")
        if with_sets:
            fields += self._sprop()
        lines = [f"a=rtpmap:{PAYLOAD_TYPE} {name}/{CLOCK_HZ}"]
        if fields:
            lines.append(f"a=fmtp:{PAYLOAD_TYPE} {'; '.join(fields)}")
        return "\r\n".join(lines)

    def _sprop(self) -> list[str]:
        encoded = [(_nal_type(self.codec, nal), base64.b64encode(nal).decode()) for nal in self.parameter_sets]
        if self.codec == "h264":
            return ["sprop-parameter-sets=" + ",".join(text for _, text in encoded)]
        names = {32: "sprop-vps", 33: "sprop-sps", 34: "sprop-pps"}
        return [
            f"{name}={','.join(text for kind, text in encoded if kind == number)}" for number, name in names.items()
        ]


def load_clip(path: str | os.PathLike[str]) -> Clip:
    """Read a file's first video stream, H.264 or H.265. The result is cached until the file changes. ClipError."""
    file = Path(path)
    try:
        stamp = file.stat().st_mtime_ns
    except OSError as error:
        raise ClipError(f"clip {file}: {error.strerror}") from None
    return _load(file, stamp)


@functools.lru_cache(maxsize=32)
def _load(path: Path, stamp: int) -> Clip:
    try:
        return _read(path)
    except av.error.FFmpegError as error:
        raise ClipError(f"clip {path}: {error.strerror}") from error


def _read(path: Path) -> Clip:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ClipError(f"clip {path}: it has no video")
        stream = container.streams.video[0]
        codec = stream.codec_context.name
        if codec not in _ANNEXB_FILTER:
            raise ClipError(f"clip {path}: codec {codec}, but a camera here sends h264 or hevc")
        width, height = stream.codec_context.width, stream.codec_context.height
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        units = list(_annexb_units(container, stream, codec, fps))
    while units and not units[0].keyframe:
        units.pop(0)
    if not units:
        raise ClipError(f"clip {path}: it has no keyframe")
    sets = _parameter_sets(codec, units)
    if not sets:
        raise ClipError(f"clip {path}: no parameter sets before its first keyframe")
    start = units[0].dts
    lowest_pts = min(unit.pts for unit in units)
    ranks = {pts: rank for rank, pts in enumerate(sorted({unit.pts for unit in units}))}
    if len(ranks) != len(units):
        raise ClipError(f"clip {path}: two frames have the same time stamp")
    packetizer = _Packetizer(codec, sets)
    frames = tuple(
        CodedFrame(
            pts=unit.pts - lowest_pts,
            dts=unit.dts - start,
            rank=ranks[unit.pts],
            keyframe=unit.keyframe,
            payloads=packetizer.cut(unit.with_sets(codec, sets)),
            without_sets=packetizer.cut(unit.without_sets(codec)) if unit.keyframe else (),
        )
        for unit in units
    )
    frames = tuple(frame if frame.keyframe else _same_without_sets(frame) for frame in frames)
    one_frame = round(CLOCK_HZ / fps)
    duration = max(frame.dts for frame in frames) + one_frame
    # The first frame of the next turn must come after all of this one in presentation order as well.
    duration = max(duration, max(frame.pts for frame in frames) - frames[0].pts + one_frame)
    return Clip(path, codec, width, height, fps, frames, duration, sets)


def _same_without_sets(frame: CodedFrame) -> CodedFrame:
    return CodedFrame(frame.pts, frame.dts, frame.rank, False, frame.payloads, frame.payloads)


@dataclass(slots=True)
class _Unit:
    nals: list[bytes]
    pts: int
    dts: int
    keyframe: bool

    def with_sets(self, codec: str, sets: tuple[bytes, ...]) -> list[bytes]:
        """Cameras repeat their parameter sets at each keyframe."""
        if not self.keyframe or any(_is_parameter_set(codec, nal) for nal in self.nals):
            return self.nals
        return [*sets, *self.nals]

    def without_sets(self, codec: str) -> list[bytes]:
        return [nal for nal in self.nals if not _is_parameter_set(codec, nal)]


def _annexb_units(
    container: av.container.InputContainer, stream: av.VideoStream, codec: str, fps: float
) -> Iterator[_Unit]:
    to_annexb = BitStreamFilterContext(_ANNEXB_FILTER[codec], stream)
    last_dts = None
    for packet in container.demux(stream):
        for out in to_annexb.filter(packet if packet.size else None):
            # Raw .h264/.hevc files have no times: then they play at their frame rate, in decoding order.
            guessed = 0 if last_dts is None else last_dts + round(CLOCK_HZ / fps)
            dts = guessed if out.dts is None else _ticks(out, out.dts)
            pts = dts if out.pts is None else _ticks(out, out.pts)
            last_dts = dts
            yield _Unit(split_annexb(bytes(out)), pts, dts, out.is_keyframe)


def _ticks(packet: av.Packet[av.VideoStream], value: int) -> int:
    return round(value * packet.time_base * CLOCK_HZ)


def split_annexb(data: bytes) -> list[bytes]:
    """NAL units of a byte stream with start codes, without them. The unit that is an access unit delimiter is left out:
    few cameras send one, and a receiver must not depend on it."""
    marks = list(_START_CODE.finditer(data))
    ends = [mark.start() for mark in marks[1:]] + [len(data)]
    nals = [data[mark.end() : end].rstrip(b"\x00") for mark, end in zip(marks, ends, strict=True)]
    return [nal for nal in nals if nal and not _is_delimiter(nal)]


def _is_delimiter(nal: bytes) -> bool:
    """H.264 type 9 is one byte of header (0x09); H.265 type 35 is 0x46 0x01. Neither can be taken for the other."""
    return nal[0] == 0x09 or nal[:2] == b"\x46\x01"


def _nal_type(codec: str, nal: bytes) -> int:
    return nal[0] & 0x1F if codec == "h264" else nal[0] >> 1 & 0x3F


def _is_parameter_set(codec: str, nal: bytes) -> bool:
    return _nal_type(codec, nal) in ((7, 8) if codec == "h264" else (32, 33, 34))


def _parameter_sets(codec: str, units: list[_Unit]) -> tuple[bytes, ...]:
    """Those of the first keyframe that has them (the filter puts them there from the file's header)."""
    for unit in units:
        sets = tuple(nal for nal in unit.nals if _is_parameter_set(codec, nal))
        if sets:
            return sets
    return ()


class _PacketSink:
    """The file object that libavformat's RTP muxer writes to: one `write` is one packet."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.packets.append(bytes(data))
        return len(data)


class _Packetizer:
    def __init__(self, codec: str, sets: tuple[bytes, ...]) -> None:
        header = b"".join(b"\x00\x00\x00\x01" + nal for nal in sets)
        self._template = av.open(io.BytesIO(header), format=codec)
        self._sink = _PacketSink()
        options = {"packetsize": str(_PACKET_BYTES), "payload_type": str(PAYLOAD_TYPE)}
        self._muxer = av.open(self._sink, "w", format="rtp", options=options)
        self._stream = self._muxer.add_stream_from_template(self._template.streams.video[0])
        self._time = 0

    def cut(self, nals: list[bytes]) -> tuple[Payload, ...]:
        packet = av.Packet(b"".join(b"\x00\x00\x00\x01" + nal for nal in nals))
        packet.stream = self._stream
        packet.pts = packet.dts = self._time
        self._time += 1
        self._sink.packets.clear()
        self._muxer.mux(packet)
        return tuple(
            Payload(data[RTP_HEADER_BYTES:], bool(data[1] & 0x80))
            for data in self._sink.packets
            if data[1] not in _RTCP_TYPES
        )
