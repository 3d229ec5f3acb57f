"""Access units in, verdicts out: a picture that may be shown, or why there is none. Each unit gets exactly one.

The rules, in order:

* Nothing is shown before the first clean keyframe.
* A damaged unit is dropped. If others may refer to it, so is everything up to the next clean keyframe, without being
  decoded; if none does, it costs itself only.
* Damaged is what the source says (packets were lost), what the decoder refuses, what it complains about while it
  decodes (see `complaints`), what it marks as corrupt, and what follows a lost reference picture (`frame_numbers`).
* After an error the decoder itself is replaced. An H.264 macroblock that breaks off leaves coefficients behind, which
  turn up in the next picture, be it a flawless keyframe; flushing does not remove them (seen in FFmpeg 8.1).
* A unit of which no picture comes is NOT_SHOWN: a picture that is not for output, or cannot be shown after a cut.

libavcodec's own error options were measured: `err_detect` finds nothing that the log does not tell, `ec=0` hides it.
In H.264 cut and overwritten data are noticed practically always; in H.265 libavcodec notices lost pictures, but only
some two thirds of cut slices and hardly any overwritten bits (cameras do not send the picture hash that `crccheck`
compares). There the source has to know of losses, and the RTP source does.

Packets carry the unit's seq as time stamp, so that a picture names its unit even where B frames change the order.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

import av
import av.error
from av.packet import PacketSideData, packet_sidedata_type_from_literal

from server.ingest import hardware
from server.ingest.complaints import listener
from server.ingest.frame_numbers import FrameNumbers
from server.ingest.nal import ParameterSets
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo
from server.ingest.wire import DecodeErrorKind, DropReason

_MAX_REORDER = 16
"""Pictures that a decoder may hold for the sake of order (the largest decoded picture buffer of H.264 and H.265)."""
_MAX_THREADS = 4
_DECODERS = {"av1": "libdav1d"}
"""Where FFmpeg's own decoder of that name needs special hardware."""
_HARDWARE_TRIES = 2
"""The first refusal may be due to the data."""
_INTRA_ONLY = frozenset(("mjpeg", "png", "prores", "dnxhd", "rawvideo"))


@dataclass(frozen=True, slots=True)
class Shown:
    """A clean picture. Nobody else writes to it; the decoder may still read it."""

    seq: int
    frame: av.VideoFrame


@dataclass(frozen=True, slots=True)
class Dropped:
    seq: int
    reason: DropReason


Verdict = Shown | Dropped


