"""The scheduler in virtual time: what it promises in its docstring, shown on simulated cameras and an engine."""

from __future__ import annotations

import copy
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.batching.scheduler import _AHEAD, _CREDIT, Dropped, Policy, Scheduler, Shape, Waiting
from server.ledger import Ledger

WIDE, SQUARE, TALL = (384, 640), (640, 640), (640, 384)
SHAPES = [WIDE, SQUARE, TALL]


def frame(
    stream: str,
    seq: int,
    at: float = 0.0,
    shape: Shape = WIDE,
    *,
    ready: float | None = None,
    deadline: float = math.inf,
) -> Waiting:
    return Waiting(stream, seq, shape, at, at if ready is None else ready, deadline=deadline)


def scheduler(policies: dict[str, Policy], max_batch: int = 1, max_delay_s: float = 0.0) -> Scheduler:
    made = Scheduler(max_batch, max_delay_s)
    for stream, policy in policies.items():
        made.configure(stream, policy)
    return made


def names(batch: list[Waiting]) -> list[str]:
    return [f.stream for f in batch]


def drain(made: Scheduler, now: float) -> Iterator[list[Waiting]]:
    while batch := made.take(now):
        yield batch


# A house in miniature: cameras, ledgers, an engine, all in virtual time.


@dataclass
class Camera:
    period: float = 0.04
    jitter: float = 0.0
    """Part of the period by which each arrival may be late."""
    shape: Shape = WIDE
    policy: Policy = field(default_factory=Policy)
    phase: float = 0.0
    decode: float = 0.002


