"""A GStreamer pipeline in a process of its own: what its appsink gets goes out as messages. For the system's Python,
which alone has GStreamer's bindings; imports nothing of this project.

Standard input: one line of JSON, `{"pipeline": "...", "properties": {...}, "video": true}` (see `build`), never the
command line, which everybody on the machine can read. Its end means: stop. Standard output: messages, a header (HEADER)
and a payload.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import struct
import sys
import threading
import time
from typing import Any, NoReturn

HEADER = struct.Struct("=BBdddI")
"""kind, flags, PTS in seconds (NaN: none), arrival on the monotonic and on the wall clock, bytes that follow"""
FORMAT, UNIT, END, ERROR = 1, 2, 3, 4
KEYFRAME = 1
PACKAGES = "python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
_PULL_NS = 100_000_000
_PR_SET_PDEATHSIG = 1
# Sizes for which GStreamer lays raw pictures out without padding, as the receiver of them expects.
_CAPS = (
    "video/x-h264,stream-format=byte-stream,alignment=au;video/x-h265,stream-format=byte-stream,alignment=au;"
    "image/jpeg;video/x-vp8;video/x-vp9;video/x-av1,stream-format=obu-stream,alignment=tu;"
    "video/x-raw,format={NV12,I420,YUY2,UYVY,GRAY8},width=[8,16384,8],height=[2,16384,2];"
    "video/x-raw,format={BGRx,RGBx,BGRA,RGBA}"
)
# What SRT says, which has codes of its own.
_CAUSES = {"Failed to authenticate": "auth", "Connection timeout": "timeout", "not-negotiated": "codec"}
# Bytes of a pixel, times two.
_PIXEL_HALVES = {"NV12": 3, "I420": 3, "YUY2": 4, "UYVY": 4, "GRAY8": 2, "BGRx": 8, "RGBx": 8, "BGRA": 8, "RGBA": 8}


def send(kind: int, payload: bytes = b"", flags: int = 0, pts: float = math.nan) -> None:
    """Whole, or the process ends with its reader."""
    message = HEADER.pack(kind, flags, pts, time.monotonic(), time.time(), len(payload)) + payload
    view = memoryview(message)
    try:
        while view:
            view = view[os.write(1, view) :]
    except BrokenPipeError:
        os._exit(0)


def fail(reason: str, detail: str) -> NoReturn:
    """`reason`: a value of the project's `Reason`."""
    send(ERROR, json.dumps({"reason": reason, "detail": detail[:300]}).encode())
    os._exit(1)


