"""The server's side of a worker, in virtual time and without a process: each batch is answered once, come what may."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pytest

from server.inference import protocol
from server.inference.client import ENGINE_ERROR, HUNG, STOPPED, WORKER_LOST, Limits, Worker
from server.inference.config import WorkerConfig
from server.inference.protocol import (
    AttachArena,
    DetachArena,
    Done,
    Failed,
    Frame,
    Hello,
    Infer,
    Mode,
    Prepare,
    Prepared,
)
from server.shm import Arena

WARM, OTHER = (384, 640), (640, 640)
HELLO = Hello("fake", "fp32", "none", "why", 1, 8, *WARM)
CONFIG = WorkerConfig(bundle="nowhere")
LIMITS = Limits()


class _Jump(selectors.DefaultSelector):
    """Instead of waiting, time jumps."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self.now += timeout
        return super().select(0 if timeout is not None else 5)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class FakeProcess:
    """Stands for a process: remembers what it was sent, says what the test wants."""

    def __init__(
        self,
        config: WorkerConfig,
        on_reply: Callable[[protocol.Reply], None],
        on_gone: Callable[[str], None],
        *,
        loop: Any,
    ) -> None:
        self.say = on_reply
        self.die = on_gone
        self.got: list[protocol.Request] = []
        self.fds: list[int | None] = []
        self.late: list[protocol.Reply] = []
        self.killed = False
        self.pid = 1

    def send(self, message: protocol.Request, fd: int | None = None) -> None:
        self.got.append(message)
        self.fds.append(fd)

    def read(self) -> None:
        while self.late:
            self.say(self.late.pop(0))

    def kill(self) -> None:
        self.killed = True

    async def wait(self, timeout_s: float) -> bool:
        return True


