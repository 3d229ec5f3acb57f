"""The server's side of an inference worker: brings it up, keeps it up, and answers for every batch.

Whatever happens to the process (it raises, hangs, is stopped, is killed, never starts), each `infer` gets exactly one
`on_done`, and the process is replaced, ever more slowly as long as that does not help. A new process is told of every
arena and shape that the old one knew. Runs on the server's event loop and never blocks it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from server.inference import protocol
from server.inference.config import WorkerConfig
from server.inference.process import WorkerProcess
from server.shm import Arena

log = logging.getLogger("yolov9.inference")

Shape = tuple[int, int]
"""(height, width)"""

ENGINE_ERROR, HUNG, WORKER_LOST, STOPPED = "engine_error", "hung", "worker_lost", "stopped"
"""Codes with which a batch fails."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is too long, seconds."""

    start: float = 120.0
    """From the process's start to Hello: the first compilation of a large model on a small machine."""
    prepare: float = 120.0
    """A shape, from its turn on."""
    hang: float = 5.0
    hang_factor: float = 20.0
    """A batch may take so many times its usual time, and `hang` at least."""
    first: float = 30.0
    """A batch of a shape whose usual time is not known yet."""
    watch: float = 0.5
    """How often it is looked at."""
    backoff_initial: float = 1.0
    backoff_max: float = 30.0
    """Also the wait after a start that failed in order: its cause (a broken bundle) will hardly go by itself."""
    shape_retry: float = 5.0
    """A shape that could not be prepared is not tried again before."""
    failures: int = 3
    """So many batches failed by the engine in a row: a new process may do better."""
    stop: float = 2.0


class _Sent(NamedTuple):
    shape: Shape
    size: int
    deadline: float


@dataclass(slots=True)
class _Life:
    """What belongs to one process and dies with it."""

    process: WorkerProcess
    started_at: float
    hello: protocol.Hello | None = None
    """None: not ready yet."""
    sent: dict[int, _Sent] = field(default_factory=dict)
    preparing: dict[Shape, float] = field(default_factory=dict)
    """shape -> deadline"""
    prepared: set[Shape] = field(default_factory=set)
    failures: int = 0
    """Batches that the engine failed in a row."""

    @property
    def ready(self) -> bool:
        return self.hello is not None


