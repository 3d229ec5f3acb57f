"""An RTSP camera that is none of ours: Debian's gst-rtsp-server, playing MP4 files in a loop. For the system's Python:

    python3 gst_camera.py --mount door=clip.mp4 [--user U --auth digest]       (password: environment CAMERA_PASSWORD)

Prints the address of each mount once it listens, and ends at the end of standard input. A file is read once into memory
as coded frames, and goes out through an appsrc with times that go on over the loop (`multifilesrc loop=true` has none).

`--log FILE` makes it a live camera: each frame is pushed when it is due, and when its last packet goes to the sinks a
line of JSON says so: {"path", "index" (of the frame in its clip), "rtp" (time stamp), "began", "sent" (both
monotonic seconds), "captured" (Unix seconds)}.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TextIO

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
# GstApp gives appsink its methods.
from gi.repository import GLib, Gst, GstApp, GstRtsp, GstRtspServer  # noqa: E402, F401

READ_TIMEOUT_NS = 20 * Gst.SECOND
PARSERS = {"video/x-h264": ("h264parse", "rtph264pay"), "video/x-h265": ("h265parse", "rtph265pay")}


@dataclass(frozen=True)
class Frame:
    data: bytes
    pts: int
    dts: int
    duration: int


@dataclass(frozen=True)
class Clip:
    caps: str
    parser: str
    payloader: str
    frames: list[Frame]
    duration: int
    """Nanoseconds from the first frame to the first of the next turn."""


def read_clip(path: str) -> Clip:
    """All coded frames of a file's video with start codes, decoding order. SystemExit if it has none."""
    pipeline = Gst.parse_launch("filesrc name=file ! qtdemux name=demux")
    pipeline.get_by_name("file").set_property("location", path)
    sink = Gst.ElementFactory.make("appsink")
    sink.set_property("sync", False)
    pipeline.add(sink)
    found: list[str] = []

    def link(_demux: Gst.Element, pad: Gst.Pad) -> None:
        name = pad.get_current_caps().get_structure(0).get_name()
        if name not in PARSERS or found:
            return
        found.append(name)
        parser = Gst.ElementFactory.make(PARSERS[name][0])
        parser.set_property("config-interval", -1)
        pipeline.add(parser)
        parser.link_filtered(sink, Gst.Caps.from_string(f"{name},stream-format=byte-stream,alignment=au"))
        parser.sync_state_with_parent()
        pad.link(parser.get_static_pad("sink"))

    pipeline.get_by_name("demux").connect("pad-added", link)
    pipeline.set_state(Gst.State.PLAYING)
    frames = []
    caps = ""
    while (sample := sink.try_pull_sample(READ_TIMEOUT_NS)) is not None:
        buffer = sample.get_buffer()
        caps = sample.get_caps().to_string()
        frames.append(Frame(buffer.extract_dup(0, buffer.get_size()), buffer.pts, buffer.dts, buffer.duration))
    pipeline.set_state(Gst.State.NULL)
    if not frames:
        sys.exit(f"gst_camera: {path} has no H.264 or H.265 video")
    parser_name, payloader = PARSERS[found[0]]
    duration = max(frame.dts for frame in frames) + frames[0].duration - frames[0].dts
    return Clip(caps, parser_name, payloader, frames, duration)


