"""The dispatcher with a worker and a loop of our own making: every offered frame comes back exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.batching.dispatcher import Dispatcher, Outcome
from server.batching.line import Line
from server.batching.scheduler import Policy, Scheduler, Waiting
from server.inference.protocol import Done, Frame, Hello, Infer
from server.models.model import Model

SHAPE = (384, 640)


class Timer:
    def __init__(self, at: float, call: Any) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """Virtual time, a loop that only knows call_later, and a worker that answers when told to."""

    in_order = True

    def __init__(self, *, max_batch: int = 1, parallel: int = 1) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self.ready = True
        self.sent: list[Infer] = []
        self.asked: list[tuple[int, int]] = []
        self.done_frames: list[tuple[int, Outcome]] = []
        self.dropped_frames: list[tuple[int, str]] = []
        self.line = Line(Model("tiny", 1, {0: "person"}, 640))
        self.line.worker = self
        self.dispatcher = Dispatcher(Scheduler(), self.line, clock=lambda: self.now, loop=self)  # type: ignore[arg-type]
        self.dispatcher.configure("door", Policy(max_staleness_s=0.5))
        self.dispatcher.configure("file", Policy(max_staleness_s=float("inf"), fifo=True))
        self.dispatcher.on_up(self.line, Hello("fake", "fp32", "none", "test", parallel, max_batch, *SHAPE))

    def call_later(self, delay: float, call: Any) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(10_000):
            due = [t for t in self.timers if not t.cancelled and t.at <= end]
            if not due:
                self.now = end
                return
            timer = min(due, key=lambda t: t.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.call()
        raise AssertionError("the timers never come to rest")

    def prepare(self, height: int, width: int) -> None:
        self.asked.append((height, width))

    def infer(self, request: Infer) -> None:
        self.sent.append(request)

    def frame(self, waiting: Waiting, model: Model) -> Frame:
        return Frame(model.generation, waiting.seq % 6, 1280, 720, 0.25, 0.7)

    def done(self, frame: Waiting, outcome: Outcome) -> None:
        self.done_frames.append((frame.seq, outcome))

    def dropped(self, frame: Waiting, reason: str) -> None:
        self.dropped_frames.append((frame.seq, reason))

    def offer(self, seq: int, stream: str = "door", shape: tuple[int, int] = SHAPE) -> None:
        self.dispatcher.offer(Waiting(stream, seq, shape, self.now, self.now, self))
        self.dispatcher.pump()

    def answer(self, index: int, took: float = 0.02, error: str | None = None, reason: str | None = None) -> None:
        request = self.sent[index]
        found = [] if error else [b""] * len(request.frames)
        self.dispatcher.on_done(self.line, Done(request.id, self.now - took, self.now, self.now, found, error), reason)


def test_the_engine_gets_the_first_frame_at_once_and_the_newest_of_those_that_came_meanwhile() -> None:
    world = World()
    for seq in (1, 2, 3):
        world.offer(seq)
    assert [frame.slot for request in world.sent for frame in request.frames] == [1]
    assert world.dropped_frames == [(2, "replaced")]
    world.advance(0.02)
    world.answer(0)
    assert [frame.slot for request in world.sent for frame in request.frames] == [1, 3]
    assert [seq for seq, _ in world.done_frames] == [1]


def test_the_next_batch_goes_out_before_the_running_one_has_ended_and_is_not_replaced_any_more() -> None:
    world = World()
    world.offer(1)
    world.advance(0.02)
    world.answer(0)
    world.offer(2)
    world.offer(3)
    world.advance(0.017)
    assert len(world.sent) == 2
    world.advance(0.0015)  # within the lead before the expected end
    assert len(world.sent) == 3


def test_a_shape_is_asked_for_once_and_its_frames_wait_until_it_is_ready() -> None:
    world = World()
    world.offer(1, shape=(640, 640))
    world.offer(2, shape=(640, 640))
    assert world.asked == [(640, 640)]
    assert world.sent == []
    world.dispatcher.on_prepared(world.line, 640, 640, None)
    assert len(world.sent) == 1


def test_a_failed_preparation_is_tried_again_with_the_next_frame() -> None:
    world = World()
    world.offer(1, shape=(640, 640))
    world.dispatcher.on_prepared(world.line, 640, 640, "no memory")
    world.offer(2, shape=(640, 640))
    assert world.asked == [(640, 640), (640, 640)]


def test_while_the_worker_is_down_live_frames_become_stale_by_the_clock_alone_and_files_wait() -> None:
    world = World()
    world.ready = False
    world.offer(1)
    world.offer(2, stream="file")
    world.advance(0.6)
    assert world.dropped_frames == [(1, "stale")]
    assert world.dispatcher.waiting == 1
    world.ready = True
    world.dispatcher.on_up(world.line, Hello("fake", "fp32", "none", "test", 1, 1, *SHAPE))
    assert len(world.sent) == 1


def test_a_failed_batch_reaches_its_owner_with_its_reason_and_is_never_an_empty_answer() -> None:
    world = World()
    world.offer(1)
    world.answer(0, error="boom")
    ((seq, outcome),) = world.done_frames
    assert (seq, outcome.error, outcome.reason, outcome.detections) == (1, "boom", "engine_error", b"")
    assert world.dispatcher.failing_since == world.now
    world.offer(2)
    world.answer(1)
    assert world.dispatcher.failing_since is None


def test_a_lost_worker_gives_its_batches_back_and_prepares_its_shapes_anew() -> None:
    world = World()
    world.offer(1)
    world.answer(0, error="the worker is gone", reason="worker_lost")
    world.ready = False
    world.dispatcher.on_down(world.line)
    assert world.done_frames[0][1].reason == "worker_lost"
    world.offer(2)
    world.ready = True
    world.dispatcher.on_up(world.line, Hello("fake", "fp32", "none", "test", 1, 1, *SHAPE))
    assert [request.frames[0].slot for request in world.sent] == [1, 2]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["door", "file", "answer", "fail", "wait", "remove", "down", "up"]), max_size=60))
def test_every_frame_comes_back_exactly_once_whatever_happens(steps: list[str]) -> None:
    world = World(max_batch=2)
    offered, answered = 0, 0
    for step in steps:
        if step in ("door", "file"):
            offered += 1
            world.dispatcher.configure(step, Policy(fifo=step == "file"))
            world.offer(offered, stream=step)
        elif step in ("answer", "fail") and answered < len(world.sent):
            world.answer(answered, error="boom" if step == "fail" else None)
            answered += 1
        elif step == "wait":
            world.advance(0.3)
        elif step == "remove":
            world.dispatcher.remove("door")
        elif step == "down":
            while answered < len(world.sent):
                world.ready = False
                world.answer(answered, error="gone", reason="worker_lost")
                answered += 1
            world.ready = False
            world.dispatcher.on_down(world.line)
        elif step == "up" and not world.ready:
            world.ready = True
            world.dispatcher.on_up(world.line, Hello("fake", "fp32", "none", "test", 1, 2, *SHAPE))
        back = [seq for seq, _ in world.done_frames] + [seq for seq, _ in world.dropped_frames]
        assert len(back) == len(set(back))
        assert len(back) + world.dispatcher.waiting + world.dispatcher.in_engine == offered
    world.dispatcher.remove("door")
    world.dispatcher.remove("file")
    world.ready = False
    while answered < len(world.sent):
        world.answer(answered)
        answered += 1
    back = [seq for seq, _ in world.done_frames] + [seq for seq, _ in world.dropped_frames]
    assert sorted(back) == list(range(1, offered + 1))


def test_the_window_and_the_scheduler_agree_on_a_removed_stream_in_the_engine() -> None:
    world = World()
    world.offer(1)
    world.dispatcher.remove("door")
    world.answer(0)
    assert [seq for seq, _ in world.done_frames] == [1]
    with pytest.raises(KeyError):
        world.answer(0)
