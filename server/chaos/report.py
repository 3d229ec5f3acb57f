"""The matrix and what was measured, for terminals and as a page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.chaos import matrix
from server.chaos.matrix import MATRIX, Case, Row

_WIDTH = 34


def listing(cases: Sequence[Case]) -> str:
    """One line a case: what is done and what is expected."""
    return "\n".join(f"{case.name:<{_WIDTH}} {expected(case.row):<34} {case.row.what}" for case in cases)


def expected(row: Row) -> str:
    """What the server must show, in few words."""
    if row.signs == "readiness":
        return "not ready, results of status error"
    if row.signs == "act":
        return "goes on"
    if row.signs == "ledger":
        return f"connected, {', '.join(row.drops)}"
    text = row.state if not row.reasons else f"{row.state}: {' or '.join(row.reasons)}"
    return text + (" (may be opened anew)" if row.reconnects else "")


def line_of(line: Mapping[str, Any]) -> str:
    """One case's outcome on one line, faults below it."""
    if line.get("skipped"):
        return f"skipped: {line['skipped']}"
    if "frames" not in line:
        return "FAILED\n" + "\n".join(f"    {fault}" for fault in line["faults"])
    parts = ["ok" if line["ok"] else "FAILED", f"seen {_s(line['seen_s'])}", f"back {_s(line['back_s'])}"]
    parts.append("witness p99 " + "/".join(_s(value) for value in line["witness_ms"]) + " ms")
    parts.append(f"{line['seconds']:.0f} s")
    return "\n".join([", ".join(parts), *(f"    {fault}" for fault in line["faults"])])


def summary(report: Mapping[str, Any]) -> str:
    """Counts of the whole run."""
    lines = report["cases"]
    ran = [line for line in lines if not line.get("skipped")]
    failed = [line["case"] for line in ran if not line["ok"]]
    skipped = [f"{line['case']} ({line['skipped']})" for line in lines if line.get("skipped")]
    text = [
        f"{len(ran)} cases, {len(failed)} failed, {len(skipped)} skipped, {report.get('seconds', 0):.0f} s",
        f"{_sum(ran, 'frames')} frames received, {_sum(ran, 'completed')} completed; "
        f"{_sum(ran, 'unbalanced')} of {_sum(ran, 'reads')} reads of ledgers unbalanced",
    ]
    text += [f"failed: {name}" for name in failed] + [f"skipped: {name}" for name in skipped]
    return "\n".join(text)


_HEAD = f"""\
# Faults

What goes wrong with cameras, engines, disks and clients, and what the server makes of it. Each line was done to a real
server by `python -m server.chaos`, with two healthy cameras beside it. This page is written by that command.

The server's settings during the run: open time-out {matrix.OPEN_S:g} s, read time-out {matrix.READ_S:g} s, back-off
{matrix.BACKOFF_S:g} to {matrix.BACKOFF_MAX_S:g} s. Bounds:

- **seen**: a stall within the read time-out + 1 s, an address that does not answer within the open time-out + 1 s,
  anything that shows by itself within {matrix.AT_ONCE_S:g} s; exceptions stand in the table.
- **back**: from the end of the fault to the next result, 1.5 x the longest pause that was announced + 2 s.
- **witness**: p99 latency of the healthy cameras before, during and after the fault. During must not be above 1.1 x
  before and after together + 10 ms. Where it was, the case was run once more, and that is said.
- **always**: the ledgers balance at every read, every frame ends as completed or dropped for a reason, each completed
  frame was told to the client, no result is of a torn picture, no errors, no traceback in the server's log.
"""


def markdown(report: Mapping[str, Any]) -> str:
    """The page docs/faults.md."""
    lines = {line["case"]: line for line in report["cases"]}
    what = report["machine"]
    out = [_HEAD]
    ran = [line for line in report["cases"] if not line.get("skipped")]
    strict = [line for line in ran if not _measured(line)]
    out.append(
        f"Measured on {what['cpu']}, {what['cores']} cores, Linux {what['kernel']}: {len(ran)} cases, "
        f"{sum(not line['ok'] for line in ran)} failed; {_sum(ran, 'frames')} frames received, "
        f"{_sum(ran, 'unbalanced')} of {_sum(ran, 'reads')} reads of ledgers unbalanced, "
        f"{_sum(strict, 'torn')} results of torn pictures where none is allowed.\n"
    )
    out.append(
        f"Healthy cameras were watched for {report['phase_s']:g} s before, during and after each fault. "
        "Cases may be of an earlier run (`--resume`); load average at the begin "
        f"of the last run: {what['load_average_at_begin']:.1f}.\n"
    )
    if (most := report.get("hold_at_most_s")) is not None:
        out.append(f"No fault lasted longer than {most:g} s (`--hold-at-most`).\n")
    out.append("| fault | over | expected | seen (bound) | back (bound) | dropped | witness p99, ms | |")
    out.append("|---|---|---|---|---|---|---|---|")
    for row in MATRIX:
        for case in matrix.cases((row,)):
            if (line := lines.get(case.name)) is not None:
                out.append(_row(case, line))
    notes = [_note(line) for line in ran if line.get("notes")]
    faults = [f"- **{line['case']}**: {fault}" for line in ran for fault in line["faults"]]
    if faults:
        out += ["\n## Not as it should be\n", *faults]
    if notes:
        out += ["\n## Measured besides\n", *notes]
    return "\n".join(out) + "\n"


def _row(case: Case, line: Mapping[str, Any]) -> str:
    row = case.row
    over = f"{case.transport}, {case.codec}" + (", gst-rtsp-server" if row.camera == "gst" else "")
    first = f"`{row.fault}`: {row.what}"
    if line.get("skipped"):
        return f"| {first} | {over} | {expected(row)} | | | | | skipped: {line['skipped']} |"
    if "frames" not in line:
        return f"| {first} | {over} | {expected(row)} | | | | | not run |"
    dropped = ", ".join(f"{name} {count}" for name, count in sorted(line["dropped"].items())) or "none"
    witness = " / ".join(_s(value) for value in line["witness_ms"]) if row.witness else "shared"
    repeated = "" if "repeated" not in line else f"; first run {' / '.join(map(_s, line['repeated']['witness_ms']))}"
    back = "" if line["back_bound_s"] is None else f"{_s(line['back_s'])} ({_s(line['back_bound_s'])})"
    cells = [
        first, over, expected(row), f"{_s(line['seen_s'])} ({_s(line['seen_bound_s'])})", back, dropped,
        witness + repeated, "ok" if line["ok"] else "**failed**",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _note(line: Mapping[str, Any]) -> str:
    return f"- `{line['case']}`: " + ", ".join(f"{name} {value}" for name, value in line["notes"].items())


def _measured(line: Mapping[str, Any]) -> bool:
    return any(row.fault == line["fault"] and row.torn == "measured" for row in MATRIX)


def _sum(lines: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(line.get(name, 0) for line in lines)


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
