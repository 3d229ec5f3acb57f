"""`python -m server.chaos`: does to a real server what goes wrong in the world, and judges what it makes of it.

    python -m server.chaos --list
    python -m server.chaos --only fin --only loss5-udp-hevc
    python -m server.chaos --json chaos.json --resume chaos.json --markdown docs/faults.md

Each case has a server of its own, two healthy cameras as witnesses, and a model that reads what the pictures bear. The
whole matrix takes well over half an hour; with `--resume` cases that were fine are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from server.bench.machine import machine, versions
from server.chaos import namespace
from server.chaos.matrix import Case, chosen
from server.chaos.report import line_of, listing, markdown, summary
from server.chaos.run import Plan, headline, run
from server.testing.processes import gst_missing
from server.testing.truth.clips import HEIGHT, WIDTH
from server.testing.truth.model import truth_bundle

_CASE_S = 600.0
"""For a case in a namespace, which is a process of its own."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.chaos", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--list", action="store_true", help="show the matrix and do nothing")
    p.add_argument("--only", action="append", default=[], metavar="FAULT", help="this fault or case; may be repeated")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after each case")
    p.add_argument("--resume", type=Path, metavar="FILE", help="cases that are fine in this JSON are not run again")
    p.add_argument("--markdown", type=Path, metavar="FILE", help="write the matrix with what was measured there")
    p.add_argument("--engine", default="auto", help="as for the server")
    p.add_argument(
        "--phase", type=float, default=6.0, metavar="S", help="witnesses: seconds before, during, after (default 6)"
    )
    p.add_argument("--damaged", type=Path, metavar="FOLDER", help="play its damaged *.264 and *.265 files too")
    p.add_argument("--hold-at-most", type=float, metavar="S", help="cut long faults (5 minutes of flapping) short")
    p.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> int:
    """0 if every case is as the matrix says, 1 if one is not, 2 for bad usage."""
    command = parser()
    options = command.parse_args(argv)
    try:
        cases = chosen(options.only)
        done = _resumed(options.resume)
    except (ValueError, OSError) as error:
        command.error(str(error))
    if options.list:
        print(listing(cases))
        return 0
    if options.inside:
        namespace.set_up()
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "phase_s": options.phase,
        "hold_at_most_s": options.hold_at_most,
        "cases": [],
    }
    began = time.monotonic()
    lines = {line["case"]: line for line in done}
    try:
        with tempfile.TemporaryDirectory(prefix="yolov9-chaos-model-") as folder:
            model = truth_bundle(Path(folder, "model"), WIDTH, HEIGHT).path
            plan = Plan(model, options.engine, options.phase, options.damaged, options.hold_at_most)
            for number, case in enumerate(cases, 1):
                if lines.get(case.name, {}).get("ok"):
                    continue
                print(f"[{number}/{len(cases)}] {case.name} ...", end=" ", file=sys.stderr, flush=True)
                lines[case.name] = line = _run(case, plan, options)
                print(line_of(line), file=sys.stderr, flush=True)
                _write(options, report, lines)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    report["seconds"] = round(time.monotonic() - began, 1)
    _write(options, report, lines)
    if not options.inside:
        print(summary(report))
    return 1 if any(not line["ok"] for line in report["cases"] if not line.get("skipped")) else 0


def _run(case: Case, plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    if (reason := _missing(case)) is not None and not options.inside:
        return headline(case) | {"skipped": reason, "ok": False, "faults": []}
    if case.row.needs == "nothing" or options.inside:
        return run(case, plan)
    return _run_inside(case, plan)


def _missing(case: Case) -> str | None:
    """Why a case cannot be run on this machine."""
    if case.row.camera == "gst" and (reason := gst_missing()):
        return reason
    return None if case.row.needs == "nothing" else namespace.missing(case.row.needs)


def _run_inside(case: Case, plan: Plan) -> dict[str, Any]:
    """The case in a process in namespaces of its own."""
    with tempfile.TemporaryDirectory(prefix="yolov9-chaos-inside-") as folder:
        answer = Path(folder, "case.json")
        command = [sys.executable, "-m", "server.chaos", "--inside", "--only", case.name, "--json", str(answer)]
        command += ["--engine", plan.engine, "--phase", f"{plan.phase_s:g}"]
        if plan.hold_at_most_s is not None:
            command += ["--hold-at-most", f"{plan.hold_at_most_s:g}"]
        said = ""
        try:
            said = subprocess.run(
                namespace.command(command), capture_output=True, text=True, timeout=_CASE_S, check=False
            ).stderr
            line: dict[str, Any] = json.loads(answer.read_text())["cases"][0]
        except (subprocess.TimeoutExpired, OSError, ValueError, LookupError) as error:
            why = f"the case could not be run in a namespace: {error}; {said[-500:]}"
            return headline(case) | {"faults": [why], "ok": False}
    return line


def _resumed(path: Path | None) -> list[dict[str, Any]]:
    """The cases of an earlier report; none if the file is not there yet. ValueError, OSError."""
    if path is None or not path.exists():
        return []
    lines = json.loads(path.read_text())["cases"]
    assert isinstance(lines, list)
    return lines


def _write(options: argparse.Namespace, report: dict[str, Any], lines: dict[str, dict[str, Any]]) -> None:
    report["cases"] = list(lines.values())
    if options.json is not None:
        part = options.json.with_suffix(".part")
        part.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(part, options.json)
    if options.markdown is not None:
        options.markdown.write_text(markdown(report))
