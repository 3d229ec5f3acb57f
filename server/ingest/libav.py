"""Whatever libavformat reads, cut into access units: files, HTTP, HLS, MPEG-TS, RTMP, devices, and RTSP as a fall-back.

What libavformat really does (PyAV 18, FFmpeg 8.1), and what follows from it:

* Parsers give a frame out when the next one begins, so every arrival is stated with an uncertainty of one frame
  interval; MPEG-TS knows the end of a frame's packets by the next frame, too: two intervals.
* Damage in MPEG-TS is told with the frame *before* the damaged one (the flag takes another way than the data, which
  lie in the parser), losses in RTSP by its log alone. So the frame at hand and the next one count as damaged.
* After a read time-out an RTSP container can go on reading: a short one serves as the tick. Others can't (the stream
  is at its end from then on): there, units() is silent for as long as the read time-out.
* Other streams (audio) are read as well, or a camera that only sends sound would never count as stalled.
* What it reads from, and whom it may reach, is the affair of `inputs`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import av
import av.error
import av.logging
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.format import Flags
from av.video.stream import VideoStream

from server.ingest.clocks import instant
from server.ingest.complaints import listener
from server.ingest.inputs import FileInput, Input, Opening, input_for
from server.ingest.libav_errors import Lines, opening_error, reading_error
from server.ingest.nal import is_reference
from server.ingest.network import ANYWHERE, Networks
from server.ingest.pacing import Pacer
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo

TICK_S = 0.5
_WAITED_S = 0.002
"""A packet that takes longer had not come yet."""
_BACKLOG = 1 << 20
"""More frames than can wait in libavformat."""
_DEFAULT_FPS = 25.0
"""Of raw streams without time stamps."""
_OPEN_SHARE = 0.6
"""PyAV applies the time-out twice: to the handshake, then to the first frames."""
_HELD_FRAMES = {"mpegts": 2, "flv": 0, "live_flv": 0, "video4linux2,v4l2": 0}
"""So many frames have to begin after one before it comes out of a live container; 1 if not listed."""
_ANNEXB_FILTERS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
_RTP_LOSS = re.compile(r"RTP: missed (-?\d+) packets")
_NEXT_MAY_DO = (Reason.PROTOCOL, Reason.REFUSED, Reason.UNREACHABLE)
"""Another transport, or another address of the host."""
_NO_TIMESTAMPS = int(Flags.no_timestamps.value)  # type: ignore[call-overload]


class LibavSource:
    """See `server.ingest.source.Source`. `url`: what `input_for` serves, an absolute path among others.

    `transport` (tcp, udp, auto) is for RTSP. `loop`: a file begins anew at its end, with time stamps that go on.
    `realtime`: files (also over HTTP) are paced by their time stamps, as a camera would.
    """

    def __init__(
        self,
        url: str,
        username: str | None = None,
        password: str | None = None,
        transport: str = "auto",
        open_timeout_s: float = 5.0,
        read_timeout_s: float = 5.0,
        *,
        loop: bool = False,
        realtime: bool = True,
        networks: Networks = ANYWHERE,
        reads: Input | None = None,
    ) -> None:
        """`reads`: instead of what the address says. Raises SourceError for an address that is not served."""
        listener()  # libav's log is on: it tells what exceptions do not
        self._input = reads or input_for(url, username, password, transport, networks)
        self._path = url if isinstance(self._input, FileInput) else None
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._loop = loop and self._path is not None
        self._realtime = realtime
        self._container: InputContainer | None = None
        self._timeline = _Timeline()

    def __repr__(self) -> str:
        return f"LibavSource({type(self._input).__name__})"

    def open(self) -> StreamInfo:
        """Connect or open. Raises SourceError, at the latest 1.2 open time-outs later."""
        self.close()
        self._timeline = _Timeline()
        rotation = 0 if self._path is None else self._rotation(self._path)
        self._open_container()
        return self._describe(rotation)

    def units(self) -> Iterator[AccessUnit | None]:
        """Access units in decoding order; None twice a second while nothing comes or a frame is not due yet (but see
        above for HTTP). Ends with the file, or when the peer closes. Raises SourceError, STALLED among others."""
        if self._container is None:
            raise RuntimeError("units() before open()")
        while True:
            number = 0
            for packet in self._packets():
                if packet is None:
                    yield None
                    continue
                times = self._timeline.place(packet, self._frame_s)
                if self._paced:
                    yield from self._until_due(times[1])
                yield self._unit(packet, times[0], discontinuity=self._timeline.rounds > 0 and number == 0)
                number += 1
            if not self._loop:
                return
            if number == 0:
                raise SourceError(Reason.CODEC, "the file holds no frames")
            self.close()
            self._timeline.begin_anew()
            # Opening again takes milliseconds and works for every format; seeking to the start does not.
            self._open_container()

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()
        self._input.close()

    # Opening.

    def _open_container(self) -> None:
        # What comes while libavformat finds out what it is waits until it is asked for.
        self._given_at = self._since = time.monotonic()
        container, opening = self._first_that_opens()
        self._container = container
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.codec_context is None:
            self.close()
            raise SourceError(Reason.CODEC, "there is no video in it, or in a codec that is not supported")
        self._stream = stream
        self._codec = stream.codec.canonical_name
        self._live = container.duration is None if self._input.live is None else self._input.live
        self._transport = opening.transport
        # A series of JPEGs: what libav states as time and rate of it is made up.
        self._untimed = self._live and bool(container.format.flags & _NO_TIMESTAMPS)
        self._fps = 0.0 if self._untimed else float(stream.average_rate or stream.guessed_rate or 0)
        self._frame_s = 1.0 / (self._fps or _DEFAULT_FPS)
        self._held_frames = _HELD_FRAMES.get(container.format.name, 1)
        # An HLS playlist hands out several seconds at once.
        self._paced = (self._realtime and not self._live) or container.format.name == "hls"
        extradata = stream.codec_context.extradata or b""
        self._filter: BitStreamFilterContext | None = None
        if self._codec in _ANNEXB_FILTERS and extradata[:1] == b"\x01":  # avcC, hvcC
            self._filter = BitStreamFilterContext(_ANNEXB_FILTERS[self._codec], stream)
            extradata = b""  # the filter puts the parameter sets in front of each keyframe
        self._extradata = extradata

    def _first_that_opens(self) -> tuple[InputContainer, Opening]:
        deadline = time.monotonic() + self._open_timeout_s
        self._input.allow_until(deadline, SourceError(Reason.TIMEOUT, "no answer within the time-out"))
        refused: SourceError | None = None
        for opening in self._input.openings(deadline):
            try:
                return self._try_open(opening), opening
            except SourceError as error:
                refused = error
                if error.reason not in _NEXT_MAY_DO:
                    break
        assert refused is not None
        raise refused

    def _try_open(self, opening: Opening) -> InputContainer:
        begun = time.monotonic()
        limit = self._open_timeout_s * _OPEN_SHARE
        tick = TICK_S if self._input.survives_silence else self._read_timeout_s
        with av.logging.Capture() as lines:
            try:
                container = av.open(
                    opening.file, "r", opening.format, dict(opening.options), timeout=(limit, tick),
                    io_open=opening.io_open,
                )  # fmt: skip
                self._lost = _missed(lines)
                return container
            except (av.error.FFmpegError, OSError, ValueError) as error:
                late = time.monotonic() - begun >= limit
                raise opening_error(error, lines, timed_out=late, network=self._input.network) from None

    def _describe(self, rotation: int) -> StreamInfo:
        context = self._stream.codec_context
        return StreamInfo(
            codec=self._codec,
            extradata=self._extradata,
            width=context.width,
            height=context.height,
            fps=self._fps,
            transport=self._transport,
            client="libav",
            live=self._live,
            rotation=rotation,
            pixel_format=(context.pix_fmt or "") if self._codec == "rawvideo" else "",
        )

    def _rotation(self, path: str) -> int:
        """Phones store pictures lying and note the angle in the container; PyAV tells it with a decoded frame only."""
        with av.logging.Capture():
            try:
                for opening in FileInput(path).openings(0.0):
                    limit = self._open_timeout_s * _OPEN_SHARE
                    with av.open(path, options=dict(opening.options), timeout=limit) as container:
                        for frame in container.decode(video=0):
                            return round(frame.rotation / 90) % 4 * 90
            except (av.error.FFmpegError, OSError, ValueError, IndexError):
                pass  # opening it properly will tell what is wrong
        return 0

    # Reading.

    def _packets(self) -> Iterator[av.Packet[Any] | None]:
        """Packets of the video, as Annex B where that applies; None is a tick."""
        assert self._container is not None
        packets = self._container.demux()
        heard_at = time.monotonic()
        # What came while it was opened waits in libavformat, and any of it may be what a loss has damaged.
        self._suspects = _BACKLOG if self._lost else 0
        while True:
            self._input.allow_until(heard_at + self._read_timeout_s, self._stalled())
            asked_at = time.monotonic()
            with av.logging.Capture() as lines:
                try:
                    packet = next(packets, None)
                except av.error.ExitError:
                    self._note_losses(None, lines)
                    packets = self._after_silence(heard_at)
                    yield None
                    continue
                except (av.error.EOFError, av.error.ConnectionResetError, av.error.BrokenPipeError):
                    return
                except (av.error.FFmpegError, OSError, ValueError) as error:
                    raise reading_error(error, network=self._input.network) from None
            if time.monotonic() - asked_at > _WAITED_S:
                self._since = self._given_at
                self._suspects = min(self._suspects, 2)
            if packet is None:
                return
            self._note_losses(packet, lines)
            if packet.stream_index != self._stream.index or not packet.size:
                if time.monotonic() - heard_at >= self._read_timeout_s and packet.size:
                    raise self._stalled()
                continue
            if self._filter is None:
                yield packet
            else:
                yield from self._filter.filter(packet)
            heard_at = time.monotonic()  # here, so that a frame that was not due yet is no silence

    def _note_losses(self, packet: av.Packet[Any] | None, lines: Lines) -> None:
        lost = self._input.take_lost() + _missed(lines)
        self._lost += lost
        corrupt = packet is not None and packet.is_corrupt and packet.stream_index == self._stream.index
        if (lost or corrupt) and self._suspects < 2:
            self._suspects = 2  # this one, and the one that was being received

    def _after_silence(self, heard_at: float) -> Iterator[av.Packet[Any]]:
        silent_s = time.monotonic() - heard_at
        if self._container is None or not self._input.survives_silence or silent_s >= self._read_timeout_s:
            raise self._stalled()
        return self._container.demux()

    def _stalled(self) -> SourceError:
        return SourceError(Reason.STALLED, f"no video for {self._read_timeout_s:g} s")

    def _until_due(self, time_s: float) -> Iterator[None]:
        while (wait := self._timeline.pacer.wait_s(time_s, time.monotonic())) > 0:
            time.sleep(min(wait, TICK_S))
            if wait > TICK_S:
                yield None

    def _unit(self, packet: av.Packet[Any], pts: float, discontinuity: bool) -> AccessUnit:
        now, unix = instant()
        # A parser may have held it until the next one began: for one frame, or since the one before at the most. A file
        # does not come from anywhere.
        held_s = 0.0
        if self._live and not self._paced:
            # Measured rather than by the stated rate, which may be a lie; frames that come without being waited for
            # (after a loss, or because we are late) may have been there for as long as the first of them.
            held_s = now - self._since if self._held_frames == 1 else self._frame_s * self._held_frames
        self._given_at = now
        data = bytes(packet)
        damaged = self._suspects > 0 or packet.is_corrupt
        lost, self._lost = self._lost, 0
        self._suspects = max(self._suspects - 1, 0)
        return AccessUnit(
            data=data,
            pts=None if self._untimed else pts,
            arrived_at=now,
            received_unix=unix,
            keyframe=packet.is_keyframe,
            reference=is_reference(self._codec, data),
            damaged=damaged,
            lost_packets=lost,
            arrival_uncertainty_s=held_s,
            discontinuity=discontinuity,
        )


def _missed(lines: Lines) -> int:
    """RTP packets that libavformat says are lost."""
    return sum(abs(int(match[1])) for _, _, text in lines if (match := _RTP_LOSS.search(text)))


class _Timeline:
    """Time stamps in seconds that go on when a file begins anew."""

    def __init__(self) -> None:
        self.pacer = Pacer()
        self.rounds = 0
        self._offset = 0.0
        self._end = 0.0
        self._first = True
        self._guess = 0.0

    def begin_anew(self) -> None:
        self.rounds += 1
        self._first = True
        self._guess = 0.0

    def place(self, packet: av.Packet[Any], frame_s: float) -> tuple[float, float]:
        """(presentation time, decoding time). Raw streams have none: then frames follow each other evenly."""
        base = float(packet.time_base) if packet.time_base else 0.0
        dts = packet.dts * base if packet.dts is not None else self._guess
        pts = packet.pts * base if packet.pts is not None else dts
        if self._first:
            self._first = False
            if self.rounds:
                self._offset = self._end - pts
        self._guess = dts + frame_s
        duration = max((packet.duration or 0) * base, frame_s)  # demuxers make short ones up
        self._end = max(self._end, pts + self._offset + duration)
        return pts + self._offset, dts + self._offset
