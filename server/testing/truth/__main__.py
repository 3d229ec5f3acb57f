"""Whether results belong to the frames that they claim, and state their times truly: `python -m server.testing.truth`.

python -m server.testing.truth                          the whole matrix
python -m server.testing.truth --only ffmpeg --seconds 30 --json truth.json
python -m server.testing.truth compare                  our RTSP client and libavformat's, side by side
python -m server.testing.truth flips                    how many flipped bits are noticed
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.bench.machine import machine, versions
from server.bench.processes import BenchError
from server.testing.processes import gst_missing
from server.testing.truth.cases import Case, Outcome, matrix, run
from server.testing.truth.compare import compare
from server.testing.truth.flips import flips
from server.testing.truth.judge import TOLERANCE_S, middle, worst
from server.testing.truth.rig import running_rig


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.testing.truth", description=(__doc__ or "").splitlines()[0])
    p.add_argument("what", nargs="?", choices=["matrix", "compare", "flips"], default="matrix")
    p.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    p.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for each case (default 10)")
    p.add_argument("--at-once", type=int, default=4, metavar="N", help="cases side by side (default 4)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    p.add_argument("--log", type=Path, metavar="FILE", help="the server's log (default: thrown away)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all is true, 1 if something is not or cannot be measured, 2 for bad usage."""
    command = parser()
    options = command.parse_args(argv)
    if options.seconds <= 0 or options.at_once < 1:
        command.error("--seconds must be above 0 and --at-once at least 1")
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "server.testing.truth", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(),
        "versions": versions(),
    }
    try:
        good = _MODES[options.what](options, report)
    except BenchError as error:
        print(f"truth: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if good else 1


def _matrix(options: argparse.Namespace, report: dict[str, Any]) -> bool:
    cases = [case for case in matrix() if options.only in case.name]
    if missing := gst_missing():
        print(f"truth: without gst-rtsp-server: {missing}", file=sys.stderr)
        cases = [case for case in cases if case.sender != "gst"]
    rows = report["cases"] = []
    print("| case | results | wrong | torn | latency off, p50 / worst | capture time off, worst | dropped |")
    print("|---|---|---|---|---|---|---|")
    good = True
    with running_rig(log=options.log) as rig:
        for start in range(0, len(cases), options.at_once):
            for outcome in run(rig, cases[start : start + options.at_once], options.seconds):
                rows.append(_row(outcome))
                print(_line(rows[-1]), flush=True)
                if outcome.held_up_s > TOLERANCE_S:
                    busy = f"the machine is busy (a thread waited {outcome.held_up_s * 1e3:.0f} ms)"
                    print(f"truth: {outcome.case.name}: {busy}: only medians of latencies are judged", file=sys.stderr)
                for fault in outcome.faults:
                    print(f"truth: {outcome.case.name}: {fault}", file=sys.stderr)
                good = good and not outcome.faults
    total = report["total"] = {name: sum(row[name] for row in rows) for name in ("results", "wrong", "torn", "sent")}
    print(f"\n{len(rows)} cases: {total['results']} results, {total['wrong']} wrong, {total['torn']} torn")
    return good


def _row(outcome: Outcome) -> dict[str, Any]:
    case: Case = outcome.case
    verdict = outcome.verdict
    return {
        "case": case.name,
        **dataclasses.asdict(case),
        "sent": outcome.sent,
        "results": verdict.results,
        "wrong": len(verdict.wrong),
        "torn": verdict.torn,
        "latency_error_ms_p50": _ms(middle(verdict.latency_errors)),
        "latency_error_ms_worst": _ms(worst(verdict.latency_errors)),
        "capture_times": len(verdict.capture_errors),
        "capture_error_ms_worst": _ms(worst(verdict.capture_errors)) if verdict.capture_errors else None,
        "held_up_ms": _ms(outcome.held_up_s),
        "ledger": outcome.ledger,
        "faults": outcome.faults,
    }


def _line(row: dict[str, Any]) -> str:
    capture = "not stated" if row["capture_error_ms_worst"] is None else f"{row['capture_error_ms_worst']:+.1f} ms"
    dropped = ", ".join(
        f"{n} {reason}" for reasons in row["ledger"]["dropped"].values() for reason, n in reasons.items()
    )
    latency = f"{row['latency_error_ms_p50'] or 0:+.1f} / {row['latency_error_ms_worst']:+.1f} ms"
    return (
        f"| {row['case']} | {row['results']} | {row['wrong']} | {row['torn']} | {latency} | {capture} "
        f"| {dropped or 'none'} |"
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)


def _compare(options: argparse.Namespace, report: dict[str, Any]) -> bool:
    with running_rig(log=options.log) as rig:
        report["compare"] = rows = compare(rig, options.seconds)
    print("| codec | frames | native earlier, p50 (p5 to p95) | frame intervals | first packet to result, p50 "
          "| decode alone | inference | what remains |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for row in rows:
        print(
            f"| {row['codec']} | {row['frames']} | {row['earlier_ms_p50']:.1f} ms "
            f"({row['earlier_ms_p5']:.1f} to {row['earlier_ms_p95']:.1f}) | {row['intervals']:.3f} "
            f"| {row['first_packet_to_result_ms']:.2f} ms | {row['decode_ms']:.2f} ms | {row['inference_ms']:.2f} ms "
            f"| {row['remains_ms']:.2f} ms |"
        )
    return True


def _flips(options: argparse.Namespace, report: dict[str, Any]) -> bool:
    report["flips"] = rows = flips()
    print("| stream | damage | frames hit | noticed and dropped | shown, unchanged | shown, changed | share noticed |"
          "\n|---|---|---|---|---|---|---|")  # fmt: skip
    for row in rows:
        print(
            f"| {row['stream']} | {row['damage']} | {row['hit']} | {row['noticed']} | {row['harmless']} "
            f"| {row['missed']} | {row['rate']:.1%} |"
        )
    return True


_MODES = {"matrix": _matrix, "compare": _compare, "flips": _flips}

if __name__ == "__main__":
    sys.exit(main())
