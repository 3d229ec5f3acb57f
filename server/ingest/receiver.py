"""The thread that receives: connects, opens a frame's record at once, and comes back after a loss.

The only place where a source is tried again. It does nothing that takes time between two frames, so `arrived_at` is
honest however busy the decoder is.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

from server.ingest.backoff import Backoff
from server.ingest.intake import Begin, End, Intake, Unit
from server.ingest.reports import EventPipe, States, backing_off
from server.ingest.source import AccessUnit, Reason, Source, SourceError, StreamInfo
from server.ingest.sources import loses_no_frame, needs_reconnect
from server.ingest.wire import CameraSettings, DropReason, StateChange

_OPEN_MARGIN_S = 2.0
"""An open that takes so much longer than the open time-out hangs in native code."""
_READ_MARGIN_S = 3.0
_CLOSE_S = 3.0
_ROOM_S = 0.5
"""How long to wait for room before looking at the flags again."""

Sources = Callable[[CameraSettings], Iterator[Source]]


class Receiver:
    """`run` is the thread; the other methods are for the others."""

    def __init__(
        self,
        settings: CameraSettings,
        sources: Sources,
        intake: Intake,
        events: EventPipe,
        states: States,
        next_seq: int,
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._intake = intake
        self._events = events
        self._states = states
        self._seq = next_seq
        self._backoff = _backoff(settings)
        self._gate = threading.Lock()  # no frame is opened after `stop`, none is shown after a loss
        self._current: StreamInfo | None = None
        self._stopped = False
        self._wake = threading.Event()
        self._changed = False
        self._failure: SourceError | None = None
        self._shown_at: float | None = None
        self._busy: tuple[float, Reason] | None = None

    # For other threads.

    def apply(self, settings: CameraSettings) -> None:
        """New settings; connects anew if they concern the source."""
        changed = needs_reconnect(self._settings, settings)
        self._settings = settings
        if changed:
            self._changed = True
            self._wake.set()

    def stop(self) -> None:
        """No frame is opened any more once this returns. The thread may still be closing its source."""
        with self._gate:
            self._stopped = True
        self._wake.set()

    def fail(self, info: StreamInfo, error: SourceError) -> None:
        """What comes by this connection cannot be used: give it up for this reason."""
        with self._gate:
            if self._current is info:
                self._failure = error

    def shown(self, info: StreamInfo, running: StateChange) -> None:
        """Pictures of this connection are there: reports that, unless the connection has been lost since."""
        with self._gate:
            if self._current is not info:
                return
            if self._shown_at is None:
                self._shown_at = time.monotonic()
            self._states.report(running)

    def stuck(self, now: float) -> SourceError | None:
        """Why the process has to end: a native call has not come back long after its time-out."""
        busy = self._busy
        if busy is None or now < busy[0]:
            return None
        return SourceError(busy[1], "a call into the system does not return; the process is started anew")

    # The thread.

    def run(self) -> None:
        while not self._stopped:
            self._changed = False
            self._wake.clear()
            settings = self._settings
            self._report(StateChange(state="connecting"))
            try:
                live = self._connection(settings)
            except SourceError as error:
                self._pause(error)
                continue
            if self._interrupted():
                continue
            if live:
                self._pause(SourceError(Reason.ENDED, "the peer ended the stream"))
            else:
                self._wake.wait()  # a file is over; main says so once its last frame is through

    def _connection(self, settings: CameraSettings) -> bool:
        """From open to end; False if it was a file. Raises SourceError."""
        source, info = self._open(settings)
        self._report(_opened(info))
        finished = False
        self._shown_at = self._failure = None
        self._current = info
        try:
            self._intake.put(Begin(info))
            self._receive(source, info, settings)
            finished = not info.live and not self._interrupted()
            return info.live
        finally:
            self._intake.put(End(finished))
            self._guard(_CLOSE_S, Reason.ERROR)
            source.close()
            self._busy = None
            self._backoff.delivered(self._shown_for_s())

    def _open(self, settings: CameraSettings) -> tuple[Source, StreamInfo]:
        refused: SourceError | None = None
        for source in self._sources(settings):
            self._guard(1.2 * settings.open_timeout_s + _OPEN_MARGIN_S, Reason.TIMEOUT)
            try:
                return source, source.open()
            except SourceError as error:
                source.close()
                refused = error
                if error.reason is not Reason.CODEC:
                    break
            finally:
                self._busy = None
        assert refused is not None
        raise refused

    def _receive(self, source: Source, info: StreamInfo, settings: CameraSettings) -> None:
        waits = loses_no_frame(info, settings)
        patience_s = settings.read_timeout_s + _READ_MARGIN_S
        units = source.units()
        while not self._interrupted():
            self._guard(patience_s, Reason.STALLED)
            unit = next(units, _END)
            self._busy = None
            if unit is _END:
                return
            if self._failure is not None:
                raise self._failure
            if isinstance(unit, AccessUnit):
                self._pass_on(unit, waits)

    def _pass_on(self, unit: AccessUnit, waits: bool) -> None:
        while waits and not self._intake.wait_for_room(_ROOM_S):
            if self._interrupted():
                return
        with self._gate:
            if self._stopped:
                return
            seq, self._seq = self._seq, self._seq + 1
            self._events.open(seq, unit)
            for given_up in self._intake.put(Unit(seq, unit), may_give_up=not waits):
                self._events.drop(given_up, DropReason.OVERLOAD)

    def _shown_for_s(self) -> float:
        return 0.0 if self._shown_at is None else time.monotonic() - self._shown_at

    def _report(self, change: StateChange) -> None:
        """A state in which no picture is shown."""
        with self._gate:
            self._current = None
            self._states.report(change)

    def _interrupted(self) -> bool:
        return self._stopped or self._changed

    def _guard(self, for_s: float, reason: Reason) -> None:
        self._busy = time.monotonic() + for_s, reason

    def _pause(self, error: SourceError) -> None:
        if self._interrupted():
            return
        delay_s = self._backoff.next_s(slow=error.reason is Reason.AUTH)
        self._report(backing_off(error, delay_s))
        if self._wake.wait(delay_s) and not self._stopped:
            self._backoff = _backoff(self._settings)  # what failed is no more


_END = object()


def _backoff(settings: CameraSettings) -> Backoff:
    return Backoff(settings.backoff_initial_s, settings.backoff_max_s, random.random)


def _opened(info: StreamInfo) -> StateChange:
    """What the source says of its video, before the first keyframe: the server can get ready for its size."""
    return StateChange(
        state="connecting",
        codec=info.codec,
        width=info.width or None,
        height=info.height or None,
        fps=info.fps or None,
        transport=info.transport,
        client=info.client,
    )
