"""Camera processes for real: exact counts, kill -9, SIGSTOP, lost nursery, restarts without leaks, RTSP, dry runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from PIL import Image

from server.ingest import supervisor as supervisor_module
from server.ingest.spawn import nursery
from server.ingest.supervisor import Camera, probe
from server.ingest.wire import CameraSettings, DropReason, EncodeRequest, Event, EventKind, StateChange
from server.ledger import Ledger
from server.testing.camera import Camera as RtspCamera
from server.testing.camera import Mount
from server.testing.synthetic import make_clip, read_counter
from yolov9.geometry import Letterbox

pytestmark = pytest.mark.system

PATIENCE_S = 30.0
SLOTS = 4


class Watched:
    """A supervised camera. Every record goes through a Ledger, which objects to anything that does not fit."""

    def __init__(self, url: str, *, free: bool = True, **settings: Any) -> None:
        defaults = {"stream": "door", "input_size": 320, "backoff_initial_s": 0.01, "backoff_max_s": 0.02}
        self.settings = CameraSettings(url=url, **(defaults | settings))
        self.free = free
        self.ledger = Ledger()
        self.states: list[StateChange] = []
        self.ready: list[Event] = []
        self.numbers: list[int | None] = []
        self.held: dict[int, Event] = {}
        self.losses = 0
        self.order: list[str] = []
        self.camera = Camera(
            self.settings, slots=SLOTS, on_events=self._events, on_state=self._state, on_lost=self._lost
        )

    def _events(self, events: list[Event]) -> None:
        for event in events:
            self.order.append(event.kind.name)
            match event.kind:
                case EventKind.OPEN:
                    self.ledger.open(event.seq)
                case EventKind.DROP:
                    self.ledger.drop(event.seq, "ingest", DropReason(event.reason).name)
                case EventKind.READY:
                    assert self.ledger.is_open(event.seq)
                    assert event.slot not in {held.slot for held in self.held.values()}, "a slot was given out twice"
                    self.ready.append(event)
                    self.numbers.append(self.number(event))
                    self.held[event.seq] = event
                    if self.free:
                        self.give_back(event)
            assert self.ledger.balanced()

    def _state(self, change: StateChange) -> None:
        self.order.append(change.state)
        self.states.append(change)

    def _lost(self) -> None:
        self.order.append("LOST")
        self.losses += 1
        self.ledger.drop_all("ingest", "process_lost", [s for s in self.ledger.open_seqs() if s not in self.held])

    def give_back(self, event: Event, completed: bool = True) -> None:
        del self.held[event.seq]
        self.ledger.complete(event.seq)
        self.camera.free(event.slot, event.seq, completed)

    def number(self, event: Event) -> int | None:
        """Of the picture in the slot."""
        image = self.camera.arena.image(event.slot, event.input_height, event.input_width)
        box = Letterbox.fit(event.source_width, event.source_height, event.input_width, event.input_height)
        return read_counter(image[box.top : box.top + box.scaled_height, box.left : box.left + box.scaled_width])

    async def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} never happened: {self.ledger.snapshot()} {self.states[-4:]}"
            await asyncio.sleep(0.005)

    async def running(self, restarts: int = 0, frames: int = 1) -> int:
        """Wait until the process after so many restarts has delivered; its pid."""
        await self.until(lambda: self.camera.restarts >= restarts and self.camera.pid is not None, "a process")
        goal = len(self.ready) + frames
        await self.until(lambda: len(self.ready) >= goal, "a frame")
        pid = self.camera.pid
        assert pid is not None
        return pid

    async def stop(self) -> None:
        await self.camera.stop(5.0)
        assert set(self.ledger.open_seqs()) == set(self.held)
        self.camera.arena.close()


@pytest_asyncio.fixture
async def watch() -> AsyncIterator[Callable[..., Watched]]:
    """Makes cameras, and ends what is left of them and of the nursery."""
    made: list[Watched] = []

    def make(url: str | Path, *, start: bool = True, **settings: Any) -> Watched:
        watched = Watched(str(url), **settings)
        made.append(watched)
        if start:
            watched.camera.start(1)
        return watched

    yield make
    for watched in made:
        await watched.camera.stop(3.0)
        watched.camera.arena.close()
    nursery().close()


def clip(**options: Any) -> Path:
    return make_clip(**({"width": 320, "height": 192, "frames": 50, "gop": 10} | options))


def looping(path: Path | None = None) -> dict[str, Any]:
    return {"url": path or clip(), "loop": True}


def proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# Files.


@pytest.mark.parametrize("b_frames", [0, 2])
async def test_a_file_with_every_frame_is_exact(watch: Callable[..., Watched], b_frames: int) -> None:
    watched = watch(clip(b_frames=b_frames), every_frame=True, realtime=False)
    await watched.until(lambda: bool(watched.states) and watched.states[-1].state == "stopped", "the end")
    watched.camera.drain()
    assert watched.states[-1].reason == "ended"
    assert watched.numbers == list(range(50)), "each picture once, in order"
    assert watched.ledger.snapshot() == {"received": 50, "completed": 50, "in_flight": 0, "dropped": {}}
    assert watched.losses == 0
    await watched.stop()
    assert watched.losses == 0, "an orderly end loses nothing"


async def test_the_process_is_lean_and_keeps_its_secrets(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping(), username="user", password="geheim")
    pid = await watched.running()
    maps = proc(pid, "maps")
    for heavy in (b"openvino", b"torch", b"pydantic_core", b"onnxruntime"):
        assert heavy not in maps
    for told in ("cmdline", "environ", "comm"):
        assert b"geheim" not in proc(pid, told)
    assert proc(pid, "comm") == b"cam door\n"
    assert psutil.Process(pid).memory_full_info().uss < 60 << 20


async def test_signals_for_the_whole_group_are_the_servers_affair(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping())
    pid = await watched.running()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
        os.kill(nursery().pid or 0, number)
    assert await watched.running(frames=10) == pid
    await watched.stop()


# Losses.


async def test_kill_9_loses_no_record_and_reuses_no_number(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping())
    for restarts in range(5):
        pid = await watched.running(restarts, frames=4)
        os.kill(pid, signal.SIGKILL)
        await watched.until(lambda restarts=restarts: watched.losses == restarts + 1, "the loss")
    await watched.running(5)
    await watched.stop()
    losses = [state for state in watched.states if state.reason == "process_lost"]
    assert len(losses) == 5
    assert {state.detail for state in losses} == {"ended by SIGKILL"}
    lost = [n for n, kind in enumerate(watched.order) if kind == "LOST"]
    for begin, end in itertools.pairwise([*lost, len(watched.order)]):
        assert watched.order[begin + 1] == "backoff", "on_lost comes after all records and before the state"
        assert watched.order[begin + 2 : end].count("running") == 1, "and the next process after both"
    # The ledger has raised already if a number came twice; that none is missing is more than was promised.
    assert watched.ledger.received == watched.ledger.last_seq


async def test_frames_that_the_server_holds_survive_their_process(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping(), free=False)
    await watched.until(lambda: len(watched.held) == SLOTS)
    kept = {event.slot: watched.number(event) for event in watched.held.values()}
    os.kill(watched.camera.pid or 0, signal.SIGKILL)
    await watched.until(lambda: watched.losses == 1)
    received = watched.ledger.received
    await watched.until(lambda: watched.ledger.received > received + 5, "frames of the next process")
    assert {event.slot: watched.number(event) for event in watched.held.values()} == kept
    watched.give_back(next(iter(watched.held.values())))
    await watched.until(lambda: len(watched.ready) == SLOTS + 1, "a frame in the slot that was given back")
    await watched.stop()


async def test_a_stopped_process_is_noticed_and_replaced(
    watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "SILENCE_S", 1.5)
    watched = watch(**looping())
    pid = await watched.running()
    await asyncio.sleep(1.2)  # until the second heartbeat: from then on silence is short
    os.kill(pid, signal.SIGSTOP)
    await watched.until(lambda: watched.losses == 1, "the loss")
    assert await watched.running(1) != pid
    assert not psutil.pid_exists(pid)
    assert next(s for s in watched.states if s.reason == "process_lost").detail == "no sign of life for 1.5 s"
    await watched.stop()


async def test_a_process_that_does_not_listen_is_replaced(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping())
    pid = await watched.running()
    os.kill(pid, signal.SIGSTOP)
    while watched.camera.pid == pid:
        watched.camera.apply(watched.settings)
        await asyncio.sleep(0)
    await watched.running(1)
    await watched.stop()


async def test_a_closed_control_socket_ends_the_process(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping())
    pid = await watched.running()
    life = watched.camera._life
    assert life is not None
    life.control.close()
    await watched.until(lambda: watched.losses == 1)
    assert not psutil.pid_exists(pid)
    assert await watched.running(1) != pid
    await watched.stop()


async def test_a_hundred_restarts_leave_nothing_behind(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping(clip(width=64, height=64, frames=25)))
    ours, brood = os.getpid(), nursery().pid
    assert brood is None or brood > 0
    await watched.running()
    brood = nursery().pid or 0

    async def kill(restarts: int) -> None:
        pid = await watched.running(restarts)
        os.kill(pid, signal.SIGKILL)
        await watched.until(lambda: watched.losses == restarts + 1)

    await kill(0)
    await watched.running(1)
    before = descriptors(ours), descriptors(brood), threading.active_count(), len(asyncio.all_tasks())
    for restarts in range(1, 101):
        await kill(restarts)
    await watched.running(101)
    assert (descriptors(ours), descriptors(brood), threading.active_count(), len(asyncio.all_tasks())) == before
    children = psutil.Process(ours).children(recursive=True)
    assert [child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
    assert {child.pid for child in children} >= {brood, watched.camera.pid}
    await watched.stop()


async def test_a_lost_nursery_costs_no_camera(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping())
    pid = await watched.running()
    os.kill(nursery().pid or 0, signal.SIGKILL)
    assert await watched.running(frames=10) == pid, "the camera lives on"
    other = watch(**looping(), stream="gate")
    await other.running()
    os.kill(pid, signal.SIGKILL)
    await watched.running(1)
    await watched.stop()
    await other.stop()


async def test_a_nursery_that_dies_at_once_is_tried_again(
    watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("server.ingest.spawn._BOOT", "raise SystemExit(1)")
        watched = watch(**looping())
        await watched.until(lambda: watched.losses >= 2)
        assert watched.states[-1].reason == "process_lost"
    await watched.running()
    await watched.stop()


def test_nothing_survives_the_server(tmp_path: Path) -> None:
    script = tmp_path / "some_server.py"
    script.write_text(
        f"""
