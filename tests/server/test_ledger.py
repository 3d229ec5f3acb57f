"""The ledger: every frame is opened once, closed once, and counted in exactly one place at any instant."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.ledger import Ledger, LedgerError
from server.streams import LedgerView

STAGES = st.sampled_from(["ingest", "batching", "inference"])
REASONS = st.sampled_from(["stale", "replaced", "stopped", "process_lost"])


def test_a_frame_is_in_one_place_at_a_time() -> None:
    ledger = Ledger()
    ledger.open(1)
    ledger.open(2)
    ledger.open(7)
    assert (ledger.received, ledger.in_flight, ledger.last_seq) == (3, 3, 7)
    ledger.complete(2)
    ledger.drop(1, "batching", "stale")
    assert ledger.snapshot() == {
        "received": 3,
        "completed": 1,
        "in_flight": 1,
        "dropped": {"batching": {"stale": 1}},
    }
    assert ledger.open_seqs() == [7]
    assert ledger.balanced()


def test_snapshot_is_the_rest_form_and_a_copy() -> None:
    ledger = Ledger()
    for seq in range(1, 6):
        ledger.open(seq)
    ledger.drop(1, "ingest", "damaged")
    ledger.drop(2, "ingest", "no_slot")
    ledger.drop(3, "inference", "hung")
    before = ledger.snapshot()
    ledger.complete(4)
    assert before["completed"] == 0
    assert before["dropped"] == {"ingest": {"damaged": 1, "no_slot": 1}, "inference": {"hung": 1}}
    assert LedgerView.model_validate(before).in_flight == 2


@pytest.mark.parametrize("seq", [3, 2, 0, -1])
def test_seqs_rise_strictly(seq: int) -> None:
    ledger = Ledger()
    ledger.open(3)
    with pytest.raises(LedgerError, match=f"seq {seq} opened after seq 3"):
        ledger.open(seq)
    assert (ledger.received, ledger.open_seqs()) == (1, [3])


def test_a_frame_is_closed_once() -> None:
    ledger = Ledger()
    ledger.open(1)
    ledger.complete(1)
    with pytest.raises(LedgerError, match="seq 1 is not open"):
        ledger.complete(1)
    with pytest.raises(LedgerError, match="seq 1 is not open"):
        ledger.drop(1, "batching", "stale")
    with pytest.raises(LedgerError, match="never opened"):
        ledger.complete(9)
    assert ledger.snapshot() == {"received": 1, "completed": 1, "in_flight": 0, "dropped": {}}


def test_drop_all_takes_every_open_frame_or_those_named() -> None:
    ledger = Ledger()
    for seq in range(1, 7):
        ledger.open(seq)
    ledger.complete(3)
    assert ledger.drop_all("ingest", "process_lost", [5, 1]) == [5, 1]
    assert ledger.drop_all("inference", "stopped") == [2, 4, 6]
    assert ledger.dropped == {("ingest", "process_lost"): 2, ("inference", "stopped"): 3}
    assert ledger.in_flight == 0


@pytest.mark.parametrize("seqs", [[1, 9], [1, 1]])
def test_drop_all_drops_nothing_if_one_does_not_fit(seqs: list[int]) -> None:
    ledger = Ledger()
    ledger.open(1)
    ledger.open(2)
    with pytest.raises(LedgerError):
        ledger.drop_all("ingest", "process_lost", seqs)
    assert ledger.open_seqs() == [1, 2]
    assert ledger.dropped == {}


class LedgerMachine(RuleBasedStateMachine):
    """Any sequence of calls, right and wrong ones, against a model that keeps each frame's fate by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.fate: dict[int, tuple[str, ...]] = {}

    def of(self, *fate: str) -> list[int]:
        return [seq for seq, known in self.fate.items() if known == fate]

    @rule(gap=st.integers(1, 5))
    def open(self, gap: int) -> None:
        seq = self.ledger.last_seq + gap
        self.ledger.open(seq)
        self.fate[seq] = ("open",)

    @rule(back=st.integers(0, 5))
    def open_again(self, back: int) -> None:
        with pytest.raises(LedgerError):
            self.ledger.open(self.ledger.last_seq - back)

    @precondition(lambda self: self.of("open"))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.of("open")))
        self.ledger.complete(seq)
        self.fate[seq] = ("completed",)

    @precondition(lambda self: self.of("open"))
    @rule(data=st.data(), stage=STAGES, reason=REASONS)
    def drop(self, data: st.DataObject, stage: str, reason: str) -> None:
        seq = data.draw(st.sampled_from(self.of("open")))
        self.ledger.drop(seq, stage, reason)
        self.fate[seq] = ("dropped", stage, reason)

    @rule(data=st.data(), stage=STAGES, reason=REASONS)
    def drop_some(self, data: st.DataObject, stage: str, reason: str) -> None:
        is_open = self.of("open")
        seqs = data.draw(st.lists(st.sampled_from(is_open), unique=True) if is_open else st.just([]))
        self.ledger.drop_all(stage, reason, seqs)
        self.fate |= dict.fromkeys(seqs, ("dropped", stage, reason))

    @rule(stage=STAGES, reason=REASONS)
    def drop_the_rest(self, stage: str, reason: str) -> None:
        is_open = self.of("open")
        assert self.ledger.drop_all(stage, reason) == is_open
        self.fate |= dict.fromkeys(is_open, ("dropped", stage, reason))

    @rule(seq=st.integers(-2, 40))
    def close_what_is_not_open(self, seq: int) -> None:
        if self.fate.get(seq) == ("open",):
            return
        with pytest.raises(LedgerError):
            self.ledger.complete(seq)
        with pytest.raises(LedgerError):
            self.ledger.drop(seq, "batching", "stale")
        with pytest.raises(LedgerError):
            self.ledger.drop_all("batching", "stale", [*self.of("open"), seq])

    @invariant()
    def every_frame_is_where_it_belongs(self) -> None:
        ledger = self.ledger
        assert ledger.balanced()
        assert ledger.received == len(self.fate)
        assert ledger.completed == len(self.of("completed"))
        assert ledger.open_seqs() == self.of("open")
        assert ledger.in_flight == len(self.of("open"))
        assert all(ledger.is_open(seq) == (fate == ("open",)) for seq, fate in self.fate.items())
        for (stage, reason), count in ledger.dropped.items():
            assert count == len(self.of("dropped", stage, reason))
        assert sum(ledger.dropped.values()) == sum(fate[0] == "dropped" for fate in self.fate.values())


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40)
