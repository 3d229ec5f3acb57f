"""The queue between receiver and decoder: bounded in frames, bytes and age; gaps begin and end at keyframes."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.ingest.intake import FILE_UNITS, Begin, End, Intake, Unit
from server.ingest.source import AccessUnit, StreamInfo

INFO = StreamInfo("h264")


def unit(seq: int, at: float = 0.0, keyframe: bool = False, damaged: bool = False, size: int = 10) -> Unit:
    data = bytes(size)
    return Unit(seq, AccessUnit(data, None, at, at, keyframe=keyframe, damaged=damaged))


def taken(intake: Intake) -> list[int]:
    seqs = []
    while (item := intake.get(0)) is not None:
        assert isinstance(item, Unit)
        seqs.append(item.seq)
    return seqs


def test_what_goes_in_comes_out_in_order() -> None:
    intake = Intake()
    items = [Begin(INFO), unit(1, keyframe=True), unit(2), End(False)]
    for item in items:
        assert intake.put(item) == []
    assert [intake.get(0) for _ in items] == items
    assert intake.get(0) is None


def test_too_many_frames_are_given_up_to_the_newest_keyframe() -> None:
    intake = Intake(max_units=5)
    for seq in range(1, 6):
        assert intake.put(unit(seq, keyframe=seq in (1, 4))) == []
    assert intake.put(unit(6)) == [1, 2, 3]
    first = intake.get(0)
    assert first == Unit(4, unit(4, keyframe=True).unit, after_gap=True)
    assert taken(intake) == [5, 6]


def test_old_frames_without_a_newer_keyframe_go_until_one_comes() -> None:
    intake = Intake(max_age_s=2)
    for seq in range(1, 4):
        intake.put(unit(seq, at=seq, keyframe=seq == 1))
    assert intake.put(unit(4, at=4)) == [1, 2, 3, 4]
    assert intake.put(unit(5, at=5)) == [5]
    assert intake.put(unit(6, at=6, keyframe=True, damaged=True)) == [6], "a damaged keyframe is no start"
    assert intake.put(unit(7, at=7, keyframe=True)) == []
    item = intake.get(0)
    assert isinstance(item, Unit)
    assert (item.seq, item.after_gap) == (7, True)
    intake.put(unit(8, at=8))
    assert taken(intake) == [8]


def test_a_keyframe_too_old_itself_does_not_count() -> None:
    intake = Intake(max_age_s=2)
    intake.put(unit(1, at=0.0))
    intake.put(unit(2, at=0.1, keyframe=True))
    assert intake.put(unit(3, at=5)) == [1, 2, 3]


def test_bytes_are_bounded() -> None:
    intake = Intake(max_bytes=1000)
    assert intake.put(unit(1, size=600, keyframe=True)) == []
    assert intake.put(unit(2, size=600)) == [1, 2]
    assert intake.put(unit(3, size=2000, keyframe=True)) == [3], "larger than the bound by itself"


def test_marks_survive_and_a_new_connection_ends_the_gap() -> None:
    intake = Intake(max_units=1)
    intake.put(Begin(INFO))
    intake.put(unit(1))
    assert intake.put(unit(2)) == [1, 2]
    intake.put(End(False))
    intake.put(Begin(INFO))
    assert intake.put(unit(3)) == [], "the decoder of the new connection waits for a keyframe by itself"
    kinds = [type(intake.get(0)) for _ in range(4)]
    assert kinds == [Begin, End, Begin, Unit]


def test_a_file_waits_for_room() -> None:
    intake = Intake(max_units=1, max_age_s=0.001)
    for seq in range(FILE_UNITS):
        assert intake.wait_for_room(0)
        assert intake.put(unit(seq, at=seq), may_give_up=False) == []
    assert not intake.wait_for_room(0.01)
    threading.Timer(0.05, intake.get, [0]).start()
    assert intake.wait_for_room(5)


def test_clear_gives_every_frame_back() -> None:
    intake = Intake()
    for item in (Begin(INFO), unit(1), unit(2), End(True)):
        intake.put(item)
    assert intake.clear() == [1, 2]
    assert intake.get(0) is None


class IntakeMachine(RuleBasedStateMachine):
    """Whatever happens, each frame comes out, is given up, or waits; bounds hold; gaps are flagged."""

    def __init__(self) -> None:
        super().__init__()
        self.intake = Intake(max_units=6, max_age_s=3.0, max_bytes=500)
        self.now = 0.0
        self.seq = 0
        self.waiting: list[Unit] = []
        self.gap = False

    @rule(step=st.floats(0, 2), keyframe=st.booleans(), damaged=st.booleans(), size=st.integers(1, 200))
    def put(self, step: float, keyframe: bool, damaged: bool, size: int) -> None:
        self.now += step
        self.seq += 1
        item = unit(self.seq, self.now, keyframe, damaged, size)
        given_up = self.intake.put(item)
        before = {u.seq for u in self.waiting} | {self.seq}
        assert set(given_up) <= before
        assert given_up == sorted(given_up)
        self.waiting = [u for u in [*self.waiting, item] if u.seq not in given_up]
        self.gap = self.gap or bool(given_up)
        if given_up and self.waiting:
            assert self.waiting[0].unit.keyframe
            assert not self.waiting[0].unit.damaged

    @rule()
    def get(self) -> None:
        item = self.intake.get(0)
        if item is None:
            assert not self.waiting
            return
        assert isinstance(item, Unit)
        expected = self.waiting.pop(0)
        assert item.seq == expected.seq
        assert item.after_gap == self.gap
        self.gap = False

    @invariant()
    def bounded(self) -> None:
        assert len(self.waiting) <= 6
        assert sum(len(u.unit.data) for u in self.waiting) <= 500


TestIntake = IntakeMachine.TestCase
TestIntake.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.integers(1, 5))
def test_get_does_not_wait_for_what_is_there(count: int) -> None:
    intake = Intake()
    for seq in range(count):
        intake.put(unit(seq))
    assert taken(intake) == list(range(count))