class House:
    """Runs cameras against a scheduler and checks after every step what must hold at any time."""

    def __init__(
        self,
        cameras: dict[str, Camera],
        *,
        max_batch: int = 1,
        max_delay_s: float = 0.0,
        service: Callable[[Shape, int], float] = lambda shape, size: 0.02 * size,
        runnable_from: dict[Shape, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.cameras = cameras
        self.max_batch = max_batch
        self.scheduler = scheduler({name: c.policy for name, c in cameras.items()}, max_batch, max_delay_s)
        self.service = service
        self.runnable_from = runnable_from or {}
        self.random = random.Random(seed)
        self.now = 0.0
        self.ledgers = {name: Ledger() for name in cameras}
        self.engine: list[Waiting] = []
        self.free_at = 0.0
        self.rounds = 0
        self.batches: list[tuple[float, list[Waiting]]] = []
        self.served: Counter[str] = Counter()
        self.held: dict[str, dict[int, Waiting]] = {name: {} for name in cameras}
        self.passed: dict[str, Counter[str]] = {}
        """stream that waits -> frames that each other stream got meanwhile"""

    def runnable(self, shape: Shape) -> bool:
        return self.now >= self.runnable_from.get(shape, 0.0)

    def run(self, until: float) -> House:
        arrivals = [(c.phase + c.jitter * c.period * self.random.random(), 0, name) for name, c in self.cameras.items()]
        heapq.heapify(arrivals)
        wakes = sorted(set(self.runnable_from.values()))
        while True:
            times = [arrivals[0][0], *(at for at in wakes if at > self.now)]
            if self.engine:
                times.append(self.free_at)
            wake = self.scheduler.wake_at(self.now)
            if wake is not None:
                times.append(wake)
            assert min(times) >= self.now, "nothing asks to be woken in the past"
            self.now = min(times)
            if self.now > until:
                return self
            if self.engine and self.now >= self.free_at:
                for done in self.engine:
                    self.ledgers[done.stream].complete(done.seq)
                self.engine = []
            while arrivals[0][0] <= self.now:
                _, count, name = heapq.heappop(arrivals)
                self.offer(name)
                camera = self.cameras[name]
                at = camera.phase + (count + 1) * camera.period
                late = camera.jitter * camera.period * self.random.random()
                heapq.heappush(arrivals, (max(at + late, self.now), count + 1, name))
            self.step()

    def offer(self, name: str) -> None:
        camera, ledger = self.cameras[name], self.ledgers[name]
        seq = ledger.last_seq + 1
        ledger.open(seq)
        offered = frame(name, seq, self.now - camera.decode, camera.shape, ready=self.now)
        self.held[name][seq] = offered
        self.drop(self.scheduler.offer(offered, self.now), {"replaced"})
        self.check()

    def step(self) -> None:
        self.drop(self.scheduler.expire(self.now), {"stale"})
        self.check()
        if self.engine:
            return
        self.note_who_waits()
        batch = self.scheduler.take(self.now, self.runnable)
        if batch:
            self.serve(batch)
        self.check()

    def serve(self, batch: list[Waiting]) -> None:
        assert len(batch) <= self.max_batch
        assert {f.shape for f in batch} == {batch[0].shape}
        assert self.runnable(batch[0].shape)
        for served in batch:
            policy = self.cameras[served.stream].policy
            assert self.now - served.arrived_at < policy.max_staleness_s, "a stale frame was served"
            mine = self.held[served.stream]
            newest = max(mine) if not policy.fifo else min(mine)
            assert served.seq == newest, "newest wins; first in, first out"
            del mine[served.seq]
        for served in batch:
            self.passed.pop(served.stream, None)
        for waiting in self.passed.values():
            waiting.update(names(batch))
        self.check_bound()
        self.served.update(names(batch))
        self.batches.append((self.now, batch))
        self.rounds += 1
        self.engine = batch
        self.free_at = self.now + self.service(batch[0].shape, len(batch))

    def drop(self, dropped: list[Dropped], reasons: set[str]) -> None:
        for gone, reason in dropped:
            assert reason in reasons
            policy = self.cameras[gone.stream].policy
            assert not (policy.fifo and reason == "replaced")
            self.ledgers[gone.stream].drop(gone.seq, "batching", reason)
            del self.held[gone.stream][gone.seq]
            if not self.held[gone.stream]:
                self.passed.pop(gone.stream, None)

    def note_who_waits(self) -> None:
        for name, waiting in self.held.items():
            if waiting and self.runnable(next(iter(waiting.values())).shape):
                self.passed.setdefault(name, Counter())

    def check_bound(self) -> None:
        ahead = 0 if self.max_batch == 1 else _AHEAD
        for name, got in self.passed.items():
            weight = self.cameras[name].policy.weight
            for other, count in got.items():
                share = self.cameras[other].policy.weight / weight
                assert count <= (1 + ahead) * share + 1 + ahead + _CREDIT + 1e-6, f"{name} waited while {other} went on"

    def check(self) -> None:
        assert all(ledger.balanced() for ledger in self.ledgers.values())
        held = sum(len(waiting) for waiting in self.held.values())
        assert self.scheduler.waiting == held
        assert sum(ledger.in_flight for ledger in self.ledgers.values()) == held + len(self.engine)

    def share(self, name: str) -> float:
        return self.served[name] / self.served.total()


WEIGHTS = st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 3.0, 10.0])
POLICIES = st.builds(
    Policy, weight=WEIGHTS, max_staleness_s=st.sampled_from([0.03, 0.2, 0.5, math.inf]), fifo=st.booleans()
)
CAMERAS = st.builds(
    Camera,
    period=st.floats(0.02, 0.3),
    jitter=st.floats(0, 1),
    shape=st.sampled_from(SHAPES),
    policy=POLICIES,
    phase=st.floats(0, 0.3),
)


