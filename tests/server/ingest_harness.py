"""A camera's process inside the test's process: fake sources in, records and messages out."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NoReturn

from server.ingest.camera import CameraProcess
from server.ingest.nursery import CameraTask
from server.ingest.source import AccessUnit, Source, SourceError, StreamInfo
from server.ingest.wire import (
    RECORD_BYTES,
    CameraSettings,
    Control,
    ControlReader,
    DropReason,
    EncodeRequest,
    Event,
    EventKind,
    StateChange,
    decode_payload,
    pack_control,
    pack_free,
    unpack_events,
    unpack_image,
)
from server.ledger import Ledger
from server.shm import Arena, slot_bytes

PATIENCE_S = 20.0
INPUT_SIZE = 256
"""Pictures of 192x128 lie in inputs of 256x192 then."""


@dataclass
class FakeSource:
    """Plays `units`, then does what `ends` says: None ends in order, an error is raised, "hold" ticks for ever."""

    info: StreamInfo
    play: list[AccessUnit] = field(default_factory=list)
    ends: SourceError | str | None = "hold"
    refuses: SourceError | None = None
    gap_s: float = 0.0
    opened: int = 0
    closed: int = 0

    def open(self) -> StreamInfo:
        self.opened += 1
        if self.refuses is not None:
            raise self.refuses
        return self.info

    def units(self) -> Iterator[AccessUnit | None]:
        for unit in self.play:
            if self.gap_s:
                time.sleep(self.gap_s)
            yield replace(unit, arrived_at=time.monotonic(), received_unix=time.time())
        while self.ends == "hold":
            time.sleep(0.01)
            yield None
        if isinstance(self.ends, SourceError):
            raise self.ends

    def close(self) -> None:
        self.closed += 1


def fixed(*sources: Source) -> Callable[[CameraSettings], Iterator[Source]]:
    """One source for each attempt, the last one again and again."""
    attempts = iter(sources)
    last = sources[-1]

    def choose(settings: CameraSettings) -> Iterator[Source]:
        yield next(attempts, last)

    return choose


class Harness:
    """Runs a CameraProcess in a thread. All records go through a Ledger, which objects to anything out of order."""

    def __init__(
        self,
        sources: Callable[[CameraSettings], Iterator[Source]],
        *,
        slots: int = 64,
        free: bool = True,
        held: list[tuple[int, int]] | None = None,
        next_seq: int = 1,
        prepare: Callable[[CameraProcess], None] = lambda process: None,
        **settings: object,
    ) -> None:
        """`prepare`: changes the process before it runs. Afterwards, it may have played everything already."""
        self.settings = CameraSettings(
            stream="t", url="fake", input_size=INPUT_SIZE, backoff_initial_s=0.01, backoff_max_s=0.05, **settings,  # type: ignore[arg-type]
        )  # fmt: skip
        self.free = free
        self.ledger = Ledger()
        self.events: list[Event] = []
        self.states: list[StateChange] = []
        self.images: dict[int, bytes] = {}
        self._events_fd, write_fd = os.pipe()
        os.set_blocking(self._events_fd, False)
        self._socket, remote = socket.socketpair()
        self._socket.setblocking(False)
        self._reader = ControlReader()
        self.arena = Arena.create("test", slots, slot_bytes(INPUT_SIZE))
        task = CameraTask(
            settings=self.settings, next_seq=next_seq, slots=slots, slot_bytes=self.arena.slot_bytes, held=held or []
        )
        self.left: list[int] = []
        self.process = CameraProcess(task, write_fd, remote, self.arena, sources, self._leave)
        prepare(self.process)
        self._thread = threading.Thread(target=self.process.run, daemon=True)
        self._thread.start()

    def _leave(self, status: int) -> NoReturn:
        """The thread that wants to end the process goes no further."""
        self.left.append(status)
        while True:
            time.sleep(60)

    # What it said.

    def pump(self) -> None:
        """Read all that is there."""
        while True:
            try:
                data = os.read(self._events_fd, 512 * RECORD_BYTES)
            except BlockingIOError:
                break
            for event in unpack_events(data):
                self._apply(event)
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                return
            for kind, payload in self._reader.feed(data):
                if kind is Control.STATE:
                    self.states.append(decode_payload(payload, StateChange))
                else:
                    number, jpeg = unpack_image(payload)
                    self.images[number] = jpeg

    def _apply(self, event: Event) -> None:
        self.events.append(event)
        match event.kind:
            case EventKind.OPEN:
                self.ledger.open(event.seq)
            case EventKind.DROP:
                self.ledger.drop(event.seq, "ingest", DropReason(event.reason).name)
            case EventKind.READY:
                assert self.ledger.is_open(event.seq)
                if self.free:
                    self.give_back(event)
        assert self.ledger.balanced()

    def until(self, condition: Callable[[], bool], what: str = "") -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} never happened: {self.counts()} {self.states}"
            time.sleep(0.002)
            self.pump()

    def until_state(self, state: str, count: int = 1) -> StateChange:
        self.until(lambda: len([s for s in self.states if s.state == state]) >= count, f"state {state}")
        return [s for s in self.states if s.state == state][count - 1]

    def until_seen(self, count: int) -> None:
        """So many frames have their record."""
        self.until(lambda: len(self.ready()) + sum(self.drops().values()) >= count, f"{count} frames")

    def ready(self) -> list[Event]:
        return [event for event in self.events if event.kind is EventKind.READY]

    def drops(self) -> Counter[str]:
        return Counter(DropReason(event.reason).name for event in self.events if event.kind is EventKind.DROP)

    def counts(self) -> Counter[str]:
        return Counter(event.kind.name for event in self.events)

    # What it is told.

    def give_back(self, event: Event, completed: bool = True) -> None:
        if completed:
            self.ledger.complete(event.seq)
        else:
            self.ledger.drop(event.seq, "batching", "stale")
        self.send(pack_free(event.slot, event.seq, completed))

    def send(self, message: bytes) -> None:
        self._socket.setblocking(True)
        self._socket.sendall(message)
        self._socket.setblocking(False)

    def apply(self, **changes: object) -> None:
        import msgspec

        self.settings = msgspec.structs.replace(self.settings, **changes)
        self.send(pack_control(Control.SETTINGS, self.settings))

    def encode(self, number: int, **request: object) -> bytes:
        self.send(pack_control(Control.ENCODE, EncodeRequest(id=number, **request)))  # type: ignore[arg-type]
        self.until(lambda: number in self.images, "a picture")
        return self.images[number]

    def stop(self) -> None:
        """In order; then nothing is open that the server does not own."""
        self.send(pack_control(Control.STOP))
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it does not stop"
        self.pump()
        owned = {event.seq for event in self.ready()}
        assert set(self.ledger.open_seqs()) <= owned
