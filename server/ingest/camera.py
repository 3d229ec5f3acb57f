"""The process of one camera: source, decoder, letterbox, slots. Runs in a fork of the nursery and knows no server but
two descriptors and an arena.

Threads: `receiver` takes access units off the wire; the main thread decodes them, writes the letterboxed picture into
a slot and tells of each frame's fate; `control` obeys the server and watches the receiver; `encoder`, if ever asked,
makes JPEGs. The process ends when the server closes the control socket, whatever it is doing.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import av
import av.error

from server.ingest.decoder import Decoder, Shown, Verdict, file_threads
from server.ingest.intake import Begin, End, Intake, Unit
from server.ingest.nursery import CameraTask
from server.ingest.pictures import Encoder, Pictures
from server.ingest.rate import LiveAxis, RateLimiter
from server.ingest.receiver import Receiver, Sources
from server.ingest.reports import (
    EXIT_CRASHED,
    EXIT_ORDERLY,
    EXIT_STUCK,
    ControlSocket,
    EventPipe,
    States,
    backing_off,
    frame_event,
)
from server.ingest.slots import Slots
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo
from server.ingest.sources import loses_no_frame, sources_for
from server.ingest.wire import (
    CameraSettings,
    Control,
    ControlReader,
    DecodeErrorKind,
    DropReason,
    EncodeRequest,
    EventKind,
    StateChange,
    decode_payload,
    pack_image,
    unpack_free,
)
from server.shm import Arena
from yolov9.geometry import input_shape
from yolov9.letterbox import Letterboxer, displayed_size

log = logging.getLogger("yolov9.ingest")

HEARTBEAT_S = 1.0
BLIND_S = 30.0
"""Frames come and none can be shown for so long: the connection is given up, and a new one begins at a keyframe."""
PARTING_S = 1.2
"""To close the source in order: a camera counts a session that was not torn down for a minute or so."""
_WATCH_S = 0.5


class CameraProcess:
    """All parts of one camera's process. `run` is the main thread's loop and returns after STOP."""

    def __init__(
        self,
        task: CameraTask,
        events_fd: int,
        control: socket.socket,
        arena: Arena,
        sources: Sources = sources_for,
        leave: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        """`leave` ends the process from any thread, at once."""
        self._leave = leave
        self._settings = task.settings
        self._arena = arena
        self._events = EventPipe(events_fd, self._orphaned)
        self._control = ControlSocket(control, self._orphaned)
        self._states = States(self._control)
        self._intake = Intake()
        self._slots = Slots(task.slots, task.held)
        self._pictures = Pictures()
        self._encoder = Encoder(self._pictures, lambda request, jpeg: self._control.send(pack_image(request, jpeg)))
        self._receiver = Receiver(task.settings, sources, self._intake, self._events, self._states, task.next_seq)
        self._letterboxer = Letterboxer()
        self._limiter = _limiter(task.settings)
        self._axis = LiveAxis()
        self._stopping = threading.Event()
        self._beat_at = 0.0
        # Of the connection at hand.
        self._info: StreamInfo | None = None
        self._decoder: Decoder | None = None
        self._inside: dict[int, AccessUnit] = {}
        self._told = (0, 0, "")  # width, height, decoder
        self._blind_since: float | None = None
        self._unscalable_told = False

    def run(self) -> None:
        """Work until the server says STOP; then every frame that it does not own has its record."""
        receiver = threading.Thread(target=self._receiver.run, name="receiver", daemon=True)
        receiver.start()
        threading.Thread(target=self._obey, name="control", daemon=True).start()
        while not self._stopping.is_set():
            self._beat()
            item = self._intake.get(timeout_s=max(self._beat_at + HEARTBEAT_S - time.monotonic(), 0.0))
            match item:
                case Unit():
                    self._take(item)
                case Begin(info):
                    self._begin(info)
                case End(finished):
                    self._end(finished)
        self._receiver.stop()
        if self._decoder is not None:
            self._settle(self._decoder.reset(DropReason.STOPPED))
        for seq in self._intake.clear():
            self._events.drop(seq, DropReason.STOPPED)
        receiver.join(PARTING_S)

    # Frames: the main thread.

    def _begin(self, info: StreamInfo) -> None:
        self._info = info
        threads = 1 if info.live or self._settings.realtime else file_threads()
        try:
            self._decoder = Decoder(info, threads=threads, kind=self._settings.decoder)
        except SourceError as error:
            self._decoder = None
            self._receiver.fail(info, error)
        self._axis = LiveAxis()
        self._told = (0, 0, "")
        self._blind_since = None
        self._unscalable_told = False

    def _end(self, finished: bool) -> None:
        decoder = self._decoder
        if decoder is not None:
            self._settle(decoder.drain() if finished else decoder.reset(DropReason.DISCONNECTED))
        self._decoder = None
        if finished and not self._stopping.is_set():
            self._states.report(StateChange(state="stopped", reason=Reason.ENDED, detail="the file is at its end"))

    def _take(self, item: Unit) -> None:
        decoder = self._decoder
        if decoder is None:
            self._events.drop(item.seq, DropReason.DECODE_ERROR)
            return
        if item.after_gap:
            self._settle(decoder.drain())
        self._inside[item.seq] = item.unit
        self._settle(decoder.decode(item.seq, item.unit))
        for kind, count in decoder.complaints.items():
            self._events.decode_error(kind, count)
        decoder.complaints.clear()
        if self._blind_since is not None and time.monotonic() - self._blind_since > BLIND_S:
            self._blind_since = None
            why = f": {decoder.last_complaint}" if decoder.last_complaint else ""
            assert self._info is not None
            self._receiver.fail(self._info, SourceError(Reason.DECODE, f"no clean keyframe for {BLIND_S:g} s{why}"))

    def _settle(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            unit = self._inside.pop(verdict.seq)
            if isinstance(verdict, Shown):
                self._blind_since = None
                self._show(verdict.seq, unit, verdict.frame)
                self._beat()
                continue
            self._events.drop(verdict.seq, verdict.reason)
            if self._blind_since is None and verdict.reason is not DropReason.NOT_SHOWN:
                self._blind_since = time.monotonic()

    def _show(self, seq: int, unit: AccessUnit, frame: av.VideoFrame) -> None:
        width, height = displayed_size(frame)
        decoder = self._decoder
        assert decoder is not None
        if (width, height, decoder.kind) != self._told:
            self._told = width, height, decoder.kind
            self._report_running(width, height, decoder)
        reason = self._pass_on(seq, unit, frame, width, height)
        if reason is not None:
            self._pictures.decoded(frame)
            self._events.drop(seq, reason)

    def _pass_on(self, seq: int, unit: AccessUnit, frame: av.VideoFrame, width: int, height: int) -> DropReason | None:
        """Letterbox into a slot and hand it over; or why not."""
        limiter = self._limiter
        if limiter is not None and not limiter.accept(self._frame_time(unit)):
            return DropReason.RATE_LIMIT
        slot = self._free_slot(seq)
        if slot is None:
            return DropReason.STOPPED if self._stopping.is_set() else DropReason.NO_SLOT
        try:
            rows, columns = input_shape(self._settings.input_size, width, height)
            self._letterboxer.write(frame, self._arena.image(slot, rows, columns))
        except (av.error.FFmpegError, ValueError) as error:
            self._slots.free(slot, seq)
            self._events.decode_error(DecodeErrorKind.CODEC, 1)
            if not self._unscalable_told:
                self._unscalable_told = True
                stream, what = self._settings.stream, f"{width}x{height} {frame.format.name}"
                log.warning("stream=%s pictures of %s cannot be scaled: %s", stream, what, type(error).__name__,
                            extra={"stream": stream})  # fmt: skip
            return DropReason.DECODE_ERROR
        self._pictures.hold(seq, frame)
        self._events.write(
            frame_event(EventKind.READY, seq, unit)._replace(
                slot=slot,
                source_width=width,
                source_height=height,
                input_width=columns,
                input_height=rows,
                ready_at=time.monotonic(),
            )
        )
        return None

    def _frame_time(self, unit: AccessUnit) -> float:
        if self._info is not None and self._info.live:
            return self._axis.time(unit.pts, unit.arrived_at)
        return unit.pts if unit.pts is not None else unit.arrived_at

    def _free_slot(self, seq: int) -> int | None:
        """A live stream takes one or none; a file of which no frame may be lost waits."""
        slot = self._slots.take(seq)
        waits = self._info is not None and loses_no_frame(self._info, self._settings)
        while slot is None and waits and not self._stopping.is_set():
            self._beat()
            slot = self._slots.take(seq, timeout_s=_WATCH_S)
        return slot

    def _report_running(self, width: int, height: int, decoder: Decoder) -> None:
        info = self._info
        assert info is not None
        self._receiver.shown(
            info,
            StateChange(
                state="running",
                codec=info.codec,
                width=width,
                height=height,
                fps=info.fps or None,
                transport=info.transport,
                decoder=decoder.kind,
                decoder_detail=decoder.detail,
                client=info.client,
            ),
        )

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at >= HEARTBEAT_S:
            self._beat_at = now
            self._events.heartbeat(now, self._settings.input_size)

    # The server's word: the control thread.

    def _obey(self) -> None:
        for kind, payload in self._messages():
            match kind:
                case Control.FREE:
                    slot, seq, completed = unpack_free(payload)
                    self._pictures.release(seq, completed)
                    self._slots.free(slot, seq)
                case Control.SETTINGS:
                    self._apply(decode_payload(payload, CameraSettings))
                case Control.ENCODE:
                    self._encoder.submit(decode_payload(payload, EncodeRequest))
                case Control.STOP:
                    self._stopping.set()
                    self._receiver.stop()
                case _:
                    raise ValueError(f"the server sent a message of kind {kind}")

    def _messages(self) -> Iterator[tuple[Control, bytes]]:
        reader = ControlReader()
        while True:
            data = self._control.receive(_WATCH_S)
            if data == b"":
                self._orphaned()
            elif data is not None:
                yield from reader.feed(data)
            if (error := self._receiver.stuck(time.monotonic())) is not None:
                self._states.report(backing_off(error))
                self._leave(EXIT_STUCK)

    def _orphaned(self) -> NoReturn:
        """The server is gone."""
        self._leave(EXIT_ORDERLY)

    def _apply(self, settings: CameraSettings) -> None:
        if settings.max_fps != self._settings.max_fps:
            self._limiter = _limiter(settings)
        resized = settings.input_size != self._settings.input_size
        self._settings = settings
        if resized:
            self._beat_at = 0.0  # a heartbeat, which tells the server, is due with the next frame
        self._receiver.apply(settings)


def main(task: CameraTask, events_fd: int, control_fd: int, arena_fd: int) -> int:
    """Run a camera in this process, which is its own. Returns the exit status."""
    isolate(f"cam {task.settings.stream}")
    arena = Arena.attach(arena_fd, task.slots, task.slot_bytes)
    CameraProcess(task, events_fd, socket.socket(fileno=control_fd), arena).run()
    return EXIT_ORDERLY


def isolate(name: str) -> None:
    """Make this process one that only the server ends: a signal to the whole group (Ctrl-C, systemd) is the server's
    affair, which stops its cameras in order. A crashed thread ends the process instead of leaving half of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.excepthook = _crashed
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(name[:15])
    except OSError:
        pass  # only what `ps` and `top` show


def _crashed(args: threading.ExceptHookArgs) -> None:
    log.error("thread %s crashed", args.thread.name if args.thread else "?", exc_info=args.exc_value)
    os._exit(EXIT_CRASHED)


def _limiter(settings: CameraSettings) -> RateLimiter | None:
    return RateLimiter(settings.max_fps) if settings.max_fps else None
