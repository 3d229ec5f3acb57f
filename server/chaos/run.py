"""One case from begin to end: calm, the fault, calm again; and what was seen of it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.processes import BenchError
from server.chaos import acts_camera, acts_clients, acts_machine
from server.chaos.bed import STREAM, WITNESSES, Bed
from server.chaos.judge import Seen, flat, judge, recovery_bound_s, witness_moved, witness_p99
from server.chaos.matrix import Case, Row
from server.testing.camera import ClipError

_PATIENCE_S = 6.0
"""So much longer than its bound a thing is waited for, so that a late one is told with its time."""
_MODULES = (acts_camera, acts_machine, acts_clients)
_PLAIN = ("long_gop", "gst_plays")
"""Faults that lie in the row itself: there is nothing to be done."""

Act = Callable[[Bed], Iterator[Callable[[float], None] | None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a case is run."""

    model: Path
    engine: str = "auto"
    phase_s: float = 6.0
    """The healthy cameras are watched for so long before, at least as long during, and after the fault."""
    damaged: Path | None = None
    """A folder of damaged byte streams, for `damaged_file`."""
    hold_at_most_s: float | None = None
    """Faults that take longer are cut short."""


def act_of(fault: str) -> Act:
    """The function of that name."""
    if fault in _PLAIN:
        return acts_camera.nothing
    act: Act = next(getattr(module, fault) for module in _MODULES if hasattr(module, fault))
    return act


def run(case: Case, plan: Plan) -> dict[str, Any]:
    """The case's line of the report. If the healthy cameras were late, it is run once more, and both are told."""
    began = time.monotonic()
    first = _once(case, plan)
    if first.get("witness") and not first["faults"]:
        second = _once(case, plan)
        first = {**second, "repeated": {"witness_ms": first["witness_ms"], "witness": first["witness"]}}
    if first.pop("witness", None):
        first["faults"].append(first["moved"])
    first.pop("moved", None)
    first["seconds"] = round(time.monotonic() - began, 1)
    first["ok"] = not first["faults"]
    return first


def headline(case: Case) -> dict[str, Any]:
    """What every line of the report begins with."""
    return {"case": case.name, "fault": case.row.fault, "transport": case.transport, "codec": case.codec,
            "camera": case.row.camera}  # fmt: skip


def _once(case: Case, plan: Plan) -> dict[str, Any]:
    line = headline(case)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="yolov9-chaos-", ignore_cleanup_errors=True) as folder,
            Bed(case, Path(folder), plan.model, plan.engine, plan.damaged) as bed,
        ):
            seen = _observe(bed, plan)
    except (BenchError, ClipError, OSError, RuntimeError) as error:
        return {**line, "faults": [f"the case could not be run: {error}"]}
    return line | told(case.row, seen)


def told(row: Row, seen: Seen) -> dict[str, Any]:
    """What the report says of a case. Times in seconds."""
    drops: dict[str, int] = {}
    for ledger in seen.final.values():
        for stage, reasons in ledger["dropped"].items():
            for reason, count in reasons.items():
                drops[f"{stage}/{reason}"] = drops.get(f"{stage}/{reason}", 0) + count
    moved = witness_moved(seen) if row.witness else None
    return {
        "faults": judge(row, seen),
        "reason": next((c.reason for c in seen.changes if c.at >= seen.begun_at and c.reason in row.reasons), None),
        "seen_s": None if seen.shown_at is None else round(seen.shown_at - seen.begun_at, 2),
        "seen_bound_s": row.seen_s,
        "back_s": None if seen.back_at is None else round(seen.back_at - seen.ended_at, 2),
        "back_bound_s": None if (bound := recovery_bound_s(row, seen)) is None else round(bound, 2),
        "frames": sum(ledger["received"] for ledger in seen.final.values()),
        "completed": sum(ledger["completed"] for ledger in seen.final.values()),
        "dropped": drops,
        "reads": seen.reads, "unbalanced": seen.unbalanced, "torn": seen.torn, "results": seen.torn_of,
        "errors": seen.errors,
        "witness_ms": [None if value is None else round(value, 1) for value in witness_p99(seen)],
        "witness": moved is not None, "moved": moved,
        "notes": seen.notes,
    }  # fmt: skip


