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
from server.bench.report import mean, summarise, table
from server.bench.run import Plan, run
from server.testing.clip import CLOCK_HZ, ClipError, load_clip
from server.testing.footage import FootageMissing, bikes
from server.testing.synthetic import reencode
from yolov9.bundle import Bundle, BundleError
from yolov9.packaged import DEFAULT, ModelNotFound, resolve


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.bench", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--cameras", type=int, metavar="N", help="RTSP cameras (default 4; 0 with --every-frame)")
    p.add_argument("--fps", type=float, metavar="F", help="frames a second of each camera (default: the clip's own)")
    p.add_argument("--clip", type=Path, help="H.264 or H.265 file that the cameras play (default: demo footage)")
    p.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="encode clip or file anew first, as cameras do: this size, a keyframe each second, no B-frames",
    )
    p.add_argument("--transport", choices=["tcp", "udp"], default="tcp", help="RTSP transport (default tcp)")
    p.add_argument("--every-frame", type=Path, metavar="FILE", help="throughput: this file, every frame of it")
    p.add_argument("--seconds", type=float, default=30.0, metavar="S", help="how long to measure (default 30)")
    p.add_argument("--warm-up", type=float, default=3.0, metavar="S", help="from the last first result on (default 3)")
    p.add_argument("--alone-seconds", type=float, default=5.0, metavar="S", help="for each part alone (default 5)")
    p.add_argument(
        "--again", action="store_true", help="measure the parts alone after the server too, and take the mean"
    )
    p.add_argument("--model", default=DEFAULT, metavar="BUNDLE|NAME", help=f"model (default {DEFAULT})")
    p.add_argument("--engine", default="auto", help="as for the server")
    p.add_argument("--precision", default="auto", help="as for the server")
    p.add_argument("--threads", type=int, help="as for the server")
    p.add_argument("--server", metavar="URL", help="a server that runs already, with the same model and engine")
    p.add_argument("--server-pid", type=int, metavar="PID", help="its process: for CPU and memory")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    p.add_argument("--log", type=Path, metavar="FILE", help="the server's log (default: thrown away)")
    return p


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) % 2 == 0 and int(height) % 2 == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in even numbers")
    return int(width), int(height)


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
    except (BenchError, BaselineError, ClipError, FootageMissing, ModelNotFound, BundleError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """One run from begin to end. BenchError, BaselineError and what its inputs raise."""
    bundle = Bundle.load(resolve(options.model))
    file = _clip(options.every_frame, options.size) if options.every_frame else None
    camera_clip = _clip(options.clip, options.size) if options.cameras else None
    clip = file or camera_clip
    assert clip is not None, "main asks for one of the two"
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "server.bench", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "model": {"name": bundle.name, "hash": bundle.hash, "input_size": bundle.input_size},
        "clip": describe(clip),
    }
    with tempfile.TemporaryDirectory(prefix="yolov9-bench-") as folder:
        cache = Path(folder, "engines")
        engine, video = _alone(options, bundle, clip, cache)
        report |= {"engine_alone": engine, "video_alone": video}
        with contextlib.ExitStack() as stack:
            cameras = None
            if camera_clip is not None:
                cameras = stack.enter_context(running_cameras(options.cameras, camera_clip, options.fps))
            server = _server(options, bundle, Path(folder), file, stack)
            report["engine_of_server"] = server.model()
            measured = run(server, Plan(cameras, options.transport, file, options.warm_up, options.seconds))
        if options.again:
            after = _alone(options, bundle, clip, cache)
            report |= {"engine_alone_after": after[0], "video_alone_after": after[1]}
            engine, video = mean(engine, after[0]), mean(video, after[1])
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


def _clip(path: Path | None, size: tuple[int, int] | None) -> Path:
    """The clip to play: the one named, or the demo footage; encoded anew, if asked for. The footage always is: it has
    B-frames, which cameras do not send, and which a decoder has to hold back."""
    clip = (path or bikes()).resolve()
    loaded = load_clip(clip)
    if size is None and path is not None:
        return clip
    width, height = size or (loaded.width, loaded.height)
    _say(f"encoding {clip.name} anew ...")
    return reencode(
        clip, width=width, height=height, codec="hevc" if loaded.codec == "hevc" else "h264", gop=round(loaded.fps)
    )


def describe(path: Path) -> dict[str, Any]:
    """What a clip is. `reorder_ms`: how long a decoder must hold frames back to put B-frames in order."""
    clip = load_clip(path)
    reorder = max(frame.pts - frame.dts for frame in clip.frames)
    return {
        "name": path.name, "codec": clip.codec, "width": clip.width, "height": clip.height, "fps": clip.fps,
        "frames": len(clip.frames), "reorder_ms": reorder * 1000 / CLOCK_HZ,
    }  # fmt: skip


def _server(
    options: argparse.Namespace, bundle: Bundle, folder: Path, file: Path | None, stack: contextlib.ExitStack
) -> Server:
    if options.server:
        return Server(options.server, options.server_pid, os.environ.get("YOLOV9_TOKEN"))
    _say("the server ...")
    arguments = ["--model", str(bundle.path), "--data", str(folder), "--engine", options.engine]
    arguments += ["--precision", options.precision]
    if options.threads is not None:
        arguments += ["--threads", str(options.threads)]
    if file is not None:
        arguments += ["--media", str(file.parent)]
    return stack.enter_context(running_server(arguments, options.log or Path(os.devnull)))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
