"""A dry run: open a camera's source once, look at the first picture, say what it is. A process of its own, too."""

from __future__ import annotations

import os
import socket
import time

from server.ingest.camera import isolate
from server.ingest.decoder import Decoder, Shown
from server.ingest.nursery import ProbeTask
from server.ingest.reports import EXIT_ORDERLY, ControlSocket, backing_off
from server.ingest.source import AccessUnit, Reason, Source, SourceError, StreamInfo
from server.ingest.sources import sources_for
from server.ingest.wire import CameraSettings, Control, StateChange, pack_control
from yolov9.letterbox import displayed_size

FIRST_PICTURE_S = 2.0
"""What comes without a keyframe for so long is described by what it says of itself."""


def main(task: ProbeTask, control_fd: int) -> int:
    """Send one state, running or backoff, and end."""
    isolate("cam probe")
    control = ControlSocket(socket.socket(fileno=control_fd), lambda: os._exit(EXIT_ORDERLY))
    try:
        answer = describe(task.settings)
    except SourceError as error:
        answer = backing_off(error)
    control.send(pack_control(Control.STATE, answer))
    return EXIT_ORDERLY


def describe(settings: CameraSettings) -> StateChange:
    """What the source is, as a `running` state. Raises SourceError."""
    refused = SourceError(Reason.ERROR, "there is no source for this address")
    for source in sources_for(settings):
        try:
            return _look(source, source.open(), settings.decoder)
        except SourceError as error:
            refused = error
            if error.reason is not Reason.CODEC:
                break
        finally:
            source.close()
    raise refused


def _look(source: Source, info: StreamInfo, kind: str) -> StateChange:
    decoder = Decoder(info, kind=kind)
    size = _first_size(source, decoder) or (info.width, info.height)
    return StateChange(
        state="running",
        codec=info.codec,
        width=size[0] or None,
        height=size[1] or None,
        fps=info.fps or None,
        transport=info.transport,
        decoder=decoder.kind,
        decoder_detail=decoder.detail,
        client=info.client,
    )


def _first_size(source: Source, decoder: Decoder) -> tuple[int, int] | None:
    deadline = time.monotonic() + FIRST_PICTURE_S
    for seq, unit in enumerate(source.units()):
        if isinstance(unit, AccessUnit):
            for verdict in decoder.decode(seq, unit):
                if isinstance(verdict, Shown):
                    return displayed_size(verdict.frame)
        if time.monotonic() > deadline:
            return None
    return next((displayed_size(v.frame) for v in decoder.drain() if isinstance(v, Shown)), None)