def _observe(bed: Bed, plan: Plan) -> Seen:
    row, recorder, seen = bed.case.row, bed.recorder, Seen()
    suffers = row.camera != "none" or row.start == "file"
    if row.start == "running" and suffers:
        bed.add_sufferer()
        bed.wait(lambda: recorder.counted[STREAM] >= 2, _PATIENCE_S + 10, "results of the stream that will suffer")
    bed.settle()
    seen.before = _watch(bed, plan.phase_s)
    bed.wait(bed.ready, _PATIENCE_S, "readiness before the fault")
    with contextlib.ExitStack() as stack:
        seen.begun_at = time.monotonic()
        keep_going = stack.enter_context(contextlib.contextmanager(act_of(row.fault))(bed))
        if row.start != "running":
            seen.begun_at = time.monotonic()
            bed.add_sufferer()
        seen.shown_at = bed.shown_at or bed.look(lambda: _shown(bed, seen.begun_at), row.seen_s + _PATIENCE_S) or None
        hold_s = max(min(row.hold_s, plan.hold_at_most_s or row.hold_s), plan.phase_s)
        left = max(0.0, seen.begun_at + hold_s - time.monotonic())
        if keep_going is not None:
            keep_going(left)
        else:
            time.sleep(left)
        seen.results = sum(1 for r in list(recorder.results[STREAM]) if r.ok and r.at > seen.begun_at)
        if row.signs == "act" and "begun_at" in bed.notes:
            seen.begun_at = bed.notes.pop("begun_at")
        during_until = time.monotonic()
    seen.ended_at = bed.notes.pop("ended_at", None) or time.monotonic()
    if row.momentary:
        seen.ended_at = seen.shown_at or seen.begun_at
    seen.changes = bed.changes()
    if row.back != "never":
        bound = recovery_bound_s(row, seen) or 0.0
        seen.back_at = bed.back_at or bed.look(lambda: _back(bed, seen), bound + _PATIENCE_S) or None
    seen.during = recorder.totals(list(WITNESSES), seen.begun_at, during_until)
    bed.settle()
    seen.after = _watch(bed, plan.phase_s)
    _close(bed, seen)
    return seen


def _close(bed: Bed, seen: Seen) -> None:
    recorder = bed.recorder
    if not recorder.alive:
        seen.complaints.append("the server closed the WebSocket")
    seen.changes = bed.changes()
    seen.final, seen.told = bed.quiesce()
    seen.reads, seen.unbalanced = bed.reads, bed.unbalanced
    seen.torn, seen.torn_of = sum(recorder.torn.values()), sum(recorder.counted.values())
    seen.errors = sum(recorder.errors.values())
    seen.complaints += bed.complaints
    seen.notes = bed.notes
    seen.log = bed.bad_lines()


def _watch(bed: Bed, seconds: float) -> list[float]:
    began = time.monotonic()
    time.sleep(seconds)
    return bed.recorder.totals(list(WITNESSES), began, time.monotonic())


def _shown(bed: Bed, begun_at: float) -> float | None:
    """When what the row expects was first seen."""
    row, recorder = bed.case.row, bed.recorder
    if row.signs == "act":
        return bed.shown_at
    if row.signs == "readiness":
        return None if bed.ready() else time.monotonic()
    if row.signs == "ledger":
        return time.monotonic() if set(row.drops) <= set(flat(bed.ledger(STREAM))) else None
    if row.state == "running":
        result = recorder.good_since(STREAM, begun_at)
        return None if result is None else result.at
    return next((c.at for c in list(recorder.changes[STREAM]) if c.at >= begun_at and c.state == row.state
                 and c.reason in row.reasons), None)  # fmt: skip


def _back(bed: Bed, seen: Seen) -> float | None:
    """The first good result after the fault; after a loss, of the connection that came after it."""
    row, recorder = bed.case.row, bed.recorder
    if row.signs == "readiness" and not bed.ready():
        return None
    stream = STREAM if row.camera != "none" else WITNESSES[0]
    since = seen.ended_at
    if row.signs == "stream" and row.state == "backoff":
        state = recorder.state(STREAM)
        if state is None or state.state != "running" or seen.shown_at is None or state.at < seen.shown_at:
            return None
        since = max(since, state.at) if state.at > seen.ended_at else state.at
    result = recorder.good_since(stream, since)
    return None if result is None else max(result.at, seen.ended_at)
