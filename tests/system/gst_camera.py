"""An RTSP camera that is none of ours: Debian's gst-rtsp-server, playing MP4 files in a loop. For the system's Python:

    python3 gst_camera.py --mount door=clip.mp4 [--user U --auth digest]       (password: environment CAMERA_PASSWORD)

Prints the address of each mount once it listens, and ends at the end of standard input. A file is read once into memory
as coded frames, and goes out through an appsrc with times that go on over the loop (`multifilesrc loop=true` has none).
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from dataclasses import dataclass

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


def make_factory(clip: Clip) -> GstRtspServer.RTSPMediaFactory:
    """One media for all clients of the mount, as with a camera."""
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f'( appsrc name=source format=time max-bytes=200000 caps="{clip.caps.replace(chr(34), "")}" '
        f"! {clip.parser} ! {clip.payloader} name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(True)

    def configure(_factory: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
        loop = Loop(clip)
        source = media.get_element().get_by_name_recurse_up("source")
        source.connect("need-data", loop.feed)

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
    parser.add_argument("--user")
    parser.add_argument("--auth", choices=["basic", "digest"], default="digest")
    arguments = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    paths = []
    for mount in arguments.mount:
        path, _, clip = mount.partition("=")
        factory = make_factory(read_clip(clip))
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