@settings(max_examples=100)
@given(
    cameras=st.lists(CAMERAS, min_size=1, max_size=8),
    max_batch=st.integers(1, 5),
    max_delay_s=st.sampled_from([0.0, 0.005, 0.05]),
    base=st.floats(0.001, 0.03),
    each=st.floats(0.0005, 0.03),
    compiling=st.dictionaries(st.sampled_from(SHAPES), st.floats(0, 1.0)),
    seed=st.integers(0, 1000),
)
def test_any_house_keeps_its_promises(
    cameras: list[Camera],
    max_batch: int,
    max_delay_s: float,
    base: float,
    each: float,
    compiling: dict[Shape, float],
    seed: int,
) -> None:
    """Lost, doubled or stale frames, a ledger that does not balance or a wait beyond the bound fail inside House."""
    house = House(
        {f"camera{i}": camera for i, camera in enumerate(cameras)},
        max_batch=max_batch,
        max_delay_s=max_delay_s,
        service=lambda shape, size: base + each * size,
        runnable_from=compiling,
        seed=seed,
    ).run(2.0)
    last = house.scheduler.waiting
    gone = [d for name in list(house.cameras) for d in house.scheduler.remove(name)]
    assert len(gone) == last
    assert house.scheduler.waiting == 0
    house.drop([d._replace(reason="stopped") for d in gone], {"stopped"})
    house.check()


@pytest.mark.parametrize("max_batch", [1, 3])
@pytest.mark.parametrize(
    "weights", [[1, 1, 1, 1], [3, 1, 1, 1], [10, 1, 0.5, 0.5], [1, 2, 3, 4, 1, 2, 3, 4]], ids=lambda w: str(w)
)
def test_weights_hold_within_5_percent_over_1000_rounds(weights: list[float], max_batch: int) -> None:
    """Streams that always have a frame waiting, of one, two and three shapes."""
    for shapes in (1, 2, 3):
        cameras = {
            f"camera{i}": Camera(0.019, shape=SHAPES[i % shapes], policy=Policy(weight=weight))
            for i, weight in enumerate(weights)
        }
        house = House(cameras, max_batch=max_batch).run(0.021 * 1000 * max_batch)
        assert house.rounds >= 1000
        for i, weight in enumerate(weights):
            assert house.share(f"camera{i}") == pytest.approx(weight / sum(weights), rel=0.05)


@pytest.mark.parametrize("heavy", [1, 2, 3, 4])
@pytest.mark.parametrize("cameras", [8, 16])
def test_cameras_of_25_fps_get_their_share_though_they_idle_between_frames(heavy: float, cameras: int) -> None:
    """Overload as it is in reality: a camera served has nothing to offer for up to 40 ms."""
    weights = [heavy] + [1] * (cameras - 1)
    house = House(
        {
            f"camera{i}": Camera(0.04, 0.3, policy=Policy(weight=w), phase=0.04 * i / cameras)
            for i, w in enumerate(weights)
        }
    ).run(40)
    for i, weight in enumerate(weights):
        assert house.share(f"camera{i}") == pytest.approx(weight / sum(weights), rel=0.05)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_a_rare_shape_does_not_starve(max_batch: int) -> None:
    cameras = {f"wide{i}": Camera(0.04, 0.5, WIDE, phase=0.002 * i) for i in range(15)}
    cameras["tall"] = Camera(0.04, 0.5, TALL)
    house = House(cameras, max_batch=max_batch).run(40)
    assert house.share("tall") == pytest.approx(1 / 16, rel=0.05)


def test_a_common_shape_fills_batches_though_ahead_of_turn_is_bounded() -> None:
    cameras = {f"camera{i}": Camera(0.04, 0.3, phase=0.002 * i) for i in range(16)}
    house = House(cameras, max_batch=8, service=lambda shape, size: 0.01 + 0.005 * size).run(20)
    sizes = [len(batch) for _, batch in house.batches[10:]]
    assert sum(sizes) / len(sizes) > 7.9


def test_a_shape_that_compiles_is_passed_over_and_comes_first_then_without_credit() -> None:
    cameras = {f"wide{i}": Camera(0.02) for i in range(4)} | {"tall": Camera(0.02, shape=TALL)}
    house = House(cameras, runnable_from={TALL: 10.0}).run(20.0)
    before = Counter(name for at, batch in house.batches if at < 10.0 for name in names(batch))
    after = [name for at, batch in house.batches if at >= 10.0 for name in names(batch)]
    assert before["tall"] == 0
    assert "tall" in after[:2]
    assert after[:50].count("tall") <= 10 + _CREDIT
    assert after.count("tall") / len(after) == pytest.approx(1 / 5, rel=0.05)


