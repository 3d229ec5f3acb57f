"""The fault matrix without its servers: the table is whole, and the judge sees what it must."""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import av
import pytest

from server.chaos import cli, run
from server.chaos.acts_camera import damaged_stream
from server.chaos.judge import Change, Seen, judge, recovery_bound_s, witness_moved, worst_window
from server.chaos.matrix import MATRIX, READ_S, Case, Row, cases, chosen
from server.chaos.report import expected, markdown
from server.chaos.run import act_of, headline, told
from server.ingest.source import Reason
from server.ingest.wire import DropReason
from server.testing.truth.clips import pattern_clip

LEDGER = {"received": 10, "completed": 10, "in_flight": 0, "dropped": {}}
STALL = Row(fault="stall", what="silence", state="backoff", reasons=("stalled",), seen_s=READ_S + 1)
PLAYS = Row(fault="plays", what="nothing", state="running")


def seen(**changed: object) -> Seen:
    """A stall as it should be: begun at 100, seen at 101.5, over at 110, back at 111."""
    changes = [Change(101.5, "backoff", "stalled", 0.5), Change(110.6, "connecting", "stalled", None),
               Change(110.9, "running", None, None)]  # fmt: skip
    usual = Seen(
        begun_at=100.0, ended_at=110.0, changes=changes, shown_at=101.5, back_at=111.0, reads=40, torn_of=99,
        final={"suffers": LEDGER}, told={"suffers": 10}, before=[10.0] * 100, during=[12.0] * 100, after=[10.0] * 100,
    )  # fmt: skip
    return replace(usual, **changed)  # type: ignore[arg-type]


def test_every_fault_of_the_table_is_done_by_an_act_and_has_one_name() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names)) > 80
    for row in MATRIX:
        assert callable(act_of(row.fault))
        assert row.what
        assert expected(row)


def test_the_table_speaks_the_server_s_words() -> None:
    reasons = {str(reason) for reason in Reason}
    dropped = {f"ingest/{reason.name.lower()}" for reason in DropReason} | {"inference/engine_error", "inference/hung"}
    for row in MATRIX:
        assert set(row.reasons) <= reasons, row.fault
        assert set(row.drops) <= dropped, row.fault
        assert row.state == "running" or row.reasons, f"{row.fault}: a loss has a reason"


def test_names_choose_faults_or_single_cases() -> None:
    assert [case.name for case in chosen(["bye"])] == ["bye-tcp-h264", "bye-udp-h264"]
    assert [case.name for case in chosen(["bye-udp-h264"])] == ["bye-udp-h264"]
    assert len(chosen([])) == len(list(cases()))
    with pytest.raises(ValueError, match="no fault 'earthquake'"):
        chosen(["earthquake"])


def test_what_is_as_the_table_says_has_no_faults() -> None:
    assert judge(STALL, seen()) == []
    assert witness_moved(seen()) is None
    assert recovery_bound_s(STALL, seen()) == 1.5 * 0.5 + 2


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"shown_at": None}, "backoff stalled was not seen"),
        ({"shown_at": 102.6}, "after 2.60 s, not within 2.5 s"),
        ({"back_at": None}, "no result came after the fault"),
        ({"back_at": 112.8}, "after 2.80 s, not within 2.75 s"),
        ({"unbalanced": 1}, "1 of 40 reads of ledgers do not balance"),
        ({"torn": 1}, "1 of 99 results are of torn pictures"),
        ({"errors": 2}, "2 results of status error"),
        ({"final": {"suffers": {**LEDGER, "completed": 9}}}, "unaccounted for"),
        ({"final": {"suffers": {**LEDGER, "completed": 9, "in_flight": 1}}}, "1 frames are unaccounted for"),
        ({"told": {"suffers": 9}}, "10 frames completed, 9 told to the client"),
        ({"complaints": ["the act complains"]}, "the act complains"),
        ({"log": ["Traceback (most recent call last):"]}, "Traceback"),
    ],
)
def test_each_promise_that_is_broken_is_named(changed: dict[str, object], fault: str) -> None:
    assert any(fault in sentence for sentence in judge(STALL, seen(**changed)))


def dropping(stage: str, reason: str) -> Seen:
    ledger = {"received": 11, "completed": 10, "in_flight": 0, "dropped": {stage: {reason: 1}}}
    return seen(final={"suffers": ledger}, changes=[], shown_at=100.1)


def test_a_drop_needs_a_reason_that_belongs_to_the_fault() -> None:
    assert judge(PLAYS, dropping("batching", "replaced")) == [], "a busy machine"
    assert judge(PLAYS, dropping("ingest", "awaiting_keyframe")) == [], "joined in the middle"
    assert "nothing had harmed" in "".join(judge(PLAYS, dropping("ingest", "damaged")))
    assert judge(replace(PLAYS, drops=("ingest/damaged",)), dropping("ingest", "damaged")) == []
    assert "shows no ingest/damaged" in "".join(judge(replace(PLAYS, drops=("ingest/damaged",)), seen()))
    assert "does not belong here" in "".join(judge(PLAYS, dropping("inference", "hung")))
    assert judge(replace(PLAYS, errors=True), dropping("inference", "hung")) == []


