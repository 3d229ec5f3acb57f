"""A real worker process with a fake engine: killed, stopped, crashed, hung, orphaned. It comes back, nothing leaks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvloop

from server.inference.client import ENGINE_ERROR, HUNG, WORKER_LOST, Limits, Worker
from server.inference.config import WorkerConfig
from server.inference.protocol import DETECTION_COLUMNS, Done, Frame, Hello, Infer
from server.shm import Arena, slot_bytes
from server.testing.engines import BOX, FACTORY, Behaviour, fake_bundle, mark

pytestmark = pytest.mark.system

HEIGHT, WIDTH = 384, 640
PATIENT = Limits(watch=0.05, backoff_initial=0.05, backoff_max=0.2)
QUICK = Limits(hang=1.0, first=1.0, watch=0.05, backoff_initial=0.05, backoff_max=0.2)
"""Where a hang is what the test waits for: long enough for a machine that is busy with other tests."""


class House:
    """A worker, one arena, and what the worker said."""

    def __init__(self, limits: Limits = PATIENT, **settings: object) -> None:
        self.arena = Arena.create("house", 8, slot_bytes(640))
        self.dones: dict[int, tuple[Done, str | None]] = {}
        self.ups: list[Hello] = []
        self.downs: list[str] = []
        self.prepared: list[tuple[int, int, str | None]] = []
        self.trouble: list[dict[str, Any]] = []
        self.changed = asyncio.Event()
        self.worker = Worker(
            WorkerConfig(bundle=fake_bundle(**settings), engine_factory=FACTORY),
            on_done=self._done,
            on_prepared=lambda *what: self._note(self.prepared, what),
            on_up=lambda hello: self._note(self.ups, hello),
            on_down=lambda reason: self._note(self.downs, reason),
            limits=limits,
        )

    async def __aenter__(self) -> House:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.trouble.append(context))
        self.worker.start()
        self.worker.attach(1, self.arena)
        await self.until(lambda: self.worker.ready)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.stop()
        self.arena.close()
        assert self.trouble == [], "exceptions in callbacks"

    def _done(self, done: Done, reason: str | None) -> None:
        assert done.id not in self.dones, "answered twice"
        self.dones[done.id] = (done, reason)
        self.changed.set()

    def _note(self, where: list[Any], what: Any) -> None:
        where.append(what)
        self.changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.changed.wait()
                self.changed.clear()

    def send(self, number: int, slot: int = 0, size: int = 1) -> None:
        frames = [Frame(1, slot, WIDTH, HEIGHT, 0.25, 0.7)] * size
        self.worker.infer(Infer(number, HEIGHT, WIDTH, frames))

    async def infer(self, number: int, slot: int = 0, size: int = 1) -> tuple[Done, str | None]:
        self.send(number, slot, size)
        await self.until(lambda: number in self.dones)
        return self.dones[number]

    def mark(self, behaviour: Behaviour = Behaviour.DETECT, class_id: int = 0, slot: int = 0) -> None:
        mark(self.arena.image(slot, HEIGHT, WIDTH), behaviour, class_id)

    async def still_works(self, number: int) -> None:
        self.mark(class_id=3)
        await self.until(lambda: self.worker.ready)
        done, reason = await self.infer(number)
        assert reason is None, done.error
        (found,) = np.frombuffer(done.detections[0], np.float32).reshape(-1, DETECTION_COLUMNS)
        np.testing.assert_allclose(found, [*BOX, 1.0, 3.0])


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_dead(pid: int | None) -> None:
    async with asyncio.timeout(20):
        while alive(pid):  # noqa: ASYNC110  another process's end is no event of this loop
            await asyncio.sleep(0.01)


Test = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    def runs(test: Test) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(test())

    return runs


def test_pixels_in_detections_out(run: Callable[[Test], None]) -> None:
    async def test() -> None:
        async with House() as house:
            await house.still_works(1)
            house.mark(Behaviour.CROWD, slot=1)
            done, _ = await house.infer(2, slot=1, size=8)
            assert [len(found) for found in done.detections] == [300 * DETECTION_COLUMNS * 4] * 8
            house.worker.prepare(640, 640)
            await house.until(lambda: bool(house.prepared))
            assert house.prepared == [(640, 640, None)]
            pid = house.worker.pid
        assert not alive(pid)
        assert house.downs == []

    run(test)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_is_killed_or_stopped_under_load_comes_back(
    run: Callable[[Test], None], how: signal.Signals
) -> None:
    async def test() -> None:
        async with House(QUICK, seconds=0.05) as house:
            await house.still_works(1)
            house.worker.prepare(640, 640)
            await house.until(lambda: bool(house.prepared))
            pid = house.worker.pid
            assert pid is not None
            for number in (2, 3):
                house.send(number)
            os.kill(pid, how)
            await house.until(lambda: {2, 3} <= house.dones.keys())
            code = WORKER_LOST if how is signal.SIGKILL else HUNG
            assert [house.dones[number][1] for number in (2, 3)] == [code] * 2
            assert house.downs[0].startswith(code)
            await house.still_works(4)
            await house.until(lambda: len(house.prepared) == 2)
            assert house.worker.pid != pid
            await until_dead(pid)

    run(test)


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [(Behaviour.HANG, HUNG), (Behaviour.CRASH, WORKER_LOST)],
    ids=["hangs", "crashes"],
)
def test_an_engine_that_hangs_or_crashes_comes_back(
    run: Callable[[Test], None], behaviour: Behaviour, code: str
) -> None:
    async def test() -> None:
        async with House(QUICK) as house:
            await house.still_works(1)
            pid = house.worker.pid
            house.mark(behaviour)
            done, reason = await house.infer(2)
            assert (reason, done.detections) == (code, [])
            if behaviour is Behaviour.CRASH:
                assert "killed by signal 11" in house.downs[0]
            await house.still_works(3)
            await until_dead(pid)

    run(test)


@pytest.mark.parametrize("behaviour", [Behaviour.RAISE, Behaviour.NAN], ids=["raises", "nan"])
def test_an_engine_that_fails_answers_and_is_replaced_if_it_keeps_failing(
    run: Callable[[Test], None], behaviour: Behaviour
) -> None:
    async def test() -> None:
        async with House() as house:
            house.mark(behaviour)
            for number in (1, 2):
                assert (await house.infer(number))[1] == ENGINE_ERROR
            await house.still_works(3)
            assert house.downs == []
            house.mark(behaviour)
            for number in (4, 5, 6):
                assert (await house.infer(number))[1] == ENGINE_ERROR
            await house.until(lambda: bool(house.downs))
            assert house.downs[0].startswith("engine_error: 3 batches failed in a row")
            await house.still_works(7)

    run(test)


def test_an_engine_that_cannot_start_or_hangs_at_the_start_comes_once_it_can(tmp_path: Path) -> None:
    async def test() -> None:
        broken, hanging = tmp_path / "broken", tmp_path / "hanging"
        broken.touch()
        house = House(Limits(start=1.5, watch=0.05, backoff_initial=0.05, backoff_max=0.1),
                      fails_while=str(broken), hangs_while=str(hanging))  # fmt: skip
        house.worker.start()
        house.worker.attach(1, house.arena)
        await house.until(lambda: bool(house.downs))
        assert house.downs[0] == "the engine cannot be started: the fake engine was told not to start"
        hanging.touch()
        await house.until(lambda: any("did not start" in reason for reason in house.downs))
        hanging.unlink()
        broken.unlink()
        await house.still_works(1)
        await house.worker.stop()
        house.arena.close()

    asyncio.run(test())


def test_nothing_leaks_over_restarts() -> None:
    async def test() -> None:
        me = psutil.Process()
        async with House() as house:
            await house.still_works(1)
            before = me.num_fds()
            for life in range(2, 8):
                pid = house.worker.pid
                assert pid is not None
                house.send(100 + life)
                os.kill(pid, signal.SIGKILL)
                await house.until(lambda: len(house.downs) == life - 1)  # noqa: B023
                await house.still_works(life)
                await until_dead(pid)
            assert me.num_fds() == before
            assert [child.pid for child in me.children()] == [house.worker.pid], "no zombies"
        assert me.children() == []

    asyncio.run(test())


def test_what_the_socket_does_not_take_goes_later_in_order_descriptors_included() -> None:
    async def test() -> None:
        async with House() as house:
            pid = house.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            bulky = Frame(99, 0, WIDTH, HEIGHT, 0.25, 0.7, bytes(200_000))
            for number in range(100):
                house.worker.infer(Infer(number, HEIGHT, WIDTH, [bulky]))
            late = Arena.create("late", 1, slot_bytes(640))
            house.worker.attach(2, late)
            late.close()  # the message that waits has a descriptor of its own
            os.kill(pid, signal.SIGCONT)
            house.worker.infer(Infer(100, HEIGHT, WIDTH, [Frame(2, 0, WIDTH, HEIGHT, 0.0, 0.7)]))
            await house.until(lambda: len(house.dones) == 101)
            assert {done.error for done, _ in list(house.dones.values())[:100]} == {"there is no arena 99"}
            assert house.dones[100][1] is None
            house.worker.detach(2)

    asyncio.run(test())


def test_a_start_does_not_hold_up_the_loop() -> None:
    async def test() -> None:
        began = time.monotonic()
        house = House()
        made = time.monotonic()
        house.worker.start()
        assert time.monotonic() - made < 0.1
        assert made - began < 0.1
        await house.until(lambda: house.worker.ready)
        await house.worker.stop()
        house.arena.close()

    asyncio.run(test())


def test_signals_of_the_terminal_and_the_service_manager_leave_it_alone() -> None:
    async def test() -> None:
        async with House() as house:
            pid = house.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            await house.still_works(1)
            assert house.worker.pid == pid
            assert house.downs == []

    asyncio.run(test())


_SERVER = """
import asyncio
from server.inference.client import Worker
from server.inference.config import WorkerConfig
from server.testing.engines import FACTORY, fake_bundle

async def main():
    nothing = lambda *_: None
    worker = Worker(WorkerConfig(bundle=fake_bundle(), engine_factory=FACTORY), on_done=nothing, on_prepared=nothing,
                    on_up=lambda hello: print(worker.pid, flush=True), on_down=nothing)
    worker.start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_the_end_of_the_server_is_its_end(stopped: bool) -> None:
    """Even kill -9 of the server, and even if the worker is stopped and sees nothing of it."""
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
    asyncio.run(until_dead(pid))


def test_the_worker_imports_no_more_than_it_needs() -> None:
    """It must be small: it starts anew after every loss, and knows nothing of cameras, HTTP or PyTorch."""
    code = "import sys, server.inference.worker; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in modules
    assert not {"torch", "openvino", "onnxruntime", "av", "fastapi", "pydantic", "prometheus_client"} & set(modules)