# With little load, earliest deadline first.


@settings(max_examples=100)
@given(
    rounds=st.lists(
        st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 0.4), min_size=1), min_size=1, max_size=6
    ),
    weights=st.lists(WEIGHTS, min_size=8, max_size=8),
)
def test_after_an_idle_moment_the_order_is_by_deadline(rounds: list[dict[str, float]], weights: list[float]) -> None:
    """Whatever was served before, and whatever the weights."""
    made = scheduler({name: Policy(weight) for name, weight in zip("abcdefgh", weights, strict=True)})
    seqs = itertools.count(1)
    now = 0.0
    for burst in rounds:
        now += 1.0
        for name, left in burst.items():
            made.offer(frame(name, next(seqs), now, deadline=now + left), now)
        served = [f for batch in drain(made, now) for f in batch]
        assert [f.deadline for f in served] == sorted(now + left for left in burst.values())


def test_the_staleness_budget_is_a_deadline_and_ties_go_to_the_longest_wait() -> None:
    made = scheduler({"slow": Policy(max_staleness_s=0.5), "quick": Policy(max_staleness_s=0.1), "old": Policy()})
    made.offer(frame("slow", 1, 1.0), 1.02)
    made.offer(frame("quick", 1, 1.02), 1.02)
    made.offer(frame("old", 1, 0.99), 1.02)
    assert [names(batch) for batch in drain(made, 1.02)] == [["quick"], ["old"], ["slow"]]


# Newest wins; order is kept where nothing may be lost.


def test_a_newer_frame_replaces_the_waiting_one() -> None:
    made = scheduler({"a": Policy()})
    first, second = frame("a", 1, 0.0), frame("a", 2, 0.04, TALL)
    assert made.offer(first, 0.0) == []
    assert made.offer(second, 0.04) == [Dropped(first, "replaced")]
    assert made.take(0.05) == [second]
    assert made.take(0.05) == []


def test_fifo_keeps_every_frame_in_order_also_over_a_change_of_shape() -> None:
    made = scheduler({"file": Policy(fifo=True, max_staleness_s=math.inf)}, max_batch=4)
    shapes = [WIDE, WIDE, TALL, WIDE, WIDE, WIDE, WIDE, WIDE]
    for seq, shape in enumerate(shapes, 1):
        assert made.offer(frame("file", seq, 0.0, shape), 0.0) == []
    batches = [[f.seq for f in batch] for batch in drain(made, 1e6)]
    assert batches == [[1, 2], [3], [4, 5, 6, 7], [8]], "alone, a file may fill whole batches"


def test_a_file_alone_owes_nothing_to_a_camera_that_comes_later() -> None:
    made = scheduler({"file": Policy(fifo=True, max_staleness_s=math.inf), "camera": Policy()}, max_batch=4)
    seqs = itertools.count(1)
    for _ in range(50):
        for _ in range(4):
            made.offer(frame("file", next(seqs)), 0.0)
        assert names(made.take(0.0)) == ["file"] * 4
    order = []
    for _ in range(12):
        made.offer(frame("file", next(seqs)), 0.0)
        made.offer(frame("camera", next(seqs)), 0.0)
        made.max_batch = 1
        order += names(made.take(0.0))
    assert order.count("file") >= 12 / 2 - 2


def test_a_frame_with_a_deadline_is_not_served_after_it() -> None:
    made = scheduler({"desk": Policy(fifo=True, max_staleness_s=math.inf)})
    late, early = frame("desk", 1, 0.0, deadline=5.0), frame("desk", 2, 0.0, deadline=3.0)
    made.offer(late, 0.0)
    made.offer(early, 0.0)
    assert made.wake_at(0.0) == 3.0
    assert made.take(3.0) == [late]
    assert made.waiting == 1, "a stale frame is held until it is given back"
    assert made.wake_at(3.0) == 3.0
    assert made.expire(3.0) == [Dropped(early, "stale")]
    assert (made.waiting, made.wake_at(3.0)) == (0, None)


