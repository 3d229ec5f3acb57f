"""What was seen, held against the table. Pure.

Times are CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.bench.report import balances, percentile
from server.chaos.matrix import Row

WITNESS_RATIO = 1.1
WITNESS_MARGIN_MS = 10.0
"""p99 of a healthy camera may move by so much, and no more, while another one suffers."""
_RECOVERY_RATIO = 1.5
_RECOVERY_MARGIN_S = 2.0
_STARTING = frozenset(("ingest/awaiting_keyframe", "ingest/disconnected", "ingest/not_shown", "ingest/stopped"))
"""Any connection may begin and end in the middle of a group of pictures."""
_SHED = ("batching/", "ingest/no_slot", "ingest/overload")
"""What a busy machine sheds."""
_HARM = frozenset(("ingest/damaged", "ingest/decode_error"))


@dataclass(frozen=True, slots=True)
class Change:
    """A message of the type `state`."""

    at: float
    state: str
    reason: str | None
    retry_in_s: float | None


@dataclass(slots=True)
class Seen:
    """All that was observed of one case."""

    begun_at: float = 0.0
    ended_at: float = 0.0
    changes: list[Change] = field(default_factory=list)
    """Of the stream that suffers."""
    shown_at: float | None = None
    """When what the row expects was first seen after `begun_at`."""
    back_at: float | None = None
    """The first good result after `ended_at`."""
    results: int = 0
    """Good results of the stream while the fault lasted."""
    torn: int = 0
    """Results of pictures that cannot be read, of any stream."""
    torn_of: int = 0
    """Good results, of any stream."""
    errors: int = 0
    """Results of status error, of any stream."""
    reads: int = 0
    unbalanced: int = 0
    final: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """stream -> ledger, once nothing is under way"""
    told: dict[str, int] = field(default_factory=dict)
    """stream -> good results and messages that the client missed"""
    before: list[float] = field(default_factory=list)
    """Totals of the healthy cameras in ms."""
    during: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What the act or the bed found wrong, in sentences."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the act measured."""
    log: list[str] = field(default_factory=list)
    """Lines of the server's log that tell of a programming error."""


def judge(row: Row, seen: Seen) -> list[str]:
    """What is not as the table says, one sentence each; empty if all is well. Witnesses: see `witness_moved`."""
    found = list(seen.complaints)
    found += _state(row, seen)
    found += _return(row, seen)
    found += _ledger(row, seen)
    if row.torn == "none" and seen.torn:
        found.append(f"{seen.torn} of {seen.torn_of} results are of torn pictures")
    if not row.errors and seen.errors:
        found.append(f"{seen.errors} results of status error")
    if not row.errors:  # an engine's exception is logged with its traceback
        found += [f"the server's log: {line}" for line in seen.log]
    return found


def recovery_bound_s(row: Row, seen: Seen) -> float | None:
    """How long the return may take. The pause is the longest that was announced and concerns the return."""
    if row.back == "never":
        return None
    if row.back == "soon" or row.state == "running":
        return row.soon_s
    pauses = [change.retry_in_s or 0.0 for change in seen.changes if change.state == "backoff"]
    return _RECOVERY_RATIO * max(pauses, default=0.0) + _RECOVERY_MARGIN_S


def witness_p99(seen: Seen) -> tuple[float | None, float | None, float | None]:
    """p99 in ms before, during and after."""
    return percentile(seen.before, 99), percentile(seen.during, 99), percentile(seen.after, 99)


def witness_moved(seen: Seen) -> str | None:
    """Whether healthy cameras were late while the fault lasted: against their own p99 without it, before and after."""
    calm = percentile([*seen.before, *seen.after], 99)
    during = percentile(seen.during, 99)
    if calm is None or during is None:
        return "the healthy cameras gave no results"
    bound = WITNESS_RATIO * calm + WITNESS_MARGIN_MS
    if during <= bound:
        return None
    return f"p99 of the healthy cameras rose from {calm:.1f} to {during:.1f} ms, above {bound:.1f} ms"


def _state(row: Row, seen: Seen) -> list[str]:
    if seen.shown_at is None:
        told = ", ".join(f"{c.state}/{c.reason}" for c in seen.changes if c.at >= seen.begun_at) or "nothing"
        wanted = f"{row.state} {'|'.join(row.reasons)}".strip() if row.signs == "stream" else f"a sign ({row.signs})"
        return [f"{wanted} was not seen; the stream told: {told}"]
    found = []
    late = seen.shown_at - seen.begun_at
    if late > row.seen_s:
        found.append(f"{row.state} was seen after {late:.2f} s, not within {row.seen_s:g} s")
    losses = [c for c in seen.changes if c.state in ("backoff", "failed") and c.at >= seen.begun_at]
    if row.signs != "act" and row.state == "running" and losses and not row.reconnects:
        found.append(f"the stream was lost: {losses[0].reason}")
    return found


def _return(row: Row, seen: Seen) -> list[str]:
    bound = recovery_bound_s(row, seen)
    if bound is None:
        return []
    if seen.back_at is None:
        return ["no result came after the fault"]
    took = seen.back_at - seen.ended_at
    return [f"the first result came after {took:.2f} s, not within {bound:.2f} s"] if took > bound else []


def _ledger(row: Row, seen: Seen) -> list[str]:
    found = []
    if seen.unbalanced:
        found.append(f"{seen.unbalanced} of {seen.reads} reads of ledgers do not balance")
    for stream, ledger in seen.final.items():
        if not balances(ledger) or ledger["in_flight"]:
            found.append(f"{stream}: {ledger['in_flight']} frames are unaccounted for at the end")
        if (told := seen.told.get(stream)) is not None and told != ledger["completed"]:
            found.append(f"{stream}: {ledger['completed']} frames completed, {told} told to the client")
    drops = {drop for ledger in seen.final.values() for drop in flat(ledger)}
    found += [f"the ledger shows no {drop}" for drop in row.drops if drop not in drops]
    harmed = [drop for drop in drops & _HARM if drop not in row.drops]
    if harmed and not _may_harm(row):
        found.append(f"frames were dropped that nothing had harmed: {', '.join(sorted(harmed))}")
    strange = [
        drop for drop in drops
        if drop not in _STARTING | _HARM and drop not in row.drops and not drop.startswith(_SHED)
        and not (row.errors and drop.startswith("inference/")) and drop != "ingest/process_lost"
    ]  # fmt: skip
    if strange:
        found.append(f"frames were dropped for a reason that does not belong here: {', '.join(sorted(strange))}")
    return found


def _may_harm(row: Row) -> bool:
    """A fault that damages streams, or that cuts the connection within a frame."""
    return row.state != "running" or row.torn == "measured" or bool(row.drops) or row.reconnects or row.harms


def flat(ledger: Mapping[str, Any]) -> dict[str, int]:
    """stage/reason -> frames"""
    return {
        f"{stage}/{reason}": count for stage, reasons in ledger["dropped"].items() for reason, count in reasons.items()
    }


def worst_window(times: Sequence[float], width_s: float) -> int:
    """The most of these instants that lie within any window of that width."""
    ordered = sorted(times)
    most = first = 0
    for last, at in enumerate(ordered):
        while at - ordered[first] > width_s:
            first += 1
        most = max(most, last - first + 1)
    return most