class Loop:
    """Feeds one appsrc, as fast as it asks: the sinks of the RTSP media keep the time."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._index = 0
        self._shift = -clip.frames[0].dts

    def feed(self, source: Gst.Element, _bytes: int) -> None:
        frame = self._clip.frames[self._index]
        buffer = Gst.Buffer.new_wrapped(frame.data)
        buffer.pts, buffer.dts = frame.pts + self._shift, frame.dts + self._shift
        buffer.duration = frame.duration
        self._index += 1
        if self._index == len(self._clip.frames):
            self._index = 0
            self._shift += self._clip.duration
        source.emit("push-buffer", buffer)


class Live(threading.Thread):
    """Feeds one appsrc as a camera would: each frame when it is due, whether anyone takes it or not. One for each
    media; ends with it. Frames leave in the order in which they were pushed, so the next marker bit is the oldest's."""

    def __init__(self, path: str, clip: Clip, source: Gst.Element, payloader: Gst.Element, log: TextIO) -> None:
        super().__init__(daemon=True)
        self._path, self._clip, self._source, self._log = path, clip, source, log
        self._under_way: deque[tuple[int, float]] = deque()
        self._began: float | None = None
        payloader.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER | Gst.PadProbeType.BUFFER_LIST, self._look)

    def run(self) -> None:
        started, turn, index = time.monotonic(), 0, 0
        first = self._clip.frames[0].dts
        while True:
            frame = self._clip.frames[index]
            due = started + (turn * self._clip.duration + frame.dts - first) / Gst.SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            if self._source.get_state(0)[1] == Gst.State.PLAYING and not self._push(index, frame):
                return
            index += 1
            if index == len(self._clip.frames):
                index, turn = 0, turn + 1

    def _push(self, index: int, frame: Frame) -> bool:
        running = self._source.get_clock().get_time() - self._source.get_base_time()
        buffer = Gst.Buffer.new_wrapped(frame.data)
        buffer.dts, buffer.duration = running, frame.duration
        buffer.pts = running + frame.pts - frame.dts
        self._under_way.append((index, time.time() + (frame.pts - frame.dts) / Gst.SECOND))
        return bool(self._source.emit("push-buffer", buffer) == Gst.FlowReturn.OK)

    def _look(self, _pad: Gst.Pad, info: Gst.PadProbeInfo) -> Gst.PadProbeReturn:
        many = info.get_buffer_list() if info.type & Gst.PadProbeType.BUFFER_LIST else None
        for buffer in [many.get(n) for n in range(many.length())] if many else [info.get_buffer()]:
            _, kind, _, timestamp = struct.unpack("!BBHI", buffer.extract_dup(0, 8))
            now = time.monotonic()
            self._began = self._began or now
            if kind & 0x80:
                index, captured = self._under_way.popleft()
                line = {"path": self._path, "index": index, "rtp": timestamp, "began": self._began, "sent": now,
                        "captured": captured}  # fmt: skip
                print(json.dumps(line), file=self._log, flush=True)
                self._began = None
        return Gst.PadProbeReturn.OK


def _hurry(element: Gst.Element) -> None:
    if element.find_property("processing-deadline"):
        element.set_property("processing-deadline", 0)


def make_factory(path: str, clip: Clip, log: TextIO | None) -> GstRtspServer.RTSPMediaFactory:
    """One media for all clients of the mount, as with a camera."""
    factory = GstRtspServer.RTSPMediaFactory()
    # What is pushed live has gone through the parser already, which would hold each frame until the next one.
    factory.set_launch(
        f'( appsrc name=source format=time max-bytes=200000 caps="{clip.caps.replace(chr(34), "")}" '
        + ("is-live=true " if log else f"! {clip.parser} ")
        + f"! {clip.payloader} name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(True)

    def configure(_factory: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
        element = media.get_element()
        source = element.get_by_name_recurse_up("source")
        # Sinks that hold each frame for the 20 ms that others might need would send later than the log says.
        element.get_parent().connect("deep-element-added", lambda _pipeline, _bin, added: _hurry(added))
        if log is None:
            source.connect("need-data", Loop(clip).feed)
        else:
            Live(path, clip, source, element.get_by_name_recurse_up("pay0"), log).start()

    factory.connect("media-configure", configure)
    return factory


def protect(server: GstRtspServer.RTSPServer, user: str, password: str, scheme: str) -> GstRtspServer.RTSPToken:
    """All mounts need this user."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    if scheme == "digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.BASIC)
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    return token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mount", action="append", required=True, metavar="PATH=CLIP")
    parser.add_argument("--port", default="0", help="0: a free one")
    parser.add_argument("--user")
    parser.add_argument("--auth", choices=["basic", "digest"], default="digest")
    parser.add_argument("--log", type=argparse.FileType("w"), metavar="FILE", help="be live, and log what was sent")
    arguments = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(arguments.port)
    paths = []
    for mount in arguments.mount:
        path, _, clip = mount.partition("=")
        factory = make_factory(path, read_clip(clip), arguments.log)
        if arguments.user:
            permissions = GstRtspServer.RTSPPermissions()
            permissions.add_permission_for_role("user", "media.factory.access", True)
            permissions.add_permission_for_role("user", "media.factory.construct", True)
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory(f"/{path}", factory)
        paths.append(path)
    token = arguments.user and protect(server, arguments.user, os.environ["CAMERA_PASSWORD"], arguments.auth)
    if server.attach(None) == 0:
        sys.exit("gst_camera: it cannot listen on a port of 127.0.0.1")
    for path in paths:
        print(f"rtsp://127.0.0.1:{server.get_bound_port()}/{path}", flush=True)
    loop = GLib.MainLoop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
    loop.run()
    del token  # the server keeps no reference of its own


if __name__ == "__main__":
    main()