def die_with_parent() -> None:
    """Even where a native call holds everything up."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def reason_of(error: Any, cause: str, Gst: Any) -> str:
    """What a GError of GStreamer means to us."""
    for text, reason in _CAUSES.items():
        if text in cause:
            return reason
    resource, stream = Gst.ResourceError, Gst.StreamError
    table = [
        (Gst.resource_error_quark(), {
            resource.NOT_FOUND: "not_found", resource.NOT_AUTHORIZED: "auth", resource.OPEN_READ: "refused",
            resource.OPEN_READ_WRITE: "refused", resource.OPEN_WRITE: "refused", resource.BUSY: "refused",
            resource.READ: "ended",
        }),
        (Gst.stream_error_quark(), {
            stream.TYPE_NOT_FOUND: "codec", stream.WRONG_TYPE: "codec", stream.CODEC_NOT_FOUND: "codec",
            stream.FORMAT: "codec", stream.DECODE: "decode", stream.DEMUX: "protocol",
        }),
        (Gst.core_error_quark(), {Gst.CoreError.MISSING_PLUGIN: "codec", Gst.CoreError.NEGOTIATION: "codec"}),
    ]  # fmt: skip
    for quark, reasons in table:
        for code, reason in reasons.items():
            if error.matches(quark, code):
                return reason
    return "error"


def describe(caps: Any) -> dict[str, Any]:
    structure = caps.get_structure(0)
    found, numerator, denominator = structure.get_fraction("framerate")
    width, height = structure.get_int("width"), structure.get_int("height")
    return {
        "media": structure.get_name(),
        "format": structure.get_string("format") or "",
        "width": width[1] if width[0] else 0,
        "height": height[1] if height[0] else 0,
        "fps": numerator / denominator if found and denominator else 0.0,
    }


def find_appsink(pipeline: Any, Gst: Any) -> Any:
    if not isinstance(pipeline, Gst.Bin):
        return None
    iterator = pipeline.iterate_recurse()
    while True:
        result, element = iterator.next()
        if result != Gst.IteratorResult.OK:
            return None
        if element.get_factory().get_name() == "appsink":
            return element


def build(task: dict[str, Any], Gst: Any, GLib: Any) -> tuple[Any, Any]:
    """(pipeline, appsink)"""
    try:
        pipeline = Gst.parse_launch(task["pipeline"])
    except GLib.Error as error:
        fail("error", f"the pipeline cannot be built: {error.message}")
    sink = find_appsink(pipeline, Gst)
    if sink is None:
        fail("error", "the pipeline has no appsink")
    for name, properties in task.get("properties", {}).items():
        element = pipeline.get_by_name(name)
        for property_name, value in properties.items():
            if element.find_property(property_name):  # older releases lack some
                element.set_property(property_name, value)
    if task["video"] and sink.get_property("caps") is None:
        sink.set_property("caps", Gst.Caps.from_string(_CAPS))
    return pipeline, sink


def look_at(bus: Any, Gst: Any) -> None:
    """Ends the process if the pipeline has failed."""
    message = bus.pop_filtered(Gst.MessageType.ERROR)
    if message is not None:
        error, debug = message.parse_error()
        cause = (debug or "").splitlines()[-1:]
        cause = cause[0] if cause and not cause[0].startswith("..") else ""
        reason = reason_of(error, cause, Gst)
        if "not-negotiated" in (debug or ""):
            fail("codec", "appsink gets no video that is supported; put `videoconvert` or a parser in front of it")
        source = message.src.get_factory().get_name() if isinstance(message.src, Gst.Element) else "pipeline"
        fail(reason, f"{source}: {error.message} {cause}".strip())


def run(task: dict[str, Any]) -> None:
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import GLib, Gst, GstApp  # noqa: F401  # GstApp gives appsink its methods
    except (ImportError, ValueError):
        fail("error", f"GStreamer for Python is missing; Debian's packages: {PACKAGES}")
    Gst.init(None)
    pipeline, sink = build(task, Gst, GLib)
    bus = pipeline.get_bus()
    if pipeline.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.FAILURE:
        look_at(bus, Gst)
        fail("error", "the pipeline does not start")
    told: Any = None
    while True:
        sample = sink.try_pull_sample(_PULL_NS)
        look_at(bus, Gst)
        if sample is None:
            if sink.is_eos():
                send(END)
                return
            continue
        caps, buffer = sample.get_caps(), sample.get_buffer()
        if told is None or (caps is not None and not caps.is_equal(told)):
            told = caps
            about: dict[str, Any] = {"media": "", "format": ""} if caps is None else describe(caps)
            send(FORMAT, json.dumps(about).encode())
            size = _PIXEL_HALVES.get(about["format"], 0) * about.get("width", 0) * about.get("height", 0) // 2
        data = buffer.extract_dup(0, buffer.get_size())
        if size and len(data) != size:
            fail("codec", "raw pictures come with padding; put `videoconvert` in front of appsink")
        pts = buffer.pts / 1e9 if buffer.pts != Gst.CLOCK_TIME_NONE else math.nan
        send(UNIT, data, 0 if buffer.get_flags() & Gst.BufferFlags.DELTA_UNIT else KEYFRAME, pts)


def main() -> None:
    die_with_parent()
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    run(task)
    os._exit(0)


if __name__ == "__main__":
    main()
