"""`python -m yolov9.predict`: detections on images, folders and videos, as drawn pictures and as JSON.

Letterbox, engine and suppression are the server's own, so the results on a file equal those of a camera that shows it.
A bundle needs no PyTorch; a checkpoint is loaded by `yolov9.load`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import av
import numpy as np
from PIL import Image

from yolov9.commands import share
from yolov9.draw import draw_boxes
from yolov9.engines import EngineError
from yolov9.images import ImageError, read_image
from yolov9.letterbox import displayed_size
from yolov9.media import MediaError, Source, Video, VideoWriter, find, presentation_time
from yolov9.opening import ModelError, open_model
from yolov9.postprocess import PredictionError
from yolov9.predictor import Detections, PredictError, Predictor, Rgb

_PROGRESS_S = 2.0


class JsonList:
    """A JSON array that is written entry by entry, so that a long video needs no memory. It appears under its own name
    when it is complete, and it is complete however the run ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file: TextIO = self._part.open("w", encoding="utf-8")
        self._file.write("[")
        self._empty = True

    def append(self, entry: dict[str, Any]) -> None:
        self._file.write(("\n" if self._empty else ",\n") + json.dumps(entry, ensure_ascii=False))
        self._empty = False

    def close(self) -> None:
        self._file.write("\n]\n")
        self._file.close()
        self._part.replace(self._path)


class Run:
    """One call of the command: where its results go, and what it has done so far."""

    def __init__(self, predictor: Predictor, out: Path | None, results: JsonList | None) -> None:
        """`out`: folder for drawn pictures; None draws nothing."""
        self._predictor = predictor
        self._out = out
        self._results = results
        self._taken: set[str] = set()
        self.failures: list[str] = []
        self.images = self.videos = self.frames = 0

    def image(self, source: Source, position: str) -> None:
        try:
            image = read_image(source.address)
            began = time.perf_counter()
            found = self._predictor.image(image)
            elapsed = time.perf_counter() - began
            height, width = image.shape[:2]
            messages = self._report(source, 0, None, width, height, found)
            if self._out is not None:
                suffix = ".png" if Path(source.address).suffix.lower() in (".png", ".bmp", ".tif", ".tiff") else ".jpg"
                Image.fromarray(_drawn(image, messages)).save(self._target(source, suffix), quality=92)
        except (ImageError, PredictionError, EngineError, OSError) as error:
            self._fail(source, error)
            return
        self.images += 1
        print(f"image {position} {source.label}: {width}x{height}, {_summary(messages)} ({elapsed * 1e3:.1f} ms)")

    def video(self, source: Source, position: str) -> None:
        video: Video | None = None
        writer: VideoWriter | None = None
        progress = _Progress(f"video {position} {source.label}")
        try:
            video = Video(source)
            for number, frame in enumerate(video):
                seconds = presentation_time(frame)
                width, height = displayed_size(frame)
                messages = self._report(source, number, seconds, width, height, self._predictor.frame(frame))
                if self._out is not None:
                    writer = writer or VideoWriter(self._target(source, ".mp4"), video.rate, width, height)
                    writer.write(_drawn(self._predictor.picture(frame), messages), seconds)
                self.frames += 1
                progress.step(number + 1, video.frames, messages)
            progress.end()
            self.videos += 1
            if video.damaged:
                self._fail(source, f"{source.label}: {video.damaged} packets could not be decoded")
            if not progress.frames:
                self._fail(source, f"{source.label}: no picture could be decoded")
        except (MediaError, PredictionError, EngineError, av.FFmpegError, OSError) as error:
            self._fail(source, error)
        finally:
            if writer is not None:
                writer.close()
            if video is not None:
                video.close()

    def _report(
        self, source: Source, frame: int, pts: float | None, width: int, height: int, found: Detections
    ) -> list[dict[str, Any]]:
        messages = self._predictor.messages(found)
        if self._results is not None:
            self._results.append(
                {"source": source.label, "frame": frame, "pts": None if pts is None else round(pts, 6),
                 "width": width, "height": height, "detections": messages}
            )  # fmt: skip
        return messages

    def _target(self, source: Source, suffix: str) -> Path:
        """Where the drawn result goes: named like the source, without overwriting it or another one of this run."""
        assert self._out is not None
        stem = Path(source.label.rstrip("/")).stem or "stream"
        for name in (stem, *(f"{stem}-{n}" for n in range(2, len(self._taken) + 3))):
            target = self._out / (name + suffix)
            is_source = target.exists() and Path(source.address).exists() and target.samefile(source.address)
            if target.name not in self._taken and not is_source:
                break
        self._taken.add(target.name)
        return target

    def _fail(self, source: Source, error: Exception | str) -> None:
        text = str(error)
        if source.label not in text:
            text = f"{source.label}: {text}"
        self.failures.append(text)
        print(f"error: {text}", file=sys.stderr)


