"""Frames from their owners to a worker and back: the scheduler chooses, the window says when, the worker runs.

Owners (a stream, the desk of `POST /detect`) offer frames and get each one back exactly once, through `done` or
`dropped`. Runs on the server's event loop; knows nothing of ledgers, clients or metrics.

Which model a frame meets is settled when its batch is sent, not before: `switch` lets the next batch go to another
line, while those under way end where they are. What cameras have already scaled for the old model's input size still
goes to the old line, until `retire`.

Answers of one owner come back in the order in which its frames were sent, whichever engine is faster.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from server.batching.line import Line
from server.batching.scheduler import Policy, Scheduler, Shape, Waiting
from server.inference.protocol import Done, Frame, Hello, Infer
from server.models.model import Model


class Outcome(NamedTuple):
    """What became of a frame that was sent to the engine."""

    model: Model
    """The one that it was sent to."""
    started_at: float
    finished_at: float
    detections: bytes
    """float32[n, 6], see `protocol.DETECTION_COLUMNS`."""
    error: str | None
    reason: str | None
    """Short code of the error: engine_error | hung | worker_lost."""
    batch_size: int


class Owner(Protocol):
    """Whoever offers frames: the payload of each `Waiting`."""

    in_order: bool
    """Its answers come in the order of sending; otherwise as soon as they are there."""

    def frame(self, waiting: Waiting, model: Model) -> Frame:
        """What the worker must know of the frame, now that it is sent to this model."""
        ...

    def done(self, frame: Waiting, outcome: Outcome) -> None: ...
    def dropped(self, frame: Waiting, reason: str) -> None: ...


@dataclass(slots=True)
class _Sent:
    """A frame of an owner who wants answers in order."""

    frame: Waiting
    outcome: Outcome | None = None


class Dispatcher:
    """`on_batch(size)` is called for each batch sent (metrics)."""

    def __init__(
        self,
        scheduler: Scheduler,
        line: Line,
        *,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._scheduler = scheduler
        self._line = line
        self._old: Line | None = None
        self._clock = clock
        self._loop = loop
        self._on_batch = on_batch
        self._next_id = 1
        self._sent: dict[Owner, deque[_Sent]] = {}
        self._held = 0  # answers that wait for one that was sent before them
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._pumping = False
        self.failing_since: float | None = None
        """Time since which every batch has failed; None: the last one succeeded."""
        self._unanswered_since = 0.0

    @property
    def line(self) -> Line:
        """Where new batches go."""
        return self._line

    @property
    def old_line(self) -> Line | None:
        """What frames scaled for the model before still go to."""
        return self._old

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def in_engine(self) -> int:
        """Frames sent to a worker whose answers have not been given back yet."""
        return sum(line.frames_out for line in self._lines()) + self._held

    def unanswered_s(self) -> float:
        """For how long frames have been here without any of them being answered; 0 while there are none."""
        return self._clock() - self._unanswered_since if self._busy else 0.0

    @property
    def _busy(self) -> bool:
        return bool(self._scheduler.waiting or self.in_engine)

    def usual_s(self, shape: Shape) -> float | None:
        """Usual inference time of one picture, seconds: of the smallest batches that there have been. None if not known
        yet."""
        line = self._line
        for batch in range(1, line.max_batch + 1):
            if (usual := line.window.usual_s((shape, batch))) is not None:
                return usual / batch
        return None

    def configure(self, stream: str, policy: Policy) -> None:
        self._scheduler.configure(stream, policy)

    def remove(self, stream: str) -> None:
        """Waiting frames of the stream come back as dropped; those in the engine come back through `done`."""
        for dropped in self._scheduler.remove(stream):
            self._give_back(dropped.frame, dropped.reason)

    def want(self, shape: Shape) -> None:
        """Have a shape prepared, if it is not yet: frames of it are on their way."""
        self._line_of(shape).want(shape)

    def offer(self, frame: Waiting) -> None:
        """Take a frame over. Call `pump` after the last of a burst."""
        self.want(frame.shape)
        now = self._clock()
        if not self._busy:
            self._unanswered_since = now
        for dropped in self._scheduler.offer(frame, now):
            self._give_back(dropped.frame, dropped.reason)

    def pump(self) -> None:
        """Send what may go now, drop what is too old, and set the timer for the next thing to do."""
        if self._pumping:  # an owner's callback offered a frame: the outer call goes on anyway
            return
        self._pumping = True
        try:
            now = self._clock()
            for dropped in self._scheduler.expire(now):
                self._give_back(dropped.frame, dropped.reason)
            for line in self._lines():
                while line.worker.ready and line.window.opens_at() <= now:
                    batch = self._take(line, now)
                    if not batch:
                        break
                    self._send(line, batch, now)
            self._set_timer(now)
        finally:
            self._pumping = False

    # Two lines.

    def switch(self, line: Line) -> None:
        """New batches go to `line`, which is up and has the shapes in use prepared. Not before the last one retired."""
        assert self._old is None, "one switch at a time"
        self._old, self._line = self._line, line
        self.failing_since = None
        self._unanswered_since = self._clock()
        self._want_all()
        self.pump()

    @property
    def draining(self) -> bool:
        """Whether there is an old line that still has frames, or that frames wait for."""
        old = self._old
        return old is not None and bool(old.batches or self._has_frames_for(old))

    def retire(self) -> None:
        """The old line is over: frames that come too late for it go to the new one, in their shape. Batches that are
        out come back, as long as its worker answers for them."""
        old, self._old = self._old, None
        if old is not None:
            self._want_all()
            self.pump()

    def _want_all(self) -> None:
        """Frames that wait may have another line now, which must have their shapes prepared."""
        for shape in self._scheduler.shapes():
            self.want(shape)

    def _lines(self) -> tuple[Line, ...]:
        return (self._line,) if self._old is None else (self._old, self._line)

    def _line_of(self, shape: Shape) -> Line:
        old = self._old
        if old is not None and old.made_for(shape) and not self._line.made_for(shape):
            return old
        return self._line

    def _has_frames_for(self, line: Line) -> bool:
        return any(self._line_of(shape) is line for shape in self._scheduler.shapes())

    # Sending.

    def _take(self, line: Line, now: float) -> list[Waiting]:
        # An empty answer of the scheduler means that the engine is about to idle: an old line is not asked for nothing.
        if line is self._old and not self._has_frames_for(line):
            return []
        self._scheduler.max_batch = line.max_batch
        return self._scheduler.take(now, lambda shape: shape in line.prepared and self._line_of(shape) is line)

    def _send(self, line: Line, batch: list[Waiting], now: float) -> None:
        batch_id = self._next_id
        self._next_id += 1
        shape = batch[0].shape
        line.batches[batch_id] = batch
        line.window.sent(batch_id, (shape, len(batch)), now)
        self._on_batch(len(batch))
        for frame in batch:
            if frame.payload.in_order:
                self._sent.setdefault(frame.payload, deque()).append(_Sent(frame))
        frames = [frame.payload.frame(frame, line.model) for frame in batch]
        line.worker.infer(Infer(batch_id, shape[0], shape[1], frames))

    def _set_timer(self, now: float) -> None:
        wake = self._scheduler.wake_at(now)
        at = float("inf") if wake is None else wake
        if self._scheduler.waiting:
            for line in self._lines():
                if line.worker.ready and (opens_at := line.window.opens_at()) > now:
                    at = min(at, opens_at)
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at != float("inf"):
            self._timer = self._loop.call_later(max(at - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self.pump()

    def _give_back(self, frame: Waiting, reason: str) -> None:
        frame.payload.dropped(frame, reason)

    # What the workers say.

    def on_up(self, line: Line, hello: Hello) -> None:
        self._unanswered_since = self._clock()  # what waited for the engine to come is not its fault
        line.on_up(hello)
        self.pump()

    def on_prepared(self, line: Line, height: int, width: int, error: str | None) -> None:
        line.on_prepared((height, width), error)
        if error is None:
            self.pump()

    def on_down(self, line: Line) -> None:
        """The worker is gone (its batches have come back by `on_done` before) and will prepare its shapes anew."""
        line.on_down()
        self.pump()

    def on_done(self, line: Line, done: Done, reason: str | None = None) -> None:
        """An answer. `reason` overrides the code of a failed one (hung, worker_lost)."""
        batch = line.batches.pop(done.id)
        now = self._clock()
        failed = done.error is not None
        line.window.ended(done.id, done.started_at, done.finished_at, ok=not failed)
        self._unanswered_since = now
        if not failed:
            self.failing_since = None
        elif self.failing_since is None and line is self._line:
            self.failing_since = now
        if not failed:
            # The engine is free, or soon: feed it before the results are encoded and sent.
            self.pump()
        code = (reason or "engine_error") if failed else None
        for index, frame in enumerate(batch):
            detections = b"" if failed else done.detections[index]
            outcome = Outcome(line.model, done.started_at, done.finished_at, detections, done.error, code, len(batch))
            self._answer(frame, outcome)
        self.pump()

    def _answer(self, frame: Waiting, outcome: Outcome) -> None:
        owner: Owner = frame.payload
        if not owner.in_order:
            owner.done(frame, outcome)
            return
        sent = self._sent[owner]
        next(one for one in sent if one.frame is frame).outcome = outcome
        self._held += 1
        while sent and (first := sent[0]).outcome is not None:
            sent.popleft()
            self._held -= 1
            owner.done(first.frame, first.outcome)
        if not sent:
            del self._sent[owner]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
