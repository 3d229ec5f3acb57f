"""The server's hold on one camera: starts its process, hears its records, brings it back when it is lost.

Event loop only; no call blocks. All records of a process are delivered before `on_lost`, and `on_lost` before the next
process is started, so a ledger that applies them one by one is exact at any time. A process that crashes, hangs (no
heartbeat) or does not listen costs its own camera and nobody else; retrying a *source* is the process's own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from server.ingest.backoff import Backoff
from server.ingest.link import ControlLink, EventPipe
from server.ingest.nursery import CameraTask, ProbeTask
from server.ingest.reports import EXIT_ORDERLY, EXIT_STUCK
from server.ingest.source import Reason
from server.ingest.spawn import Process, nursery
from server.ingest.wire import (
    CameraSettings,
    Control,
    EncodeRequest,
    Event,
    EventKind,
    StateChange,
    decode_payload,
    pack_control,
    pack_free,
    unpack_image,
)
from server.shm import Arena, slot_bytes
from yolov9.bundle import MAX_INPUT_SIZE

log = logging.getLogger("yolov9.ingest")

SILENCE_S = 5.0
"""Of heartbeats, which come once a second: the process is stopped or hangs, and is killed."""
START_S = 15.0
"""For the first heartbeat: the nursery may have to be started, on a busy machine."""
ENCODE_TIMEOUT_S = 2.0
_CHECK_S = 1.0
_REAP_S = 2.0


class Camera:
    """One camera. `arena` lives from construction until its owner closes it; processes come and go."""

    def __init__(
        self,
        settings: CameraSettings,
        *,
        slots: int,
        on_events: Callable[[list[Event]], None],
        on_state: Callable[[StateChange], None],
        on_lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OSError if there is no memory or descriptor for the arena."""
        self._settings = settings
        self._slots = slots
        self._on_events = on_events
        self._on_state = on_state
        self._on_lost = on_lost
        self._clock = clock
        self.arena = Arena.create(f"yolov9-{settings.stream}", slots, slot_bytes(MAX_INPUT_SIZE))
        self.restarts = 0
        """Processes that were lost so far."""
        self._held: dict[int, int] = {}  # slot -> seq of frames that the server owns
        self._next_seq = 1
        self._life: _Life | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._stopping = False
        self._last_words: tuple[str, str] | None = None
        """Reason and detail of the last state that a process reported, in case it gives itself up over it."""

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._life is None else self._life.process.pid

    @property
    def alive(self) -> bool:
        """Whether there is a process, or one is being started."""
        return self._life is not None

    def start(self, next_seq: int) -> None:
        """Start the process; returns at once. Frames are numbered from `next_seq` on."""
        self._next_seq = next_seq
        self._supervision = asyncio.get_running_loop().create_task(self._supervise())
        self._supervision.add_done_callback(self._check)

    def free(self, slot: int, seq: int, completed: bool) -> None:
        """Give a slot back. `completed`: the frame has a result."""
        if self._held.get(slot) == seq:
            del self._held[slot]
        if self._life is not None:
            self._life.control.send(pack_free(slot, seq, completed))

    def apply(self, settings: CameraSettings) -> None:
        """New settings: at once, and for processes to come."""
        self._settings = settings
        if self._life is not None:
            self._life.control.send(pack_control(Control.SETTINGS, settings))

    def resize(self, input_size: int) -> None:
        """Scale for another model from the next frame on; the source is not opened anew."""
        self.apply(msgspec.structs.replace(self._settings, input_size=input_size))

    async def encode(self, request: EncodeRequest) -> bytes:
        """A JPEG of a frame that the process still keeps; b"" if there is no such frame. `request.id` is unique.
        TimeoutError; ConnectionError without a process."""
        life = self._life
        if life is None:
            raise ConnectionError(f"camera {self._settings.stream!r} has no process now")
        return await life.encode(request)

    def drain(self) -> None:
        """Deliver what the process has told until now."""
        if self._life is not None:
            self._life.control.drain()
            self._life.events.drain()

    async def stop(self, timeout_s: float) -> None:
        """End the process: in order, or by SIGKILL after the time-out. All its records have been delivered then. May be
        called again; the camera can't be started again."""
        self._stopping = True
        life, supervision = self._life, self._supervision
        if supervision is None:
            return
        if life is None:
            supervision.cancel()
        else:
            life.control.send(pack_control(Control.STOP))
            await asyncio.wait([supervision], timeout=timeout_s)
            life.process.kill()
        await asyncio.wait([supervision], timeout=_REAP_S + timeout_s)
        self._supervision = None

    # Supervision.

    async def _supervise(self) -> None:
        backoff = Backoff(self._settings.backoff_initial_s, self._settings.backoff_max_s, random.random)
        while True:
            started_at = self._clock()
            loss = await self._live()
            if self._stopping:
                return
            self.restarts += 1
            backoff.delivered(self._clock() - started_at)
            delay_s = backoff.next_s()
            reason, detail = str(Reason.PROCESS_LOST), loss
            if self._last_words is not None:
                reason, detail = self._last_words
            log.warning("stream=%s process lost: %s; the next one in %.1f s", self._settings.stream, detail, delay_s,
                        extra={"stream": self._settings.stream})  # fmt: skip
            self._on_state(StateChange(state="backoff", reason=reason, detail=detail, retry_in_s=round(delay_s, 3)))
            await asyncio.sleep(delay_s)

    def _check(self, supervision: asyncio.Task[None]) -> None:
        """A callback of the owner raised: a programming error, and nobody looks after the camera any more."""
        error = None if supervision.cancelled() else supervision.exception()
        if error is not None:
            log.critical("stream=%s supervision ended", self._settings.stream, exc_info=error,
                         extra={"stream": self._settings.stream})  # fmt: skip

    async def _live(self) -> str:
        """One process from start to end. Returns how it ended, for people."""
        self._last_words = None
        task = CameraTask(
            settings=self._settings,
            next_seq=self._next_seq,
            slots=self._slots,
            slot_bytes=self.arena.slot_bytes,
            held=list(self._held.items()),
        )
        try:
            life = self._life = _Life(task, self.arena.fd, self._deliver, self._hear, self._clock)
        except OSError as error:
            return f"it could not be started ({error.strerror})"
        try:
            await life.until_end()
        finally:
            life.close()
            self._life = None
        if not (self._stopping and life.status == EXIT_ORDERLY):
            self._on_lost()
        if life.status != EXIT_STUCK:
            self._last_words = None
        return life.how_it_ended()

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if event.kind is EventKind.OPEN:
                self._next_seq = event.seq + 1
            elif event.kind is EventKind.READY:
                self._held[event.slot] = event.seq
        self._on_events(events)

    def _hear(self, change: StateChange) -> None:
        self._last_words = change.reason or Reason.ERROR, change.detail or ""
        self._on_state(change)