class _Progress:
    """Lines of a video's progress, one every few seconds and one at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = self._said = time.monotonic()
        self.frames = 0
        self._seen: Counter[str] = Counter()

    def step(self, frames: int, total: int, messages: list[dict[str, Any]]) -> None:
        self.frames = frames
        self._seen.update(m["class"] for m in messages)
        now = time.monotonic()
        if now - self._said >= _PROGRESS_S:
            self._said = now
            of = f" of {total}" if total else ""
            print(f"{self._title}: frame {frames}{of}, {frames / (now - self._began):.1f} frames/s", flush=True)

    def end(self) -> None:
        elapsed = max(time.monotonic() - self._began, 1e-9)
        seen = ", ".join(f"{name} {count}" for name, count in self._seen.most_common()) or "nothing"
        print(f"{self._title}: {self.frames} frames, {self.frames / elapsed:.1f} frames/s; boxes: {seen}", flush=True)


def _summary(messages: list[dict[str, Any]]) -> str:
    counts = Counter(m["class"] for m in messages)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"


def _drawn(picture: Rgb, messages: list[dict[str, Any]]) -> Rgb:
    image = Image.fromarray(picture)
    draw_boxes(image, [(*m["box"], f"{m['class']} {m['confidence']:.2f}") for m in messages])
    return np.asarray(image)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m yolov9.predict", description="Detect objects in images and videos.")
    p.add_argument("--weights", required=True, metavar="W", help="bundle folder, packaged model's name, or checkpoint")
    p.add_argument("--source", required=True, metavar="S", help="image, video, folder, glob or URL")
    p.add_argument("--out", type=Path, default=Path("runs/predict"), metavar="DIR", help="drawn results (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all detections there")
    p.add_argument("--engine", default="auto", help="auto, openvino, onnxruntime or torch (%(default)s)")
    p.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (%(default)s)")
    p.add_argument("--confidence", type=share, default=0.25, metavar="X", help="lowest to report (%(default)s)")
    p.add_argument("--iou", type=share, default=0.7, metavar="X", help="overlap that makes two boxes one (%(default)s)")
    p.add_argument("--imgsz", type=int, metavar="N", help="long side of the input, a multiple of 32 (the bundle's own)")
    p.add_argument("--classes", nargs="+", metavar="NAME", help="report only these")
    p.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write drawn results")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.predict`. 0; 1 if a source failed (others are done); 2 if nothing could be begun."""
    given = _parser().parse_args(arguments)
    try:
        sources = find(given.source)
        model = open_model(given.weights, given.engine, given.precision)
        predictor = Predictor(
            model.engine, model.names, given.imgsz or model.input_size,
            confidence=given.confidence, iou=given.iou, classes=given.classes,
        )  # fmt: skip
        if given.save:
            given.out.mkdir(parents=True, exist_ok=True)
        results = JsonList(given.json) if given.json else None
    except (ModelError, PredictError, MediaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"engine {model.engine.name} {model.engine.precision} on {model.engine.device} ({model.why})", flush=True)
    run = Run(predictor, given.out if given.save else None, results)
    try:
        for number, source in enumerate(sources, 1):
            (run.image if source.is_image else run.video)(source, f"{number}/{len(sources)}")
    except KeyboardInterrupt:  # the usual end of a live stream: what there is, is written
        print("interrupted", flush=True)
    finally:
        if results is not None:
            results.close()
        model.engine.close()
    _conclude(run, given)
    return 1 if run.failures else 0


def _conclude(run: Run, given: argparse.Namespace) -> None:
    print(f"{run.images} images and {run.videos} videos ({run.frames} frames) done, {len(run.failures)} errors")
    if given.save and (run.images or run.frames):
        print(f"drawn results: {given.out.resolve()}")
    if given.json:
        print(f"detections: {given.json.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