def test_a_budget_changed_at_run_time_holds_for_waiting_frames() -> None:
    made = scheduler({"a": Policy(max_staleness_s=math.inf)})
    waiting = frame("a", 1, 0.0)
    made.offer(waiting, 0.0)
    assert made.wake_at(0.0) is None
    made.configure("a", Policy(max_staleness_s=0.2))
    assert made.wake_at(0.0) == pytest.approx(0.2)
    made.configure("a", Policy(max_staleness_s=0.4))
    assert made.expire(0.3) == []
    assert made.expire(0.4) == [Dropped(waiting, "stale")]


def test_a_file_that_becomes_a_camera_keeps_its_newest_frame_only() -> None:
    made = scheduler({"a": Policy(fifo=True)})
    frames = [frame("a", seq) for seq in (1, 2, 3)]
    made.offer(frames[0], 0.0)
    made.offer(frames[1], 0.0)
    made.configure("a", Policy(fifo=False))
    assert made.offer(frames[2], 0.0) == [Dropped(frames[0], "replaced"), Dropped(frames[1], "replaced")]
    assert made.take(0.0) == [frames[2]]


def test_removing_a_stream_gives_its_frames_back() -> None:
    made = scheduler({"a": Policy(fifo=True), "b": Policy()})
    frames = [frame("a", 1, 0.0), frame("a", 2, 1.0)]
    for offered in frames:
        made.offer(offered, 0.0)
    other = frame("b", 1, 1.0)
    made.offer(other, 0.0)
    assert made.take(0.9, lambda shape: False) == []
    assert made.remove("a") == [Dropped(frames[0], "stale"), Dropped(frames[1], "stopped")]
    assert made.remove("a") == []
    assert made.expire(1.0) == []
    assert made.take(1.0) == [other]
    with pytest.raises(KeyError):
        made.offer(frames[1], 1.0)


