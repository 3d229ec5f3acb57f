"""The parts alone, each in a process of its own with the machine to itself: the engine, and decoder with letterbox.

`python -m server.bench.baseline engine|video JSON` prints one JSON object; `measure` runs that and reads it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from yolov9.bundle import Bundle, BundleError
from yolov9.engines import Engine, EngineError, choose
from yolov9.geometry import input_shape
from yolov9.letterbox import Letterboxer

_LIMIT_S = 300.0
_WARM_UP = 5
"""Calls before the clock starts: first calls compile, allocate and fill caches."""


class BaselineError(Exception):
    """A part could not be measured: one sentence with the cause."""


@dataclass(frozen=True, slots=True)
class EngineAlone:
    """The engine as the worker makes it, fed back to back by as many threads as it says pay, with nothing after it."""

    engine: str
    precision: str
    device: str
    why: str
    shape: tuple[int, int]
    """(height, width)"""
    batch: int
    parallel: int
    images: int
    images_per_s: float
    cpu_s_per_image: float


@dataclass(frozen=True, slots=True)
class VideoAlone:
    """One thread that decodes the clip and letterboxes every frame, as fast as it goes."""

    codec: str
    width: int
    height: int
    frames: int
    frames_per_s: float
    cpu_s_per_frame: float


def engine_alone(
    bundle: str, engine: str, precision: str, threads: int | None, clip: str, seconds: float, cache_dir: str | None
) -> EngineAlone:
    """Pictures come from the clip. EngineError, BundleError, av.FFmpegError."""
    loaded = Bundle.load(bundle)
    choice = choose(loaded, engine, precision, threads=threads, cache_dir=cache_dir)
    runner = choice.engine
    try:
        images = _pictures(clip, loaded.input_size, max(1, runner.max_batch))
        shape = images[0].shape[:2]
        runner.prepare(*shape)
        best = max((_feed(runner, images[:batch], seconds) for batch in sorted({1, len(images)})), key=lambda r: r[1])
        count, rate, cpu, batch = best
        return EngineAlone(
            engine=runner.name, precision=runner.precision, device=runner.device, why=choice.why, shape=shape,
            batch=batch, parallel=runner.parallel, images=count, images_per_s=rate, cpu_s_per_image=cpu,
        )  # fmt: skip
    finally:
        runner.close()


def _feed(engine: Engine, images: list[npt.NDArray[np.uint8]], seconds: float) -> tuple[int, float, float, int]:
    """(images, images/s, CPU seconds an image, batch)"""
    for _ in range(_WARM_UP):
        engine.infer(images)
    counts = [0] * engine.parallel
    begin, cpu = time.monotonic(), time.process_time()
    deadline = begin + seconds

    def run(index: int) -> None:
        while time.monotonic() < deadline:
            engine.infer(images)
            counts[index] += len(images)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(engine.parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(counts)
    if not total:
        raise EngineError("an engine's thread ended without a single image")
    return total, total / (time.monotonic() - begin), (time.process_time() - cpu) / total, len(images)


def _pictures(clip: str, input_size: int, count: int) -> list[npt.NDArray[np.uint8]]:
    letterboxer = Letterboxer()
    images: list[npt.NDArray[np.uint8]] = []
    with av.open(clip) as container:
        for frame in container.decode(video=0):
            height, width = input_shape(input_size, frame.width, frame.height)
            images.append(np.empty((height, width, 3), np.uint8))
            letterboxer.write(frame, images[-1])
            if len(images) == count:
                break
    if not images:
        raise BaselineError(f"{clip} has no pictures")
    return images * (count // len(images)) or images


def video_alone(clip: str, input_size: int, seconds: float) -> VideoAlone:
    """Whole turns through the clip until the time is over. av.FFmpegError."""
    letterboxer = Letterboxer()
    frames = 0
    out: npt.NDArray[np.uint8] | None = None
    begin, cpu = time.monotonic(), time.process_time()
    while frames == 0 or time.monotonic() - begin < seconds:
        with av.open(clip) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1  # as for live streams: threads of the decoder hold frames back
            before = frames
            for frame in container.decode(stream):
                if out is None:
                    height, width = input_shape(input_size, frame.width, frame.height)
                    out = np.empty((height, width, 3), np.uint8)
                letterboxer.write(frame, out)
                frames += 1
            codec, size = stream.codec_context.name, (stream.codec_context.width, stream.codec_context.height)
        if frames == before:
            raise BaselineError(f"{clip} has no pictures")
    wall, used = time.monotonic() - begin, time.process_time() - cpu
    return VideoAlone(codec, *size, frames, frames / wall, used / frames)


def measure(kind: str, **arguments: Any) -> dict[str, Any]:
    """Run one of the two in a fresh process, so that its threads and memory are gone when the server starts.

    `kind`: engine (arguments of `engine_alone`) or video (of `video_alone`). BaselineError."""
    command = [sys.executable, "-m", "server.bench.baseline", kind, json.dumps(arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BaselineError(f"{kind} alone took longer than {_LIMIT_S:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise BaselineError(f"{kind} alone: {lines[-1] if lines else f'exit status {done.returncode}'}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        result = engine_alone(**arguments) if kind == "engine" else video_alone(**arguments)
    except (BundleError, EngineError, BaselineError, av.FFmpegError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