class Worker:
    """An inference worker that is always there, if not always `ready`.

    `on_up(hello)`: batches may be sent; again when `parallel` has changed with the load, or the engine itself.
    `on_done(done, reason)`: a batch's answer; `reason` is a code (see above) where it failed. `on_prepared(height,
    width, error)`: after `prepare`, and again after each restart. `on_down(reason)`: no batch may be sent; all that
    were out have got their `on_done` before. The reason is a sentence that begins with a code or names the cause.
    Callbacks run on the event loop and may call any method but `start` and `stop`.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        on_done: Callable[[protocol.Done, str | None], None],
        on_prepared: Callable[[int, int, str | None], None],
        on_up: Callable[[protocol.Hello], None],
        on_down: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
        spawn: Callable[..., WorkerProcess] = WorkerProcess,
    ) -> None:
        self._config = config
        self._on_done = on_done
        self._on_prepared = on_prepared
        self._on_up = on_up
        self._on_down = on_down
        self._clock = clock
        self._limits = limits or Limits()
        self._make_process = spawn
        self._arenas: dict[int, Arena] = {}
        self._shapes: set[Shape] = set()  # asked for, to be told to each new process
        self._refused: dict[Shape, float] = {}  # could not be prepared -> not before
        self._usual: dict[tuple[Shape, int], float] = {}  # seconds from sending to the answer, slowly forgetting
        self._life: _Life | None = None
        self._backoff = self._limits.backoff_initial
        self._restart: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._ending: dict[WorkerProcess, asyncio.Task[None]] = {}  # killed, not reaped yet
        self.reason = "the engine is starting"
        """Why it is not ready, or `ready`."""
        self.upgrade: protocol.Upgrade | None = None
        """A faster engine that is being built, or why it could not be."""

    @property
    def ready(self) -> bool:
        return self._life is not None and self._life.ready

    @property
    def outstanding(self) -> int:
        """Batches sent and not answered."""
        return 0 if self._life is None else len(self._life.sent)

    @property
    def pid(self) -> int | None:
        return None if self._life is None else self._life.process.pid

    def start(self) -> None:
        """Returns at once; `on_up` follows, or `on_down` and another try. To be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._watch = self._loop.call_later(self._limits.watch, self._look)
        self._spawn()

    async def stop(self) -> None:
        """End the process: in order if it listens, else by force. Batches that are out fail with `stopped`."""
        for timer in (self._restart, self._watch):
            if timer is not None:
                timer.cancel()
        life, self._life = self._life, None
        self.reason = "the engine has been stopped"
        if life is not None:
            life.process.send(protocol.Stop())
            if life.ready and not life.sent:
                await life.process.wait(self._limits.stop)
            life.process.kill()
            self._bury(life.process)
            self._fail_all(life, STOPPED, self.reason)
        if self._ending:
            await asyncio.wait(self._ending.values())

    def attach(self, arena_id: int, arena: Arena) -> None:
        """Make an arena known, now and to every later process. It must stay open until `detach`."""
        self._arenas[arena_id] = arena
        if self._life is not None and self._life.ready:
            self._attach(self._life, arena_id, arena)

    def detach(self, arena_id: int) -> None:
        """Frames of the arena that are still out fail. The arena may be closed right after."""
        if self._arenas.pop(arena_id, None) is not None and self._life is not None and self._life.ready:
            self._life.process.send(protocol.DetachArena(arena_id))

    def prepare(self, height: int, width: int) -> None:
        """Ask for a shape, now and after every restart; `on_prepared` follows. Asked for twice, it is prepared once."""
        shape = (height, width)
        self._shapes.add(shape)
        if self._life is not None and self._life.ready:
            self._prepare(self._life, shape)

    def infer(self, request: protocol.Infer) -> None:
        """Send a batch; exactly one `on_done` follows, never from within this call."""
        life = self._life
        if life is None or not life.ready:
            self._loop.call_soon(self._on_done, self._failure(request.id, self.reason), WORKER_LOST)
            return
        shape, size = (request.height, request.width), len(request.frames)
        life.sent[request.id] = _Sent(shape, size, self._clock() + self._patience(shape, size))
        life.process.send(request)

    # One process's life.

    def _spawn(self) -> None:
        self._restart = None
        try:
            process = self._make_process(self._config, self._reply, self._gone, loop=self._loop)
        except OSError as error:
            self._later(f"the worker's process cannot be started: {error}")
            return
        self._life = _Life(process, self._clock())
        self.upgrade = None
        log.info("worker pid=%d state=starting", process.pid)

    def _reply(self, reply: protocol.Reply) -> None:
        life = self._life
        if life is None:  # being stopped
            return
        match reply:
            case protocol.Done():
                self._done(life, reply)
            case protocol.Prepared(height, width, _seconds, error):
                self._prepared(life, (height, width), error)
            case protocol.Hello():
                self._hello(life, reply)
            case protocol.Mode(mode, parallel):
                self._mode(life, mode, parallel)
            case protocol.Upgrade():
                self.upgrade = reply
            case protocol.Switched():
                self._switched(life, reply)
            case protocol.Failed(detail):
                self._backoff = self._limits.backoff_max
                self._lose(WORKER_LOST, f"the engine cannot be started: {detail}")

    def _hello(self, life: _Life, hello: protocol.Hello) -> None:
        for arena_id, arena in self._arenas.items():
            self._attach(life, arena_id, arena)
        life.hello = hello
        self.reason = "ready"
        warm = (hello.height, hello.width)
        life.prepared.add(warm)
        log.info(
            "worker pid=%d state=ready engine=%s precision=%s parallel=%d max_batch=%d seconds=%.2f", life.process.pid,
            hello.engine, hello.precision, hello.parallel, hello.max_batch, self._clock() - life.started_at,
        )  # fmt: skip
        for shape in self._shapes:
            self._prepare(life, shape)
        self._on_up(hello)

    def _mode(self, life: _Life, mode: str, parallel: int) -> None:
        assert life.hello is not None, "Hello comes first"
        log.info("worker pid=%d mode=%s parallel=%d", life.process.pid, mode, parallel)
        life.hello = msgspec.structs.replace(life.hello, parallel=parallel)
        self._on_up(life.hello)

    def _switched(self, life: _Life, new: protocol.Switched) -> None:
        assert life.hello is not None, "Hello comes first"
        self.upgrade = None
        self._usual.clear()  # of another engine
        life.hello = msgspec.structs.replace(life.hello, **msgspec.structs.asdict(new))
        self._on_up(life.hello)

    def _done(self, life: _Life, done: protocol.Done) -> None:
        sent = life.sent.pop(done.id, None)
        if sent is None:
            self._lose(WORKER_LOST, f"{WORKER_LOST}: it answered batch {done.id}, which is not out")
            return
        if done.error is None:
            life.failures = 0
            self._backoff = self._limits.backoff_initial
            took = done.postprocessed_at - done.started_at
            usual = self._usual.get((sent.shape, sent.size), took)
            self._usual[(sent.shape, sent.size)] = usual + 0.2 * (took - usual)
        elif done.engine_failed:
            life.failures += 1
        self._on_done(done, None if done.error is None else ENGINE_ERROR)
        if life is self._life and life.failures >= self._limits.failures:
            self._lose(WORKER_LOST, f"{ENGINE_ERROR}: {life.failures} batches failed in a row, the last: {done.error}")

    def _prepare(self, life: _Life, shape: Shape) -> None:
        if shape in life.preparing:
            return
        if shape in life.prepared:
            self._loop.call_soon(self._on_prepared, *shape, None)
            return
        now = self._clock()
        not_before = self._refused.get(shape, now)
        if not_before > now:
            life.preparing[shape] = not_before + self._limits.prepare
            self._loop.call_later(not_before - now, self._ask, life, shape)
        else:
            self._ask(life, shape)

    def _ask(self, life: _Life, shape: Shape) -> None:
        if life is self._life:
            life.preparing[shape] = self._clock() + self._limits.prepare
            life.process.send(protocol.Prepare(*shape))

    def _prepared(self, life: _Life, shape: Shape, error: str | None) -> None:
        life.preparing.pop(shape, None)
        for other in life.preparing:  # they are prepared one after the other
            life.preparing[other] = max(life.preparing[other], self._clock() + self._limits.prepare)
        if error is None:
            life.prepared.add(shape)
            self._refused.pop(shape, None)
        else:
            self._refused[shape] = self._clock() + self._limits.shape_retry
        self._on_prepared(*shape, error)

    def _attach(self, life: _Life, arena_id: int, arena: Arena) -> None:
        life.process.send(protocol.AttachArena(arena_id, arena.slots, arena.slot_bytes), arena.fd)

    # Trouble.

    def _patience(self, shape: Shape, size: int) -> float:
        limits = self._limits
        usual = self._usual.get((shape, size))
        if usual is None:
            return limits.first
        return max(limits.hang, limits.hang_factor * usual)

    def _look(self) -> None:
        """Every now and then: is anything overdue? What has come meanwhile counts, even if this loop was held up."""
        self._watch = self._loop.call_later(self._limits.watch, self._look)
        life = self._life
        if life is None or not self._overdue(life):
            return
        life.process.read()
        if life is self._life and (what := self._overdue(life)):
            self._lose(HUNG, f"{HUNG}: {what}")

    def _overdue(self, life: _Life) -> str | None:
        now = self._clock()
        if not life.ready and now - life.started_at > self._limits.start:
            return f"the worker did not start within {self._limits.start:g} s"
        for batch_id, sent in life.sent.items():
            if now > sent.deadline:
                return f"the engine has not answered batch {batch_id} in time"
        for (height, width), deadline in life.preparing.items():
            if now > deadline:
                return f"shape {width}x{height} was not prepared within {self._limits.prepare:g} s"
        return None

    def _gone(self, how: str) -> None:
        """The process has ended, and not because it was told to."""
        if self._life is None:  # being stopped
            return
        self._lose(WORKER_LOST, f"{WORKER_LOST}: the inference worker's process ended: {how}")

    def _lose(self, code: str, reason: str) -> None:
        """Give the process up: end it, answer for its batches, say so, and try again later."""
        life, self._life = self._life, None
        assert life is not None, "only a life can be lost"
        life.process.kill()
        self._bury(life.process)
        self.reason = reason
        self._fail_all(life, code, reason)
        self._later(reason, life.process.pid)

    def _bury(self, process: WorkerProcess) -> None:
        async def wait() -> None:
            if not await process.wait(self._limits.stop):
                log.error("worker pid=%d does not end, even by SIGKILL", process.pid)
            del self._ending[process]

        self._ending[process] = self._loop.create_task(wait())

    def _fail_all(self, life: _Life, code: str, reason: str) -> None:
        while life.sent:
            batch_id = next(iter(life.sent))
            del life.sent[batch_id]
            self._on_done(self._failure(batch_id, reason), code)

    def _later(self, reason: str, pid: int | None = None) -> None:
        wait, self._backoff = self._backoff, min(2 * self._backoff, self._limits.backoff_max)
        self.reason = reason
        log.error("worker pid=%s state=lost retry_in_s=%g %s", pid, wait, reason)
        self._restart = self._loop.call_later(wait, self._spawn)
        self._on_down(reason)

    def _failure(self, batch_id: int, why: str) -> protocol.Done:
        now = self._clock()
        return protocol.Done(batch_id, now, now, now, [], why)