@pytest.mark.parametrize("wrong", [{"weight": 0}, {"weight": -1}, {"weight": math.inf}, {"weight": math.nan}])
def test_a_weight_is_positive_and_finite(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Policy(**wrong)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_is_positive(budget: float) -> None:
    with pytest.raises(ValueError, match="max_staleness_s"):
        Policy(max_staleness_s=budget)


# Waiting for a fuller batch.


def two(max_delay_s: float = 0.02) -> Scheduler:
    return scheduler({"a": Policy(), "b": Policy(), "c": Policy()}, max_batch=2, max_delay_s=max_delay_s)


def test_a_batch_waits_for_anyone_until_the_delay_is_over() -> None:
    made = two()
    made.offer(frame("a", 1, 0.0, ready=0.005), 0.005)
    assert made.take(0.005) == []
    assert made.wake_at(0.005) == pytest.approx(0.025)
    assert names(made.take(0.025)) == ["a"]


def test_a_full_batch_goes_at_once() -> None:
    made = two()
    made.offer(frame("a", 1), 0.0)
    assert made.take(0.001) == []
    made.offer(frame("c", 1, 0.002), 0.002)
    assert names(made.take(0.002)) == ["a", "c"]


def test_a_batch_does_not_wait_while_another_shape_does() -> None:
    made = two()
    made.offer(frame("a", 1), 0.0)
    made.offer(frame("b", 1, 0.001, TALL), 0.001)
    assert names(made.take(0.001)) == ["a"]
    assert made.take(0.001) == []
    assert names(made.take(0.021)) == ["b"]


def test_a_wait_ends_before_a_deadline_and_is_not_prolonged_by_newer_frames() -> None:
    made = two(0.1)
    made.offer(frame("a", 1, 0.0, deadline=0.15), 0.0)
    assert made.take(0.0) == []
    assert made.wake_at(0.0) == pytest.approx(0.05)
    for step in range(1, 10):
        made.offer(frame("a", 1 + step, step * 0.01), step * 0.01)
        batch = made.take(step * 0.01)
        if batch:
            break
    assert step == 5


# Any sequence of calls.


class SchedulerMachine(RuleBasedStateMachine):
    """Arbitrary calls: every frame comes back exactly once, `waiting` counts them, `wake_at` tells the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.now = 0.0
        self.seq = 0
        self.policies: dict[str, Policy] = {}
        self.held: dict[tuple[str, int], Waiting] = {}
        self.runnable = set(SHAPES)

    def back(self, frames: list[Waiting]) -> None:
        for gone in frames:
            assert self.held.pop((gone.stream, gone.seq)) is gone

    @rule(stream=st.sampled_from("abcd"), policy=POLICIES)
    def configure(self, stream: str, policy: Policy) -> None:
        self.scheduler.configure(stream, policy)
        self.policies[stream] = policy

    @rule(stream=st.sampled_from("abcd"))
    def remove(self, stream: str) -> None:
        gone = self.scheduler.remove(stream)
        self.policies.pop(stream, None)
        assert {d.frame.stream for d in gone} <= {stream}
        self.back([d.frame for d in gone])
        assert not any(name == stream for name, _ in self.held)

    @precondition(lambda self: self.policies)
    @rule(data=st.data(), shape=st.sampled_from(SHAPES), age=st.floats(0, 0.3), left=st.sampled_from([0.1, math.inf]))
    def offer(self, data: st.DataObject, shape: Shape, age: float, left: float) -> None:
        stream = data.draw(st.sampled_from(sorted(self.policies)))
        self.seq += 1
        offered = frame(stream, self.seq, self.now - age, shape, ready=self.now, deadline=self.now + left)
        self.held[(stream, self.seq)] = offered
        dropped = self.scheduler.offer(offered, self.now)
        assert {(d.frame.stream, d.reason) for d in dropped} <= {(stream, "replaced")}
        self.back([d.frame for d in dropped])

    @rule()
    def expire(self) -> None:
        self.back([d.frame for d in self.scheduler.expire(self.now)])

    @rule(seconds=st.floats(0.001, 0.2))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(shapes=st.sets(st.sampled_from(SHAPES)))
    def compile(self, shapes: set[Shape]) -> None:
        self.runnable = shapes

    @rule(max_batch=st.integers(1, 4), max_delay_s=st.sampled_from([0.0, 0.02, 0.3]))
    def tune(self, max_batch: int, max_delay_s: float) -> None:
        self.scheduler.max_batch = max_batch
        self.scheduler.max_delay_s = max_delay_s

    @rule()
    def take(self) -> None:
        batch = self.scheduler.take(self.now, self.runnable.__contains__)
        assert len(batch) <= self.scheduler.max_batch
        assert {f.shape for f in batch} <= self.runnable
        assert len({f.shape for f in batch}) <= 1
        for served in batch:
            assert self.now < min(served.deadline, served.arrived_at + self.policies[served.stream].max_staleness_s)
        self.back(batch)

    @rule()
    def sleep_until_woken(self) -> None:
        """With no new offer, nothing can be done before `wake_at`, and something can at it."""
        runnable = self.runnable.__contains__
        probe = copy.deepcopy(self.scheduler)
        probe.expire(self.now)
        while probe.take(self.now, runnable):
            pass
        wake = probe.wake_at(self.now)
        assert wake is None or wake > self.now
        early = copy.deepcopy(probe)
        before = self.now + 1e6 if wake is None else math.nextafter(wake, 0.0)
        assert early.expire(before) == []
        assert early.take(before, runnable) == []
        if wake is not None:
            assert probe.expire(wake) or probe.take(wake, runnable)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.scheduler.waiting == len(self.held)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=50)