class Decoder:
    """One for each connection. Used by one thread. `threads` above 1 holds that many pictures back: for files only."""

    def __init__(self, info: StreamInfo, *, threads: int = 1, kind: str = "software") -> None:
        """`kind`: auto, software, or hardware to try (see `hardware`). Raises SourceError(CODEC) if libavcodec has no
        such decoder."""
        self._info = info
        self._name = _DECODERS.get(info.codec, info.codec)
        self._threads = threads
        self._listener = listener()
        self._listener.take(self._name)  # what was said before is not about this decoder's pictures
        self._matrix = _display_matrix(info.rotation) if info.rotation else None
        self._sets = ParameterSets(info.codec, info.extradata) if info.codec in ("h264", "hevc") else None
        self._numbers = FrameNumbers(info.extradata) if info.codec == "h264" else None
        self.complaints: Counter[DecodeErrorKind] = Counter()
        """What went wrong since the counter was last cleared (by whoever reports it)."""
        self._hardware = hardware.wanted(kind)
        self._hardware_refusals = 0  # of contexts in a row that gave no picture
        self.detail: str | None = None
        """Why it is not the hardware that was asked for."""
        self._context: av.VideoCodecContext | None = self._new_context()
        self._inside: dict[int, bool] = {}  # seq -> keyframe, of units that have no verdict yet, in decoding order
        self._awaiting = True
        self._entry_pts: float | None = None
        self._leading: set[int] = set()  # of those inside: shown before the keyframe at which we came in
        self.last_complaint = ""
        """The newest line of libavcodec, for people who ask why there is no picture."""

    @property
    def kind(self) -> str:
        """software, cuda, ...: what decodes now."""
        return self._hardware or "software"

    def decode(self, seq: int, unit: AccessUnit) -> list[Verdict]:
        """Verdicts that are known now: not necessarily this unit's, perhaps those of units before it."""
        verdicts: list[Verdict] = []
        if unit.lost_packets:
            self.complaints[DecodeErrorKind.RTP_LOSS] += unit.lost_packets
        if unit.discontinuity:
            verdicts += self.drain()
        if unit.damaged:
            verdicts.append(Dropped(seq, DropReason.DAMAGED))
            if unit.reference and self._info.codec not in _INTRA_ONLY:
                verdicts += self.drain()
            return verdicts
        if self._awaiting:
            if not unit.keyframe:
                return [*verdicts, Dropped(seq, DropReason.AWAITING_KEYFRAME)]
            self._awaiting = False
            if self._numbers is not None:
                self._numbers.restart()
                self._entry_pts = unit.pts
        if self._numbers is not None and not self._numbers.follows(unit.data):
            self.complaints[DecodeErrorKind.MISSING_REFERENCE] += 1
            self.last_complaint = "a reference picture is missing"
            return [*verdicts, Dropped(seq, DropReason.DAMAGED), *self.drain()]
        return verdicts + self._feed(seq, unit)

    def drain(self) -> list[Verdict]:
        """What comes next does not follow, or nothing comes: pictures inside come out, no more until a keyframe."""
        verdicts: list[Verdict] = []
        if self._inside:
            frames, bad, _ = self._run(None)
            verdicts = self._judge(frames, set(self._inside) if bad else set(), DropReason.DAMAGED)
        return verdicts + self.reset(DropReason.NOT_SHOWN)

    def reset(self, reason: DropReason) -> list[Verdict]:
        """Forget what is inside: it will not be shown, for this reason. Starts anew at a keyframe."""
        if self._context is not None and self._context.is_open:
            # Idle threads: one that logs while the context is freed would wait for the GIL for ever.
            self._context.flush_buffers()
        self._context = None
        self._listener.take(self._name)
        self._awaiting = True
        self._entry_pts = None
        verdicts: list[Verdict] = [Dropped(seq, reason) for seq in self._inside]
        self._inside.clear()
        self._leading.clear()
        return verdicts

    def _feed(self, seq: int, unit: AccessUnit) -> list[Verdict]:
        # Not av.Packet(data): that one lacks the zeros behind the data over which libavcodec's bit readers may run, so
        # that what it makes of the last bits is chance.
        packet = av.Packet(len(unit.data))
        packet.update(unit.data)
        packet.pts = packet.dts = seq
        packet.is_keyframe = unit.keyframe
        if self._matrix is not None:
            packet.set_sidedata(self._matrix)
        if unit.keyframe and self._sets is not None:
            self._sets.remember(unit.data)
        self._inside[seq] = unit.keyframe
        self._note_leading(seq, unit)
        # With threads a complaint is about any unit that is inside, but about none that came out before.
        forgive = bool(self._leading) if self._threads > 1 else seq in self._leading
        frames, broken, refused = self._run(packet, forgive)
        bad = (set(self._inside) if self._threads > 1 else {seq}) if broken else set()
        reason = DropReason.DECODE_ERROR if refused else DropReason.DAMAGED
        verdicts = self._judge(frames, bad, reason)
        if broken or any(isinstance(v, Dropped) and v.reason is DropReason.DAMAGED for v in verdicts):
            verdicts += [Dropped(s, reason) for s in sorted(bad) if self._inside.pop(s, None) is not None]
            # Even where no other picture refers to this one: the decoder is not to be trusted after an error.
            verdicts += self.drain()
        while len(self._inside) > _MAX_REORDER + self._threads:
            verdicts.append(self._never_shown(next(iter(self._inside))))
        return verdicts

    def _note_leading(self, seq: int, unit: AccessUnit) -> None:
        """H.264: is it one of the pictures behind an open keyframe that refer to what was before it? They are decoded
        for the sake of order, from whatever the decoder takes instead, and not shown. H.265's decoder knows them."""
        if self._entry_pts is None or unit.pts is None or unit.pts > self._entry_pts:
            self._entry_pts = None
        elif unit.pts < self._entry_pts:
            self._leading.add(seq)

    def _run(self, packet: av.Packet[Any] | None, forgive: bool = False) -> tuple[list[av.VideoFrame], bool, bool]:
        """(pictures, the decoder complained or refused, it refused). `forgive`: references may be missing."""
        frames: list[av.VideoFrame] = []
        refused = False
        try:
            if self._context is None:
                self._context = self._new_context()
            frames = self._context.decode(packet)
        except (av.error.FFmpegError, ValueError, MemoryError) as error:
            refused = True
            self.last_complaint = _text(error)
            self._hardware_refused()
        if frames:
            self._hardware_refusals = 0
        complaints = self._listener.take(self._name)
        if forgive and not refused:
            complaints = [c for c in complaints if c[0] is not DecodeErrorKind.MISSING_REFERENCE]
        if refused and not complaints:
            self.complaints[DecodeErrorKind.CODEC] += 1
        for kind, line in complaints:
            self.complaints[kind] += 1
            self.last_complaint = line[:200]
        return frames, refused or bool(complaints), refused

    def _judge(self, frames: list[av.VideoFrame], bad: set[int], reason: DropReason) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for frame in frames:
            seq = frame.pts
            keyframe = None if seq is None else self._inside.pop(seq, None)
            if seq is None or keyframe is None:
                continue  # a second picture of one unit
            if keyframe:
                # All that came before a keyframe is shown before it. What has not come by now never will.
                verdicts += [self._never_shown(earlier) for earlier in list(self._inside) if earlier < seq]
            if seq in self._leading:
                self._leading.discard(seq)
                verdicts.append(Dropped(seq, DropReason.NOT_SHOWN))
            elif seq in bad:
                verdicts.append(Dropped(seq, reason))
            elif frame.is_corrupt:
                self.complaints[DecodeErrorKind.BITSTREAM] += 1
                verdicts.append(Dropped(seq, DropReason.DAMAGED))
            else:
                verdicts.append(Shown(seq, frame))
        return verdicts

    def _never_shown(self, seq: int) -> Dropped:
        del self._inside[seq]
        self._leading.discard(seq)
        return Dropped(seq, DropReason.NOT_SHOWN)

    def _hardware_refused(self) -> None:
        if self._hardware is None:
            return
        self._hardware_refusals += 1
        if self._hardware_refusals >= _HARDWARE_TRIES:
            self._give_hardware_up(f"{self._hardware}: {self.last_complaint}")

    def _give_hardware_up(self, why: str) -> None:
        """For this connection; the next one tries again."""
        self._hardware = None
        self.detail = why
        self.complaints[DecodeErrorKind.HARDWARE] += 1

    def _create(self) -> av.CodecContext:
        if self._hardware is not None:
            try:
                return hardware.context(self._hardware, self._info.codec)
            except hardware.Unavailable as error:
                self._give_hardware_up(str(error))
        try:
            return av.CodecContext.create(self._name, "r")
        except (av.error.FFmpegError, ValueError):
            raise SourceError(Reason.CODEC, f"codec {self._info.codec[:32]!r} is not supported") from None

    def _new_context(self) -> av.VideoCodecContext:
        codec = self._info.codec
        context = self._create()
        if not isinstance(context, av.VideoCodecContext):
            raise SourceError(Reason.CODEC, f"codec {codec[:32]!r} is not a video codec")
        extradata = self._sets.extradata() if self._sets is not None else self._info.extradata
        if extradata:
            context.extradata = extradata
        if self._sets is None and self._info.width and self._info.height:
            # Old codecs leave it to the container to tell.
            context.width, context.height = self._info.width, self._info.height
        if self._info.pixel_format:
            context.pix_fmt = self._info.pixel_format
        # One thread holds no picture back. Slices as threads would not either, but cameras send one slice a picture.
        context.thread_count = self._threads
        context.thread_type = "NONE" if self._threads == 1 else "FRAME"
        if codec == "hevc":
            context.options = {"err_detect": "crccheck"}  # compares picture hashes where there are any
        return context


def file_threads() -> int:
    """Decoder threads for a file that is read as fast as it goes. They cost up to twice the CPU time a frame, so they
    pay only where there are cores that the engine leaves idle."""
    return _MAX_THREADS if len(os.sched_getaffinity(0)) > 2 * _MAX_THREADS else 1


def _display_matrix(degrees: int) -> PacketSideData:
    """FFmpeg's display matrix of a counter-clockwise rotation: 16.16 fixed point, 2.30 in the corner."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    data = struct.pack("=9i", cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30)
    matrix = PacketSideData(packet_sidedata_type_from_literal("display_matrix"), len(data))  # type: ignore[call-arg]
    matrix.update(data)
    return matrix


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)[:200]
