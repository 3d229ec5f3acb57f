"""What a camera's process tells the server: records into the pipe, messages into the control socket.

Both may block while the server does not read: better than to lose a record. Without a server there is nothing to live
for, so a broken pipe ends the process.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from collections.abc import Callable

from server.ingest.source import AccessUnit, SourceError
from server.ingest.wire import Control, DecodeErrorKind, DropReason, Event, EventKind, StateChange, pack_control

EXIT_ORDERLY = 0
EXIT_CRASHED = 1
EXIT_STUCK = 3
"""A native call did not come back; the state that was reported last says which."""


class EventPipe:
    """Records, written whole (at most PIPE_BUF bytes at a time) by any thread."""

    def __init__(self, fd: int, orphaned: Callable[[], None]) -> None:
        self._fd = fd
        self._orphaned = orphaned

    def write(self, event: Event) -> None:
        try:
            os.write(self._fd, event.pack())
        except BrokenPipeError:
            self._orphaned()

    def open(self, seq: int, unit: AccessUnit) -> None:
        self.write(frame_event(EventKind.OPEN, seq, unit))

    def drop(self, seq: int, reason: DropReason) -> None:
        self.write(Event(EventKind.DROP, seq, reason))

    def decode_error(self, kind: DecodeErrorKind, count: int) -> None:
        self.write(Event(EventKind.DECODE_ERROR, reason=kind, count=count))

    def heartbeat(self, now: float, input_size: int) -> None:
        """From the thread that writes READY: frames behind it in the pipe are scaled for `input_size`."""
        self.write(Event(EventKind.HEARTBEAT, arrived_at=now, input_width=input_size))


def frame_event(kind: EventKind, seq: int, unit: AccessUnit) -> Event:
    """A record with all that is known of when the frame was taken and came in."""
    return Event(
        kind,
        seq,
        pts=_known(unit.pts),
        arrived_at=unit.arrived_at,
        captured_unix=_known(unit.captured_unix),
        received_unix=unit.received_unix,
        arrival_uncertainty_s=unit.arrival_uncertainty_s,
        capture_uncertainty_s=_known(unit.capture_uncertainty_s),
    )


def _known(value: float | None) -> float:
    return math.nan if value is None else value


class ControlSocket:
    """Messages to the server, whole, by any thread."""

    def __init__(self, connection: socket.socket, orphaned: Callable[[], None]) -> None:
        self._socket = connection
        self._orphaned = orphaned
        self._lock = threading.Lock()

    def send(self, message: bytes) -> None:
        try:
            with self._lock:
                self._socket.sendall(message)
        except (BrokenPipeError, ConnectionResetError):
            self._orphaned()

    def receive(self, timeout_s: float) -> bytes | None:
        """Some bytes; b"" at the end; None if nothing came within the time-out. For one thread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout_s * 1e3):
            return None
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""


class States:
    """The state of the source, told once for each change."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._last: StateChange | None = None
        self._lock = threading.Lock()

    def report(self, change: StateChange) -> None:
        with self._lock:
            if change != self._last:
                self._last = change
                self._control.send(pack_control(Control.STATE, change))


def backing_off(error: SourceError, retry_in_s: float | None = None) -> StateChange:
    """The state after a loss; `retry_in_s` is unknown to a process that is about to end."""
    retry = None if retry_in_s is None else round(retry_in_s, 3)
    return StateChange(state="backoff", reason=error.reason, detail=error.detail, retry_in_s=retry)
