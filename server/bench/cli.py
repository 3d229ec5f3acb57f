"""`python -m server.bench`: real cameras on loopback against the server, and its parts alone, in one run.

    python -m server.bench --model BUNDLE --cameras 8 --fps 25 --seconds 60 --json bench.json
    python -m server.bench --model BUNDLE --every-frame clip720p.mp4

First the engine alone and the decoder alone, then the server with everything. Shares and ratios compare figures of one
run: machines differ, and a shared one differs from hour to hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from server.bench.baseline import BaselineError, measure
from server.bench.machine import machine, versions
from server.bench.processes import BenchError, Server, running_cameras, running_server
from server.bench.report import summarise, table
from server.bench.run import Plan, run
from server.testing.footage import FootageMissing, bikes
from yolov9.bundle import Bundle, BundleError
from yolov9.packaged import DEFAULT, ModelNotFound, resolve


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.bench", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--cameras", type=int, metavar="N", help="RTSP cameras (default 4; 0 with --every-frame)")
    p.add_argument("--fps", type=float, metavar="F", help="frames a second of each camera (default: the clip's own)")
    p.add_argument("--clip", type=Path, help="MP4 file, H.264 or H.265, that the cameras play (default: demo footage)")
    p.add_argument("--transport", choices=["tcp", "udp"], default="tcp", help="RTSP transport (default tcp)")
    p.add_argument("--every-frame", type=Path, metavar="FILE", help="throughput: this file, every frame of it")
    p.add_argument("--seconds", type=float, default=30.0, metavar="S", help="how long to measure (default 30)")
    p.add_argument("--warm-up", type=float, default=3.0, metavar="S", help="from the last first result on (default 3)")
    p.add_argument("--alone-seconds", type=float, default=5.0, metavar="S", help="for each part alone (default 5)")
    p.add_argument("--again", action="store_true", help="measure the parts alone after the server too: shows drift")
    p.add_argument("--model", default=DEFAULT, metavar="BUNDLE|NAME", help=f"model (default {DEFAULT})")
    p.add_argument("--engine", default="auto", help="as for the server")
    p.add_argument("--precision", default="auto", help="as for the server")
    p.add_argument("--threads", type=int, help="as for the server")
    p.add_argument("--server", metavar="URL", help="a server that runs already, with the same model and engine")
    p.add_argument("--server-pid", type=int, metavar="PID", help="its process: for CPU and memory")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    p.add_argument("--log", type=Path, metavar="FILE", help="the server's log (default: thrown away)")
    return p


def main(argv: list[str] | None = None) -> int:
    """0 after a run, 1 if it could not be made, 2 for bad usage."""
    command = parser()
    options = command.parse_args(argv)
    if options.cameras is None:
        options.cameras = 0 if options.every_frame else 4
    if options.cameras < 0 or options.seconds <= 0 or options.alone_seconds <= 0:
        command.error("--cameras, --seconds and --alone-seconds must not be negative or zero")
    if not options.cameras and not options.every_frame:
        command.error("nothing to do without --cameras and --every-frame")
    try:
        report = bench(options)
    except (BenchError, BaselineError, FootageMissing, ModelNotFound, BundleError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """One run from begin to end. BenchError, BaselineError and what its inputs raise."""
    bundle = Bundle.load(resolve(options.model))
    clip = (options.every_frame or options.clip or bikes()).resolve()
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "server.bench", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "model": {"name": bundle.name, "hash": bundle.hash, "input_size": bundle.input_size},
        "clip": clip.name,
    }
    with tempfile.TemporaryDirectory(prefix="yolov9-bench-") as folder:
        cache = Path(folder, "engines")
        engine, video = _alone(options, bundle, clip, cache)
        report |= {"engine_alone": engine, "video_alone": video}
        with contextlib.ExitStack() as stack:
            cameras = None
            if options.cameras:
                camera_clip = (options.clip or bikes()).resolve()
                cameras = stack.enter_context(running_cameras(options.cameras, camera_clip, options.fps))
            server = _server(options, bundle, Path(folder), stack)
            report["engine_of_server"] = server.model()
            plan = Plan(cameras, options.transport, options.every_frame, options.warm_up, options.seconds)
            measured = run(server, plan)
        if options.again:
            after = _alone(options, bundle, clip, cache)
            report |= {"engine_alone_after": after[0], "video_alone_after": after[1]}
    report["figures"] = summarise(measured, engine, video)
    return report


def _alone(
    options: argparse.Namespace, bundle: Bundle, clip: Path, cache: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    _say("the engine alone ...")
    engine = measure(
        "engine", bundle=str(bundle.path), engine=options.engine, precision=options.precision,
        threads=options.threads, clip=str(clip), seconds=options.alone_seconds, cache_dir=str(cache),
    )  # fmt: skip
    _say("decoder and letterbox alone ...")
    video = measure("video", clip=str(clip), input_size=bundle.input_size, seconds=options.alone_seconds)
    return engine, video


def _server(options: argparse.Namespace, bundle: Bundle, folder: Path, stack: contextlib.ExitStack) -> Server:
    if options.server:
        return Server(options.server, options.server_pid, os.environ.get("YOLOV9_TOKEN"))
    _say("the server ...")
    arguments = ["--model", str(bundle.path), "--data", str(folder), "--engine", options.engine]
    arguments += ["--precision", options.precision]
    if options.threads is not None:
        arguments += ["--threads", str(options.threads)]
    if options.every_frame:
        arguments += ["--media", str(options.every_frame.resolve().parent)]
    return stack.enter_context(running_server(arguments, options.log or Path(os.devnull)))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