def test_a_stream_that_must_not_be_lost() -> None:
    assert "the stream was lost: stalled" in judge(PLAYS, seen())
    assert judge(replace(PLAYS, reconnects=True, seen_s=2), seen()) == []


def test_witnesses_are_held_against_themselves_before_and_after() -> None:
    assert witness_moved(seen(during=[20.9] * 100)) is None, "10 ms and 10 % are allowed"
    assert "rose from 10.0 to 21.1 ms, above 21.0 ms" in (witness_moved(seen(during=[21.1] * 100)) or "")
    assert witness_moved(seen(during=[])) == "the healthy cameras gave no results"
    assert witness_moved(seen(during=[50.0] * 100, after=[50.0] * 100)) is None, "the machine was slow, not the fault"


@pytest.mark.parametrize(
    ("times", "most"), [([], 0), ([1.0], 1), ([3.0, 1.0, 1.05, 1.09, 2.0], 3), ([1.0, 1.11, 1.22], 1)]
)
def test_the_fullest_window(times: list[float], most: int) -> None:
    assert worst_window(times, 0.1) == most


def test_the_page_has_every_case_with_its_figures() -> None:
    case = Case(STALL, "tcp", "h264")
    good = headline(case) | told(STALL, seen()) | {"ok": True, "seconds": 20.0}
    bad = {**headline(next(cases())), "faults": ["it could not be run"], "ok": False}
    skipped = {**headline(Case(MATRIX[1], "tcp", "h264")), "skipped": "no network", "ok": False, "faults": []}
    machine = {"cpu": "a CPU", "cores": 2, "kernel": "6", "load_average_at_begin": 1.5}
    page = markdown({"machine": machine, "phase_s": 6.0, "hold_at_most_s": 10.0, "cases": [good, bad, skipped]})
    assert "| 1.5 (2.5) | 1 (2.75) | none | 10 / 12 / 10 | ok |" in page
    assert "skipped: no network" in page
    assert f"**{bad['case']}**: it could not be run" in page


def test_late_witnesses_are_watched_once_more_and_both_runs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    late, fine = seen(during=[50.0] * 100), seen()
    runs = [told(STALL, late), told(STALL, fine), told(STALL, late), told(STALL, late)]
    monkeypatch.setattr(run, "_once", lambda case, plan: headline(case) | runs.pop(0))
    case = Case(STALL, "tcp", "h264")
    once = run.run(case, run.Plan(Path()))
    assert (once["ok"], once["repeated"]["witness_ms"], once["witness_ms"]) == (True, [10, 50, 10], [10, 12, 10])
    twice = run.run(case, run.Plan(Path()))
    assert not twice["ok"]
    assert "p99 of the healthy cameras rose" in twice["faults"][0]


def test_resumed_cases_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fake(case: Case, plan: run.Plan) -> dict[str, object]:
        ran.append(case.name)
        return (
            headline(case)
            | told(STALL, seen())
            | {"ok": len(ran) != 1, "faults": ["x"] * (len(ran) == 1), "seconds": 1}
        )

    monkeypatch.setattr(cli, "run", fake)
    monkeypatch.setattr(cli, "_missing", lambda case: None)
    report = tmp_path / "report.json"
    arguments = ["--only", "bye", "--json", str(report), "--resume", str(report)]
    assert cli.main(arguments) == 1
    assert cli.main([*arguments, "--markdown", str(tmp_path / "page.md")]) == 0
    assert ran == ["bye-tcp-h264", "bye-udp-h264", "bye-tcp-h264"], "only the one that had failed"
    assert [line["ok"] for line in json.loads(report.read_text())["cases"]] == [True, True]
    assert "bye" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_damaged_stream_is_still_a_stream(codec: str, tmp_path: Path) -> None:
    clip = pattern_clip(frames=30, fps=10, codec=codec, gop=10)  # type: ignore[arg-type]
    data = damaged_stream(clip, random.Random(0))
    assert data == damaged_stream(clip, random.Random(0))
    path = tmp_path / f"damaged.{codec}"
    path.write_bytes(data)
    with av.open(str(path), format=codec) as container:
        packets = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
    assert 40 <= packets < 60, "some frames are missing"


def test_the_data_base_can_be_locked_from_outside(tmp_path: Path) -> None:
    """What the act `database_locked` relies on."""
    path = tmp_path / "streams.sqlite"
    first, second = (sqlite3.connect(path, isolation_level=None, timeout=0) for _ in range(2))
    first.execute("CREATE TABLE t (x)")
    second.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        first.execute("INSERT INTO t VALUES (1)")
    first.close()
    second.close()
