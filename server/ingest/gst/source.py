"""`gst: ... ! appsink` as a `Source`, and SRT, which FFmpeg's build in PyAV lacks, as bytes of MPEG-TS.

GStreamer reports no stall by itself (its RTSP source is silent for minutes), so the time-outs are ours: a pipeline that
gives nothing for the read time-out is killed with its process.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

from server.ingest.gst import helper
from server.ingest.gst.process import GstProcess, Message
from server.ingest.mpegts import TransportStream
from server.ingest.nal import is_reference
from server.ingest.network import Patience
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo

TICK_S = 0.5
_CODECS = {
    "video/x-h264": "h264",
    "video/x-h265": "hevc",
    "image/jpeg": "mjpeg",
    "video/x-vp8": "vp8",
    "video/x-vp9": "vp9",
    "video/x-av1": "av1",
    "video/x-raw": "rawvideo",
}
_PIXEL_FORMATS = {
    "NV12": "nv12", "I420": "yuv420p", "YUY2": "yuyv422", "UYVY": "uyvy422", "GRAY8": "gray", "BGRx": "bgr0",
    "RGBx": "rgb0", "BGRA": "bgra", "RGBA": "rgba",
}  # fmt: skip


class GstSource:
    """See `server.ingest.source.Source`. Whoever may give a pipeline may do whatever the server's user may."""

    def __init__(self, pipeline: str, open_timeout_s: float = 5.0, read_timeout_s: float = 5.0) -> None:
        self._pipeline = pipeline
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._process: GstProcess | None = None

    def __repr__(self) -> str:
        return "GstSource()"

    def open(self) -> StreamInfo:
        """Start the pipeline and wait for its first picture. Raises SourceError."""
        self.close()
        process = self._process = GstProcess(self._pipeline)
        message = process.receive(time.monotonic() + self._open_timeout_s)
        if message is None:
            raise SourceError(Reason.TIMEOUT, f"the pipeline gives nothing within {self._open_timeout_s:g} s")
        if message.kind != helper.FORMAT:
            raise SourceError(Reason.ENDED, "the pipeline ended without a picture")
        about = self._about = json.loads(message.payload)
        self._codec = _CODECS.get(about["media"], "")
        if not self._codec:
            raise SourceError(Reason.CODEC, f"appsink gets {about['media'] or 'nothing known'}: not supported")
        pixel_format = _PIXEL_FORMATS.get(about["format"], "") if self._codec == "rawvideo" else ""
        if self._codec == "rawvideo" and not pixel_format:
            what = f"raw pictures of format {about['format']}"
            raise SourceError(Reason.CODEC, f"{what} are not supported: put `videoconvert` before appsink")
        return StreamInfo(
            codec=self._codec,
            width=about["width"],
            height=about["height"],
            fps=about["fps"],
            transport="gstreamer",
            client="gstreamer",
            pixel_format=pixel_format,
        )

    def units(self) -> Iterator[AccessUnit | None]:
        """Access units, None twice a second while nothing comes. Ends with the pipeline. Raises SourceError."""
        process = self._process
        if process is None:
            raise RuntimeError("units() before open()")
        heard_at = time.monotonic()
        while True:
            silent_at = heard_at + self._read_timeout_s
            message = process.receive(min(time.monotonic() + TICK_S, silent_at))
            if message is None:
                if time.monotonic() >= silent_at:
                    process.kill()
                    raise SourceError(Reason.STALLED, f"the pipeline gave nothing for {self._read_timeout_s:g} s")
                yield None
            elif message.kind == helper.UNIT:
                heard_at = time.monotonic()
                yield self._unit(message)
            elif message.kind == helper.END:
                return
            else:
                self._check_format(json.loads(message.payload))

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _check_format(self, about: dict[str, Any]) -> None:
        """Coded video tells its own size, raw pictures do not. Raises SourceError: a new connection will do."""
        before = self._about
        if about["media"] != before["media"] or (self._codec == "rawvideo" and about != before):
            raise SourceError(Reason.ENDED, "the pipeline's video is of another format from here on")

    def _unit(self, message: Message) -> AccessUnit:
        return AccessUnit(
            data=message.payload,
            pts=None if math.isnan(message.pts) else message.pts,
            arrived_at=message.arrived_at,
            received_unix=message.received_unix,
            keyframe=message.keyframe,
            reference=is_reference(self._codec, message.payload),
        )


class SrtFile(TransportStream):
    """What an SRT peer sends, as a file for libavformat."""

    def __init__(self, uri: str, properties: dict[str, Any]) -> None:
        """`properties`: of the element srtsrc."""
        super().__init__("srt")
        self._properties = {"uri": uri, **properties}
        self._patience = Patience()
        self._process: GstProcess | None = None

    def open(self) -> None:
        """Call the peer; answers and refusals come with `read`. Raises SourceError."""
        self.shut()
        self.begin_anew()
        pipeline = "srtsrc name=source ! appsink sync=false"
        self._process = GstProcess(pipeline, {"source": self._properties}, video=False)

    def allow_until(self, deadline: float, late: SourceError) -> None:
        self._patience.allow_until(deadline, late)

    def _datagram(self) -> bytes:
        while self._process is not None:
            message = self._process.receive(time.monotonic() + self._patience.left_s())
            if message is None:
                self._process.kill()
                raise self._patience.late()
            if message.kind == helper.END:
                break
            if message.kind == helper.UNIT and message.payload:
                return message.payload
        return b""

    def shut(self) -> None:
        """End the connection; `close` would be for ever."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def close(self) -> None:
        """libavformat closes its files; the next connection opens this one again."""
        self.shut()
