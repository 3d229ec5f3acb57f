"""Which source serves a camera's settings. The sources themselves neither know of each other nor retry."""

from __future__ import annotations

from collections.abc import Iterator

from server.addresses import PIPELINE_PREFIX, is_pipeline
from server.ingest.gst.source import GstSource
from server.ingest.libav import LibavSource
from server.ingest.network import Networks
from server.ingest.rtsp.source import RtspSource
from server.ingest.source import Source, StreamInfo
from server.ingest.wire import CameraSettings

_RTSP_SCHEMES = ("rtsp://", "rtsps://", "rtspt://")


def sources_for(settings: CameraSettings) -> Iterator[Source]:
    """Sources not opened yet, in the order in which to try them. The next one is for the case that the one before does
    not support the camera's codec (SourceError CODEC). The first may raise SourceError for the address."""
    network = (settings.url, settings.username, settings.password, settings.transport)
    limits = (settings.open_timeout_s, settings.read_timeout_s)
    if is_pipeline(settings.url):
        yield GstSource(settings.url[len(PIPELINE_PREFIX) :].strip(), *limits)
        return
    networks = Networks.parse(settings.allow_networks, settings.deny_networks)
    if settings.rtsp_client == "native" and settings.url.lower().startswith(_RTSP_SCHEMES):
        yield RtspSource(*network, *limits, networks=networks)
        if networks.allow is not None:
            return  # libavformat's client follows redirects unchecked
    yield LibavSource(*network, *limits, loop=settings.loop, realtime=settings.realtime, networks=networks)


def loses_no_frame(info: StreamInfo, settings: CameraSettings) -> bool:
    """Whether the reader waits for the server, as only files can, instead of dropping frames."""
    return not info.live and (settings.every_frame or not settings.realtime)


def needs_reconnect(old: CameraSettings, new: CameraSettings) -> bool:
    """Whether a change of settings concerns the source, or only what is done with its frames."""
    return any(
        getattr(old, name) != getattr(new, name)
        for name in (
            "url",
            "username",
            "password",
            "transport",
            "rtsp_client",
            "loop",
            "every_frame",
            "realtime",
            "open_timeout_s",
            "read_timeout_s",
            "decoder",
            "allow_networks",
            "deny_networks",
        )
    )