class House:
    """A worker and all that it said."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.loop = asyncio.get_running_loop()
        self.processes: list[FakeProcess] = []
        self.said: list[tuple[Any, ...]] = []
        self.dones: list[tuple[int, str | None]] = []
        self.cannot_spawn = False
        self.worker = Worker(
            CONFIG,
            on_done=self._done,
            on_prepared=lambda *shape_and_error: self.said.append(("prepared", *shape_and_error)),
            on_up=lambda hello: self.said.append(("up", hello)),
            on_down=self._down,
            clock=self.loop.time,
            limits=limits,
            spawn=self._spawn,
        )

    def _spawn(self, *args: Any, **kwargs: Any) -> FakeProcess:
        if self.cannot_spawn:
            raise OSError("too many processes")
        self.processes.append(FakeProcess(*args, **kwargs))
        return self.processes[-1]

    def _done(self, done: Done, reason: str | None) -> None:
        assert (done.error is None) == (reason is None)
        assert reason in (None, ENGINE_ERROR) or not self.worker.ready, "a lost worker takes no new batch"
        self.dones.append((done.id, reason))

    def _down(self, reason: str) -> None:
        assert not self.worker.ready
        assert self.worker.outstanding == 0, "all batches have been answered before"
        self.said.append(("down", reason))

    @property
    def process(self) -> FakeProcess:
        return self.processes[-1]

    def up(self) -> FakeProcess:
        self.worker.start()
        self.process.say(HELLO)
        return self.process

    def infer(self, number: int, shape: tuple[int, int] = WARM, size: int = 1) -> None:
        self.worker.infer(Infer(number, *shape, [Frame(1, 0, 640, 384, 0.25, 0.7)] * size))

    def answer(self, number: int, took: float = 0.02, **fields: Any) -> None:
        now = self.loop.time()
        self.process.say(Done(number, now - took, now, now, [], **fields))

    def downs(self) -> list[str]:
        return [what[1] for what in self.said if what[0] == "down"]

    async def until_spawned(self, count: int) -> float:
        """Time that passes until so many processes have been started."""
        began = self.loop.time()
        while len(self.processes) < count:
            await asyncio.sleep(0.01)
            assert self.loop.time() - began < 1000
        return self.loop.time() - began


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create("test", 2, 4096)
    yield made
    made.close()


def test_it_is_ready_from_hello_on() -> None:
    async def test() -> None:
        house = House()
        house.worker.start()
        assert (house.worker.ready, house.worker.reason) == (False, "the engine is starting")
        house.process.say(HELLO)
        assert (house.worker.ready, house.worker.reason) == (True, "ready")
        assert house.said == [("up", HELLO)]

    run(test)


def test_a_change_of_mode_is_another_up_with_another_parallel() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.infer(1)
        house.process.say(Mode("throughput", 2))
        house.answer(1)
        assert house.said == [("up", HELLO), ("up", msgspec.structs.replace(HELLO, parallel=2))]
        assert house.dones == [(1, None)]
        assert house.process.got == [Infer(1, *WARM, [Frame(1, 0, 640, 384, 0.25, 0.7)])], "nothing is told twice"

    run(test)


def test_a_batch_is_answered_once() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.infer(1)
        house.infer(2)
        assert house.worker.outstanding == 2
        house.answer(1)
        house.answer(2, error="broken", engine_failed=True)
        assert house.dones == [(1, None), (2, ENGINE_ERROR)]
        assert house.worker.outstanding == 0

    run(test)


def test_a_batch_for_a_worker_that_is_not_there_fails_but_not_within_the_call() -> None:
    async def test() -> None:
        house = House()
        house.worker.start()
        house.infer(1)
        assert house.dones == []
        await asyncio.sleep(0)
        assert house.dones == [(1, WORKER_LOST)]

    run(test)


def test_a_lost_process_fails_its_batches_and_is_replaced() -> None:
    async def test() -> None:
        house = House()
        process = house.up()
        house.infer(1)
        house.infer(2)
        process.die("killed by signal 9")
        assert house.dones == [(1, WORKER_LOST), (2, WORKER_LOST)]
        assert house.downs() == ["worker_lost: the inference worker's process ended: killed by signal 9"]
        assert house.worker.reason == house.downs()[0]
        assert process.killed
        assert await house.until_spawned(2) == pytest.approx(LIMITS.backoff_initial, abs=0.02)
        house.process.say(HELLO)
        assert house.worker.ready

    run(test)


def test_restarts_back_off_until_a_batch_has_succeeded() -> None:
    async def test() -> None:
        house = House()
        house.worker.start()
        waits = []
        for life in range(1, 8):
            house.process.say(HELLO)  # it starts, but dies at the first batch
            house.infer(life)
            house.process.die("killed by signal 11")
            waits.append(round(await house.until_spawned(life + 1)))
        assert waits == [1, 2, 4, 8, 16, 30, 30]
        house.process.say(HELLO)
        house.infer(100)
        house.answer(100)
        house.process.die("killed by signal 11")
        assert round(await house.until_spawned(9)) == 1

    run(test)


def test_a_batch_that_is_overdue_is_a_hang() -> None:
    async def test() -> None:
        house = House()
        process = house.up()
        house.infer(1)
        house.answer(1)
        house.infer(2)
        began = house.loop.time()
        await house.until_spawned(2)
        assert house.dones == [(1, None), (2, HUNG)]
        assert house.downs()[0].startswith("hung: the engine has not answered batch 2")
        assert process.killed
        waited = house.loop.time() - began - LIMITS.backoff_initial
        assert LIMITS.hang <= waited <= LIMITS.hang + LIMITS.watch + 0.1

    run(test)


def test_patience_follows_the_usual_time_of_the_shape_and_size() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.infer(1, size=4)
        house.answer(1, took=2.0)
        house.infer(2, size=4)
        await asyncio.sleep(39)
        assert house.worker.ready
        await asyncio.sleep(2)
        assert house.dones[-1] == (2, HUNG)

    run(test)


def test_the_first_batch_of_a_size_may_take_long() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.infer(1)
        await asyncio.sleep(LIMITS.first - 1)
        assert house.worker.ready
        await asyncio.sleep(2)
        assert house.dones == [(1, HUNG)]

    run(test)


def test_an_answer_that_waits_in_the_socket_counts() -> None:
    """The server itself was held up (a paused machine): the worker is not to blame."""

    async def test() -> None:
        house = House()
        process = house.up()
        house.infer(1)
        process.late.append(Done(1, 0.0, 0.0, 0.0, []))
        await asyncio.sleep(LIMITS.first + 2)
        assert house.dones == [(1, None)]
        assert house.downs() == []

    run(test)


def test_a_start_that_takes_too_long_is_a_hang() -> None:
    async def test() -> None:
        house = House()
        house.worker.start()
        await asyncio.sleep(LIMITS.start + 1)
        assert house.downs() == ["hung: the worker did not start within 120 s"]
        await house.until_spawned(2)

    run(test)


def test_an_engine_that_cannot_start_is_tried_again_slowly() -> None:
    async def test() -> None:
        house = House()
        house.worker.start()
        house.process.say(Failed("no bundle in /nowhere"))
        assert house.downs() == ["the engine cannot be started: no bundle in /nowhere"]
        assert await house.until_spawned(2) == pytest.approx(LIMITS.backoff_max, abs=0.02)

    run(test)


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    async def test() -> None:
        house = House()
        house.cannot_spawn = True
        house.worker.start()
        assert house.downs() == ["the worker's process cannot be started: too many processes"]
        house.cannot_spawn = False
        assert await house.until_spawned(1) == pytest.approx(1, abs=0.02)
        house.process.say(HELLO)
        assert house.worker.ready

    run(test)


def test_an_engine_that_keeps_failing_is_replaced() -> None:
    async def test() -> None:
        house = House()
        house.up()
        for number in range(1, 8):
            house.infer(number)
            house.answer(number, error="x", engine_failed=number not in (3, 4))
            if number == 3:
                house.infer(100)
                house.answer(100)
        assert house.downs() == ["engine_error: 3 batches failed in a row, the last: x"]
        assert {reason for _, reason in house.dones} == {ENGINE_ERROR, None}

    run(test)


def test_wrong_requests_do_not_count_as_failures_of_the_engine() -> None:
    async def test() -> None:
        house = House()
        house.up()
        for number in range(10):
            house.infer(number)
            house.answer(number, error="there is no arena 3")
        assert house.downs() == []

    run(test)


def test_an_answer_to_nothing_costs_the_process_its_life() -> None:
    async def test() -> None:
        house = House()
        process = house.up()
        house.answer(77)
        assert process.killed
        assert "batch 77" in house.downs()[0]
        assert house.dones == []

    run(test)


def test_a_new_process_is_told_of_arenas_and_shapes(arena: Arena) -> None:
    async def test() -> None:
        house = House()
        house.worker.start()
        house.worker.attach(1, arena)
        house.worker.attach(2, arena)
        house.worker.prepare(*OTHER)
        house.worker.prepare(*WARM)
        assert house.process.got == []
        first = house.process
        first.say(HELLO)
        assert first.got == [AttachArena(1, 2, 4096), AttachArena(2, 2, 4096), Prepare(*OTHER)]
        assert first.fds == [arena.fd, arena.fd, None]
        await asyncio.sleep(0)
        assert house.said == [("up", HELLO), ("prepared", *WARM, None)]
        house.worker.detach(1)
        house.worker.detach(1)
        assert first.got[3:] == [DetachArena(1)]
        first.die("exit status 1")
        await house.until_spawned(2)
        house.process.say(HELLO)
        assert house.process.got == [AttachArena(2, 2, 4096), Prepare(*OTHER)]

    run(test)


def test_a_shape_is_prepared_once() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.worker.prepare(*OTHER)
        house.worker.prepare(*OTHER)
        assert house.process.got == [Prepare(*OTHER)]
        house.process.say(Prepared(*OTHER, 1.0))
        house.worker.prepare(*OTHER)
        await asyncio.sleep(0)
        assert house.process.got == [Prepare(*OTHER)]
        assert house.said[1:] == [("prepared", *OTHER, None)] * 2

    run(test)


def test_a_shape_that_failed_is_tried_again_but_not_at_once() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.worker.prepare(*OTHER)
        house.process.say(Prepared(*OTHER, 1.0, "no memory"))
        assert house.said[-1] == ("prepared", *OTHER, "no memory")
        for _ in range(20):  # a camera goes on sending
            house.worker.prepare(*OTHER)
            await asyncio.sleep(0.1)
        assert house.process.got == [Prepare(*OTHER)]
        await asyncio.sleep(LIMITS.shape_retry)
        assert house.process.got == [Prepare(*OTHER)] * 2

    run(test)


def test_a_shape_that_is_never_ready_is_a_hang() -> None:
    async def test() -> None:
        house = House()
        house.up()
        house.worker.prepare(*OTHER)
        await asyncio.sleep(LIMITS.prepare + 1)
        assert house.downs() == ["hung: shape 640x640 was not prepared within 120 s"]

    run(test)


def test_shapes_are_prepared_one_after_the_other_each_in_its_own_time() -> None:
    async def test() -> None:
        house = House()
        house.up()
        third = (480, 640)
        house.worker.prepare(*OTHER)
        house.worker.prepare(*third)
        await asyncio.sleep(LIMITS.prepare - 1)
        house.process.say(Prepared(*OTHER, LIMITS.prepare - 1))
        await asyncio.sleep(LIMITS.prepare - 1)
        assert house.downs() == []
        await asyncio.sleep(2)
        assert house.downs() == ["hung: shape 640x480 was not prepared within 120 s"]

    run(test)


def test_stop_answers_what_is_out_and_starts_nothing_more() -> None:
    async def test() -> None:
        house = House()
        process = house.up()
        house.infer(1)
        await house.worker.stop()
        assert process.got[-1] == protocol.Stop()
        assert process.killed
        assert house.dones == [(1, STOPPED)]
        assert not house.worker.ready
        await asyncio.sleep(100)
        assert len(house.processes) == 1
        assert house.downs() == []

    run(test)


def test_stop_while_waiting_for_a_restart() -> None:
    async def test() -> None:
        house = House()
        house.up().die("exit status 1")
        await house.worker.stop()
        await asyncio.sleep(100)
        assert len(house.processes) == 1

    run(test)
