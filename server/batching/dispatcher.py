"""Frames from their owners to the worker and back: the scheduler chooses, the window says when, the worker runs.

Owners (a stream, the desk of `POST /detect`) offer frames and get each one back exactly once, through `done` or
`dropped`. Runs on the server's event loop; knows nothing of ledgers, clients or metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from server.batching.scheduler import Policy, Scheduler, Waiting
from server.batching.window import Window
from server.inference.protocol import Done, Frame, Hello, Infer

Shape = tuple[int, int]


class WorkerPort(Protocol):
    """What the dispatcher needs of `server.inference.client.Worker`."""

    @property
    def ready(self) -> bool: ...
    def prepare(self, height: int, width: int) -> None: ...
    def infer(self, request: Infer) -> None: ...


class Outcome(NamedTuple):
    """What became of a frame that was sent to the engine."""

    started_at: float
    finished_at: float
    detections: bytes
    """float32[n, 6], see `protocol.DETECTION_COLUMNS`."""
    error: str | None
    reason: str | None
    """Short code of the error: engine_error | hung | worker_lost."""
    batch_size: int


class Owner(Protocol):
    """Whoever offers frames."""

    def done(self, frame: Waiting, outcome: Outcome) -> None: ...
    def dropped(self, frame: Waiting, reason: str) -> None: ...


class Job(NamedTuple):
    """The payload of a waiting frame: whose it is, and what the worker must know of it."""

    owner: Owner
    frame: Frame


class Dispatcher:
    """`on_batch(size)` is called for each batch sent (metrics)."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker: WorkerPort,
        *,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._clock = clock
        self._loop = loop
        self._on_batch = on_batch
        self._window = Window()
        self._batches: dict[int, list[Waiting]] = {}
        self._next_id = 1
        self._prepared: set[Shape] = set()
        self._asked: set[Shape] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._pumping = False
        self.failing_since: float | None = None
        """Time since which every batch has failed; None: the last one succeeded."""
        self._unanswered_since = 0.0

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def in_engine(self) -> int:
        """Frames sent to the worker and not answered yet."""
        return sum(map(len, self._batches.values()))

    def unanswered_s(self) -> float:
        """For how long frames have been here without any of them being answered; 0 while there are none."""
        return self._clock() - self._unanswered_since if self._busy else 0.0

    @property
    def _busy(self) -> bool:
        return bool(self._scheduler.waiting or self._batches)

    def usual_s(self, shape: Shape, batch: int = 1) -> float | None:
        """Usual inference time, seconds; None if not known yet."""
        return self._window.usual_s((shape, batch))

    def configure(self, stream: str, policy: Policy) -> None:
        self._scheduler.configure(stream, policy)

    def remove(self, stream: str) -> None:
        """Waiting frames of the stream come back as dropped; those in the engine come back through `done`."""
        for dropped in self._scheduler.remove(stream):
            self._give_back(dropped.frame, dropped.reason)

    def want(self, shape: Shape) -> None:
        """Have a shape prepared, if it is not yet: frames of it are on their way."""
        if shape not in self._asked:
            self._asked.add(shape)
            self._worker.prepare(*shape)

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
            while self._worker.ready and self._window.opens_at() <= now:
                batch = self._scheduler.take(now, self._prepared.__contains__)
                if not batch:
                    break
                self._send(batch, now)
            self._set_timer(now)
        finally:
            self._pumping = False

    def _send(self, batch: list[Waiting], now: float) -> None:
        batch_id = self._next_id
        self._next_id += 1
        shape = batch[0].shape
        self._batches[batch_id] = batch
        self._window.sent(batch_id, (shape, len(batch)), now)
        self._on_batch(len(batch))
        frames = [frame.payload.frame for frame in batch]
        self._worker.infer(Infer(batch_id, shape[0], shape[1], frames))

    def _set_timer(self, now: float) -> None:
        wake = self._scheduler.wake_at(now)
        at = float("inf") if wake is None else wake
        if self._scheduler.waiting and self._worker.ready:
            opens_at = self._window.opens_at()
            if opens_at > now:
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
        frame.payload.owner.dropped(frame, reason)

    # What the worker says.

    def on_up(self, hello: Hello) -> None:
        self._unanswered_since = self._clock()  # what waited for the engine to come is not its fault
        self._window.parallel = hello.parallel
        self._scheduler.max_batch = hello.max_batch
        self._prepared.add((hello.height, hello.width))
        self._asked.add((hello.height, hello.width))
        self.pump()

    def on_prepared(self, height: int, width: int, error: str | None) -> None:
        """A shape is ready; after an error it is asked for again with the next frame that needs it."""
        if error is None:
            self._prepared.add((height, width))
            self.pump()
        else:
            self._asked.discard((height, width))

    def on_down(self) -> None:
        """The worker is gone (its batches have come back by `on_done` before) and will prepare its shapes anew."""
        self._prepared.clear()
        self._window.clear()
        self.pump()

    def on_done(self, done: Done, reason: str | None = None) -> None:
        """An answer. `reason` overrides the code of a failed one (hung, worker_lost)."""
        batch = self._batches.pop(done.id)
        now = self._clock()
        failed = done.error is not None
        self._window.ended(done.id, done.started_at, done.finished_at, ok=not failed)
        self._unanswered_since = now
        if not failed:
            self.failing_since = None
        elif self.failing_since is None:
            self.failing_since = now
        if not failed:
            # The engine is free, or soon: feed it before the results are encoded and sent.
            self.pump()
        code = (reason or "engine_error") if failed else None
        for index, frame in enumerate(batch):
            detections = b"" if failed else done.detections[index]
            frame.payload.owner.done(
                frame, Outcome(done.started_at, done.finished_at, detections, done.error, code, len(batch))
            )
        self.pump()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