class _Life:
    """One process of a camera, from its start to its end."""

    def __init__(
        self,
        task: CameraTask,
        arena_fd: int,
        on_events: Callable[[list[Event]], None],
        on_state: Callable[[StateChange], None],
        clock: Callable[[], float],
    ) -> None:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        self._on_events = on_events
        self._on_state = on_state
        self._clock = clock
        self._beat_at = clock()
        self._patience_s = START_S
        self._hung = False
        self._images: dict[int, asyncio.Future[bytes]] = {}
        with contextlib.ExitStack() as undo:
            self.events = EventPipe(loop, self._deliver)
            undo.callback(self.events.close)
            self.control = ControlLink(loop, self._hear, self._choked)
            undo.callback(self.control.close)
            self.process = nursery().spawn(task, [self.events.write_fd, self.control.remote_fd, arena_fd])
            undo.pop_all()
        self.events.passed_on()
        self.control.passed_on()

    @property
    def status(self) -> int | None:
        """Exit status, None while it lives or if nobody knows."""
        return self.process.ended.result() if self.process.ended.done() else None

    async def until_end(self) -> None:
        """Wait for the end, or bring it about where no heartbeat comes. Then all that it told has been delivered."""
        ends: list[asyncio.Future[Any]] = [self.events.closed, self.process.ended]
        while not any(end.done() for end in ends):
            await asyncio.wait(ends, timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            self.events.drain()
            if self._clock() - self._beat_at > self._patience_s:
                self._hung = True
                break
        self.process.kill()
        await asyncio.wait(ends, timeout=_REAP_S)
        self.control.drain()
        self.events.drain()

    async def encode(self, request: EncodeRequest) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._images[request.id] = answer
        try:
            self.control.send(pack_control(Control.ENCODE, request))
            async with asyncio.timeout(ENCODE_TIMEOUT_S):
                return await answer
        finally:
            del self._images[request.id]

    def close(self) -> None:
        self.events.close()
        self.control.close()
        for answer in self._images.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the camera's process ended"))

    def how_it_ended(self) -> str:
        if self._hung:
            return f"no sign of life for {self._patience_s:g} s"
        if self.process.pid is None:
            return "it could not be started"
        status = self.status
        if status is None:
            return "it is gone"
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def _deliver(self, events: list[Event]) -> None:
        if any(event.kind is EventKind.HEARTBEAT for event in events):
            self._beat_at, self._patience_s = self._clock(), SILENCE_S
        self._on_events(events)

    def _hear(self, kind: Control, payload: bytes) -> None:
        if kind is Control.STATE:
            self._on_state(decode_payload(payload, StateChange))
        elif kind is Control.IMAGE:
            request_id, jpeg = unpack_image(payload)
            answer = self._images.get(request_id)
            if answer is not None and not answer.done():
                answer.set_result(jpeg)

    def _choked(self) -> None:
        self._hung = True
        self.process.kill()


@dataclass(slots=True)
class ProbeResult:
    """What a dry run found. `ok` false: `reason` and `detail` say why."""

    ok: bool
    reason: str | None = None
    detail: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    capacity: bool = False
    """Whether the engine has room for it; filled in by who knows the engine."""


async def probe(settings: CameraSettings, timeout_s: float) -> ProbeResult:
    """Open the source once, in a process of its own, and say what it is. Never takes longer than the time-out."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[StateChange] = loop.create_future()

    def hear(kind: Control, payload: bytes) -> None:
        if kind is Control.STATE and not answer.done():
            answer.set_result(decode_payload(payload, StateChange))

    process: Process | None = None
    control: ControlLink | None = None
    try:
        control = ControlLink(loop, hear)
        process = nursery().spawn(ProbeTask(settings=settings), [control.remote_fd])
        control.passed_on()
        ends: list[asyncio.Future[Any]] = [answer, process.ended]
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        control.drain()
    except OSError as error:
        return ProbeResult(False, Reason.ERROR, f"no process could be started ({error.strerror})")
    finally:
        if control is not None:
            control.close()
        if process is not None:
            process.kill()
    if answer.done():
        found = answer.result()
        ok = found.state == "running"
        return ProbeResult(ok, found.reason, found.detail, found.codec, found.width, found.height, found.fps)
    if process.ended.done():
        return ProbeResult(False, Reason.PROCESS_LOST, "the process that opened it crashed")
    return ProbeResult(False, Reason.TIMEOUT, f"no answer within {timeout_s:g} s")