import asyncio, os
from server.ingest.spawn import nursery
from server.ingest.supervisor import Camera
from server.ingest.wire import CameraSettings
async def main():
    settings = CameraSettings(stream="t", url={str(clip())!r}, loop=True)
    seen = asyncio.Event()
    camera = Camera(settings, slots=2, on_events=lambda e: seen.set(), on_state=print, on_lost=lambda: None)
    camera.start(1)
    await seen.wait()
    print("PIDS", nursery().pid, camera.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
raise SystemExit("the main module must not be run again")
"""
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    pids = [int(word) for word in ran.stdout.split("PIDS")[1].split()]
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, f"{pids} live on"
        time.sleep(0.02)


# Stopping.


async def test_stop_is_orderly_and_may_be_called_again(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping(), free=False)
    await watched.until(lambda: len(watched.held) == SLOTS)
    begun = time.monotonic()
    await watched.stop()
    assert time.monotonic() - begun < 2.5
    assert watched.losses == 0
    assert watched.ledger.in_flight == SLOTS
    await watched.camera.stop(1.0)
    for event in list(watched.held.values()):
        watched.give_back(event)
    watched.camera.drain()
    watched.camera.apply(watched.settings)
    with pytest.raises(ConnectionError):
        await watched.camera.encode(EncodeRequest(id=1))
    assert watched.camera.pid is None


async def test_stop_kills_what_does_not_listen(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping())
    os.kill(await watched.running(), signal.SIGSTOP)
    await watched.camera.stop(0.3)
    assert watched.losses == 1
    assert watched.ledger.in_flight == 0


async def test_stop_before_and_between_processes(watch: Callable[..., Watched]) -> None:
    early = watch(**looping())
    await early.stop()
    never = watch(**looping(), start=False)
    await never.stop()
    between = watch(**looping(), backoff_initial_s=60.0, backoff_max_s=60.0)
    os.kill(await between.running(), signal.SIGKILL)
    await between.until(lambda: between.losses == 1)
    begun = time.monotonic()
    await between.stop()
    assert time.monotonic() - begun < 1


# Requests.


async def test_snapshots_settings_and_drain(watch: Callable[..., Watched]) -> None:
    watched = watch(**looping(), max_fps=2.0)
    await watched.running()
    jpeg = await watched.camera.encode(EncodeRequest(id=1))
    assert Image.open(io.BytesIO(jpeg)).size == (320, 192)
    assert await watched.camera.encode(EncodeRequest(id=2, seq=10**9)) == b""
    watched.settings = CameraSettings(stream="door", url=watched.settings.url, loop=True, input_size=320)

    def limited() -> int:
        return watched.ledger.dropped.get(("ingest", "RATE_LIMIT"), 0)

    await watched.until(lambda: limited() > 0)
    before = limited()
    watched.camera.apply(watched.settings)
    ready = len(watched.ready)
    await watched.until(lambda: len(watched.ready) >= ready + 10)
    assert limited() <= before + 5
    for _ in range(200):
        watched.camera.drain()
        assert watched.ledger.balanced()
        await asyncio.sleep(0.001)
    os.kill(watched.camera.pid or 0, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await watched.camera.encode(EncodeRequest(id=3))
    os.kill(watched.camera.pid or 0, signal.SIGKILL)
    with contextlib.suppress(ConnectionError):
        await watched.camera.encode(EncodeRequest(id=4))
    await watched.stop()


async def test_a_dry_run_says_what_it_is() -> None:
    found = await probe(CameraSettings(stream="p", url=str(clip(codec="hevc"))), 20)
    assert (found.ok, found.codec, found.width, found.height) == (True, "hevc", 320, 192)
    assert found.fps == pytest.approx(25)
    missing = await probe(CameraSettings(stream="p", url="/no/such.mp4"), 20)
    assert (missing.ok, missing.reason) == (False, "not_found")
    assert missing.detail
    nursery().close()


# RTSP.


@pytest.mark.parametrize(
    ("client", "transport", "codec"),
    [("native", "tcp", "h264"), ("native", "udp", "hevc"), ("libav", "tcp", "hevc"), ("libav", "udp", "h264")],
)
async def test_an_rtsp_camera_is_received_whole(
    watch: Callable[..., Watched], client: str, transport: str, codec: str
) -> None:
    mount = Mount(clip(codec=codec), start_at_keyframe=True)
    with RtspCamera({"/d": mount}, username="u", password="p@:/w") as rtsp:
        watched = watch(
            rtsp.url("/d", credentials=False), username="u", password="p@:/w", transport=transport, rtsp_client=client
        )
        await watched.running(frames=40)
        steps = [(b - a) % 50 for a, b in itertools.pairwise(n for n in watched.numbers if n is not None)]
        dropped = watched.ledger.snapshot()["dropped"].get("ingest", {})
        # libavformat hands out what came while it opened in one go: more than there are slots, perhaps.
        assert sum(step - 1 for step in steps) == dropped.pop("NO_SLOT", 0)
        assert set(dropped) <= {"AWAITING_KEYFRAME"}
        assert watched.states[-1].client == client
        assert watched.states[-1].transport == transport
        held_back = statistics.median(event.arrival_uncertainty_s for event in watched.ready)
        assert held_back == pytest.approx(0.0 if client == "native" else 0.04, abs=0.01)
        found = await probe(watched.settings, 10)
        assert (found.ok, found.codec, found.width, found.height) == (True, codec, 320, 192)
        await watched.stop()


@pytest.mark.parametrize("client", ["native", "libav"])
async def test_udp_is_taken_where_tcp_is_refused(watch: Callable[..., Watched], client: str) -> None:
    with RtspCamera({"/d": Mount(clip(), transports=("udp",))}) as rtsp:
        watched = watch(rtsp.url("/d"), transport="auto", rtsp_client=client)
        await watched.running()
        assert watched.states[-1].transport == "udp"
        assert "backoff" not in [state.state for state in watched.states]
        await watched.stop()


@pytest.mark.parametrize("client", ["native", "libav"])
async def test_an_rtsp_camera_that_misbehaves(watch: Callable[..., Watched], client: str) -> None:
    """Wrong password, FIN, stall, refusal: a reason for each, and back by itself; numbers go on."""
    with RtspCamera({"/d": Mount(clip())}, username="u", password="secret") as rtsp:
        url = rtsp.url("/d", credentials=False)
        watched = watch(url, username="u", password="wrong", rtsp_client=client, read_timeout_s=1.0)
        await watched.until(lambda: watched.states[-1:] != [] and watched.states[-1].reason == "auth", "auth")
        watched.settings = CameraSettings(
            stream="door", url=url, username="u", password="secret", rtsp_client=client, read_timeout_s=1.0,
            input_size=320, backoff_initial_s=0.05, backoff_max_s=0.1,
        )  # fmt: skip
        watched.camera.apply(watched.settings)
        await watched.running()
        rtsp.kill("/d")
        await watched.until(lambda: any(s.reason == "ended" for s in watched.states), "ended")
        await watched.running()
        rtsp.faults("/d").stalled = True
        await watched.until(lambda: any(s.reason == "stalled" for s in watched.states), "stalled")
        rtsp.faults("/d").stalled = False
        await watched.running()
        rtsp.stop()
        await watched.until(lambda: any(s.reason == "refused" for s in watched.states), "refused")
        rtsp.start()
        await watched.running()
        assert watched.losses == 0, "all of it is the process's own affair"
        assert "secret" not in repr(watched.states)
        await watched.stop()


async def test_packet_loss_never_shows_a_torn_picture(watch: Callable[..., Watched]) -> None:
    """Numbers are read from the picture's top: torn ones would show as unreadable or out of order."""
    mount = Mount(clip(frames=100, quality=18))
    with RtspCamera({"/d": mount}) as rtsp:
        watched = watch(rtsp.url("/d"), transport="udp")
        await watched.running()
        rtsp.faults("/d").loss = 0.01
        await watched.until(lambda: len(watched.ready) >= 60)
        rtsp.faults("/d").loss = 0.0
        await watched.running(frames=15)
        await watched.stop()
        dropped = watched.ledger.snapshot()["dropped"]["ingest"]
        assert dropped["DAMAGED"] > 0
        assert dropped["AWAITING_KEYFRAME"] > 0
        assert None not in watched.numbers
        steps = [(b - a) % 100 for a, b in itertools.pairwise(watched.numbers)]  # type: ignore[operator]
        assert all(0 < step < 40 for step in steps)
