"""`python -m server.soak`: cameras with faults for a long time at an accelerated rate; fails on any trend.

    python -m server.soak --minutes 60 --cameras 8 --faults 300 --json soak.json --markdown soak.md

Every camera's connection, packets, clock and process are hurt again and again, streams are changed and removed, models
replaced, clients are slow or go; each time that nothing is under way, everything must be as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from server.bench.machine import machine, versions
from server.bench.processes import BenchError, Server, running_cameras, running_server
from server.chaos.recorder import Recorder
from server.soak.acts import Acts
from server.soak.report import markdown, summarise, table
from server.soak.run import Soak, Soaked
from server.soak.schedule import CAMERA_FAULTS, SERVER_FAULTS, plan
from server.testing.clip import ClipError
from server.testing.truth.clips import HEIGHT, WIDTH, pattern_clip
from server.testing.truth.model import truth_bundle
from yolov9.bundle import BundleError
from yolov9.packaged import ModelNotFound, resolve

_SETTINGS = {"open_timeout_s": 2.0, "read_timeout_s": 2.0, "backoff_initial_s": 0.5, "backoff_max_s": 4.0}
_OTHER = "other"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.soak", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--minutes", type=float, default=60.0, metavar="M", help="how long (default 60)")
    p.add_argument("--cameras", type=int, default=8, metavar="N", help="cameras (default 8)")
    p.add_argument("--fps", type=float, default=5.0, metavar="F", help="frames a second of each (default 5)")
    p.add_argument("--faults", type=int, default=300, metavar="N", help="faults in all (default 300)")
    p.add_argument("--seed", type=int, default=0, help="of the plan")
    p.add_argument("--without", action="append", default=[], choices=sorted(CAMERA_FAULTS | SERVER_FAULTS),
                   help="leave this fault out; may be repeated")  # fmt: skip
    p.add_argument("--model", metavar="BUNDLE|NAME", help="default: one that reads what the pictures bear")
    p.add_argument("--engine", default="auto", help="as for the server")
    p.add_argument("--threads", type=int, help="as for the server")
    p.add_argument("--sample", type=float, metavar="S", help="seconds between samples (default: a 500th, at least 0.5)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    p.add_argument("--markdown", type=Path, metavar="FILE", help="write a section for a page there")
    p.add_argument("--log", type=Path, metavar="FILE", help="keep the server's log there")
    return p


def main(argv: list[str] | None = None) -> int:
    """0 if nothing grew and nothing was lost, 1 if something did or the run could not be made, 2 for bad usage."""
    command = parser()
    options = command.parse_args(argv)
    if options.minutes <= 0 or options.cameras < 1 or options.fps <= 0 or options.faults < 0:
        command.error("--minutes, --cameras and --fps must be above zero, --faults not below")
    try:
        soaked = soak(options)
    except (BenchError, BundleError, ClipError, ModelNotFound, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "server.soak", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(), "versions": versions(), "cameras": options.cameras, "fps": options.fps,
        "seed": options.seed, "figures": summarise(soaked),
    }  # fmt: skip
    print(table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(markdown(report))
    return 1 if report["figures"]["faults"] else 0


def soak(options: argparse.Namespace) -> Soaked:
    """One run from begin to end. BenchError, and what its inputs raise."""
    seconds = options.minutes * 60
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yolov9-soak-")))
        bundle = truth_bundle(folder / "truth", WIDTH, HEIGHT).path if options.model is None else resolve(options.model)
        gop = max(1, round(options.fps))
        clip = pattern_clip(frames=10 * gop, fps=options.fps, gop=gop)
        larger = pattern_clip(frames=10 * gop, fps=options.fps, gop=gop, width=2 * WIDTH, height=2 * HEIGHT)
        cameras = stack.enter_context(running_cameras(options.cameras, clip, options.fps))
        log = options.log or folder / "server.log"
        server = stack.enter_context(running_server(_arguments(options, folder, bundle), log))
        recorder = stack.enter_context(Recorder(server, patterned=options.model is None))
        acts = Acts(server, cameras, clip, larger, _second_model(server, folder, bundle))
        without = options.without + ([] if acts.models else ["swap"])
        planned = plan(options.seed, seconds, options.cameras, options.faults, without)
        step = options.sample or max(0.5, seconds / 500)
        return Soak(server, cameras, recorder, acts, log).run(planned, seconds, step)


def _arguments(options: argparse.Namespace, folder: Path, bundle: Path) -> list[str]:
    config = folder / "server.yaml"
    config.write_text(yaml.safe_dump({**_SETTINGS, "model_folders": [str(folder)]}))
    arguments = ["--config", str(config), "--model", str(bundle), "--data", str(folder / "data")]
    arguments += ["--engine", options.engine]
    return arguments if options.threads is None else [*arguments, "--threads", str(options.threads)]


def _second_model(server: Server, folder: Path, bundle: Path) -> tuple[str, str] | None:
    """The same model under another name, to be changed to and back. None: the server takes no other, and says why."""
    copy = folder / _OTHER
    shutil.copytree(bundle, copy)
    try:
        server.ask("POST", "/models", {"path": os.fspath(copy), "name": _OTHER})
    except BenchError as error:
        print(f"soak: models are not replaced: {error}", file=sys.stderr)
        return None
    active = next(model["name"] for model in server.json("GET", "/models") if model["state"] == "active")
    return active, _OTHER
