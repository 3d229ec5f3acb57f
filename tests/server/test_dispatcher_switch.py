"""Two lines: while one model takes the place of another, every frame comes back once, in order, from the right one."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.batching.dispatcher import Dispatcher, Outcome
from server.batching.line import Line
from server.batching.scheduler import Policy, Scheduler, Waiting
from server.inference.protocol import Done, Frame, Hello, Infer
from server.models.model import Model

SMALL, LARGE = (384, 640), (768, 1280)


class Worker:
    def __init__(self) -> None:
        self.ready = True
        self.sent: list[Infer] = []
        self.asked: list[tuple[int, int]] = []

    def prepare(self, height: int, width: int) -> None:
        self.asked.append((height, width))

    def infer(self, request: Infer) -> None:
        self.sent.append(request)


class Owner:
    in_order = True

    def __init__(self, world: World) -> None:
        self.world = world

    def frame(self, waiting: Waiting, model: Model) -> Frame:
        return Frame(model.generation, 0, 1280, 720, 0.25, 0.7)

    def done(self, frame: Waiting, outcome: Outcome) -> None:
        self.world.answers.append((frame.stream, frame.seq, outcome))

    def dropped(self, frame: Waiting, reason: str) -> None:
        self.world.dropped_frames.append((frame.stream, frame.seq, reason))


class World:
    """Two streams, `door` and `file` (first in, first out), and as many models as are made."""

    def __init__(self, parallel: int = 1) -> None:
        self.now = 100.0
        self.parallel = parallel
        self.offered = 0
        self.answers: list[tuple[str, int, Outcome]] = []
        self.dropped_frames: list[tuple[str, int, str]] = []
        self.lines: list[Line] = []
        self.owners = {"door": Owner(self), "file": Owner(self)}
        first = self.line(640)
        self.dispatcher = Dispatcher(Scheduler(), first, clock=lambda: self.now, loop=self)  # type: ignore[arg-type]
        self.dispatcher.configure("door", Policy(max_staleness_s=float("inf")))
        self.dispatcher.configure("file", Policy(max_staleness_s=float("inf"), fifo=True))

    def line(self, input_size: int) -> Line:
        line = Line(Model(f"m{len(self.lines)}", len(self.lines) + 1, {0: "person"}, input_size))
        line.worker = Worker()
        shape = SMALL if input_size == 640 else LARGE
        line.on_up(Hello("fake", "fp32", "none", "test", self.parallel, 1, *shape))
        self.lines.append(line)
        return line

    def call_later(self, delay: float, call: Any) -> Any:
        class Timer:
            def cancel(self) -> None: ...

        return Timer()

    def offer(self, stream: str = "file", shape: tuple[int, int] = SMALL) -> int:
        self.offered += 1
        self.dispatcher.offer(Waiting(stream, self.offered, shape, self.now, self.now, self.owners[stream]))
        self.dispatcher.pump()
        return self.offered

    def answer(self, line: Line, error: str | None = None) -> None:
        worker: Any = line.worker
        request = worker.sent.pop(0)
        found = [] if error else [b""] * len(request.frames)
        self.dispatcher.on_done(line, Done(request.id, self.now - 0.02, self.now, self.now, found, error))

    def prepare_all(self) -> None:
        for line in self.lines:
            worker: Any = line.worker
            while worker.asked:
                self.dispatcher.on_prepared(line, *worker.asked.pop(), None)


def test_after_a_switch_new_batches_go_to_the_new_line_and_the_old_one_is_drained() -> None:
    world = World()
    old, new = world.lines[0], world.line(640)
    world.offer()
    world.offer()
    world.dispatcher.switch(new)
    assert (len(old.worker.sent), len(new.worker.sent)) == (1, 1)  # type: ignore[attr-defined]
    assert world.dispatcher.draining
    world.answer(old)
    assert not world.dispatcher.draining
    world.answer(new)
    assert [(seq, outcome.model.generation) for _, seq, outcome in world.answers] == [(1, 1), (2, 2)]


def test_answers_of_a_stream_keep_its_order_whichever_engine_is_faster() -> None:
    world = World()
    old, new = world.lines[0], world.line(640)
    world.offer()
    world.offer()
    world.dispatcher.switch(new)
    world.answer(new)
    assert world.answers == []
    assert world.dispatcher.in_engine == 2
    world.answer(old, error="it died")
    assert [(seq, outcome.error) for _, seq, outcome in world.answers] == [(1, "it died"), (2, None)]
    assert world.dispatcher.in_engine == 0


def test_batches_side_by_side_in_one_engine_keep_the_order_too() -> None:
    world = World(parallel=2)
    world.offer()
    world.offer()
    worker: Any = world.lines[0].worker
    worker.sent.reverse()
    world.answer(world.lines[0])
    assert world.answers == []
    world.answer(world.lines[0])
    assert [seq for _, seq, _ in world.answers] == [1, 2]


def test_frames_scaled_for_the_old_input_go_to_the_old_line_until_it_is_retired() -> None:
    world = World()
    old, new = world.lines[0], world.line(1280)
    world.dispatcher.switch(new)
    world.offer(shape=SMALL)
    world.offer("door", shape=LARGE)
    assert (len(old.worker.sent), len(new.worker.sent)) == (1, 1)  # type: ignore[attr-defined]
    world.offer(shape=SMALL)
    world.dispatcher.retire()
    assert new.worker.asked == [SMALL], "what waits still has its shape prepared by the new one"  # type: ignore[attr-defined]
    world.prepare_all()
    world.answer(new)
    world.answer(old)
    world.answer(new)
    assert [(seq, outcome.model.generation) for _, seq, outcome in world.answers] == [(2, 2), (1, 1), (3, 2)]


def test_an_old_line_that_fails_does_not_make_the_server_unready() -> None:
    world = World()
    old, new = world.lines[0], world.line(640)
    world.offer()
    world.dispatcher.switch(new)
    world.answer(old, error="boom")
    assert world.dispatcher.failing_since is None


STEPS = st.one_of(
    st.tuples(st.just("offer"), st.sampled_from(["door", "file"]), st.sampled_from([SMALL, LARGE])),
    st.tuples(st.sampled_from(["answer", "fail"]), st.integers(0, 9)),
    st.tuples(st.just("switch"), st.sampled_from([640, 1280])),
    st.tuples(st.sampled_from(["retire", "prepare", "remove"])),
)


@settings(max_examples=300)
@given(steps=st.lists(STEPS, max_size=60), parallel=st.integers(1, 2))
def test_whatever_happens_every_frame_comes_back_once_and_in_order(steps: list[Any], parallel: int) -> None:
    world = World(parallel)
    dispatcher = world.dispatcher

    def busy() -> list[Line]:
        return [line for line in world.lines if line.worker.sent]  # type: ignore[attr-defined]

    for what, *more in steps:
        if what == "offer":
            dispatcher.configure(more[0], Policy(max_staleness_s=float("inf"), fifo=more[0] == "file"))
            world.offer(*more)
        elif what in ("answer", "fail") and busy():
            world.answer(busy()[more[0] % len(busy())], "boom" if what == "fail" else None)
        elif what == "switch" and dispatcher.old_line is None:
            dispatcher.switch(world.line(more[0]))
        elif what == "retire" and not dispatcher.draining:
            dispatcher.retire()
        elif what == "prepare":
            world.prepare_all()
        elif what == "remove":
            dispatcher.remove("door")
        back = len(world.answers) + len(world.dropped_frames)
        assert back + dispatcher.waiting + dispatcher.in_engine == world.offered
    for _ in range(3 * world.offered + 3):
        world.prepare_all()
        for line in busy():
            world.answer(line)
    seqs = [seq for _, seq, _ in world.answers] + [seq for _, seq, _ in world.dropped_frames]
    assert sorted(seqs) == list(range(1, world.offered + 1)), "each once"
    for stream in ("door", "file"):
        mine = [seq for name, seq, _ in world.answers if name == stream]
        assert mine == sorted(mine)
    assert not any(name == "file" for name, _, _ in world.dropped_frames), "a file loses nothing"
