"""Runs a model over the pictures of a data set, through the letterbox, the input shapes and the suppression that serve.

Pictures of one input shape make batches, so that an engine sees each shape once. They are decoded ahead by threads, a
bounded number at a time; of a picture nothing is kept but what was found in it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from yolov9.data import Item, Problem
from yolov9.engines import Engine
from yolov9.engines.cpu import available_cpus
from yolov9.geometry import Letterbox, input_shape
from yolov9.images import ImageError, read_image
from yolov9.letterbox import Letterboxer
from yolov9.postprocess import postprocess

MAX_CANDIDATES = 30_000
"""Boxes that enter suppression, as in the reference's evaluation: none is cut off before the 300 best are known."""
_READERS = 8
"""Threads that decode, at most: a GPU takes 500 images/s, a core decodes some 150."""
_PROGRESS_S = 2.0

Rgb = npt.NDArray[np.uint8]
Found = npt.NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Protocol:
    """How pictures are put in and boxes taken out."""

    input_size: int
    confidence: float
    iou: float
    max_detections: int
    batch: int
    class_thresholds: npt.NDArray[np.float32] | None
    """(nc,) of the model's classes, None for `confidence` throughout."""


@dataclass
class Timing:
    """Seconds in all. Reading is spread over threads that run beside the engine: CPU time tells what it costs."""

    images: int = 0
    read: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0
    wall: float = 0.0

    def milliseconds(self) -> dict[str, float]:
        """An image; and `images_per_second`, which preparing the engine does not count for."""
        each = 1000 / max(self.images, 1)
        return {
            "read": self.read * each,
            "inference": self.inference * each,
            "postprocess": self.postprocess * each,
            "images_per_second": self.images / self.wall if self.wall else 0.0,
        }


@dataclass
class Outcome:
    found: dict[int, Found] = field(default_factory=dict)
    """Index of the picture -> (m, 6) in its pixels with the model's class ids. Undecodable ones are not among them."""
    problems: list[Problem] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)


class _Read(NamedTuple):
    number: int
    """Of the picture."""
    pixels: Rgb | None
    letterbox: Letterbox | None
    problem: Problem | None
    seconds: float


def detect_all(engine: Engine, items: Sequence[Item], protocol: Protocol, say: Say) -> Outcome:
    """Detections of every picture that can be decoded. EngineError, PredictionError, ValueError for a bad size."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, item in enumerate(items):
        shapes.setdefault(input_shape(protocol.input_size, item.width, item.height), []).append(index)
    outcome = Outcome()
    progress = _Progress(len(items), say)
    with ThreadPoolExecutor(min(_READERS, available_cpus()), "val-reader") as pool:
        for number, (shape, indices) in enumerate(shapes.items(), 1):
            say(f"shape {number}/{len(shapes)}: {shape[1]}x{shape[0]}, {len(indices)} images")
            engine.prepare(*shape)
            began = time.perf_counter()
            for batch in _batches(
                _read_ahead(pool, items, indices, shape, 2 * protocol.batch), protocol.batch, outcome
            ):
                _detect(engine, batch, protocol, outcome)
                progress.step(len(outcome.found) + len(outcome.problems))
            outcome.timing.wall += time.perf_counter() - began
    outcome.timing.images = len(outcome.found)
    return outcome


def _batches(reads: Iterator[_Read], size: int, outcome: Outcome) -> Iterator[list[_Read]]:
    batch: list[_Read] = []
    for read in reads:
        outcome.timing.read += read.seconds
        if read.problem is not None:
            outcome.problems.append(read.problem)
            continue
        batch.append(read)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _detect(engine: Engine, batch: list[_Read], protocol: Protocol, outcome: Outcome) -> None:
    began = time.perf_counter()
    predictions = engine.infer([read.pixels for read in batch if read.pixels is not None])
    outcome.timing.inference += time.perf_counter() - began
    began = time.thread_time()
    for read, prediction in zip(batch, predictions, strict=True):
        assert read.letterbox is not None
        outcome.found[read.number] = postprocess(
            prediction,
            read.letterbox,
            protocol.confidence,
            protocol.iou,
            protocol.class_thresholds,
            max_detections=protocol.max_detections,
            multi_label=True,
            max_candidates=MAX_CANDIDATES,
        )
    outcome.timing.postprocess += time.thread_time() - began


def _read_ahead(
    pool: ThreadPoolExecutor, items: Sequence[Item], indices: Sequence[int], shape: tuple[int, int], ahead: int
) -> Iterator[_Read]:
    """The pictures in order, `ahead` of them (and one a thread) on their way."""
    waiting: deque[Future[_Read]] = deque()
    limit = ahead + _READERS
    try:
        for index in indices:
            waiting.append(pool.submit(_read, items[index], index, shape))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # what failed elsewhere should not wait for pictures that nobody wants any more
        for future in waiting:
            future.cancel()


_local = threading.local()


def _read(item: Item, index: int, shape: tuple[int, int]) -> _Read:
    began = time.thread_time()
    problem: Problem | None = None
    try:
        image = read_image(item.image)
        if image.shape[:2] != (item.height, item.width):
            height, width = image.shape[:2]
            what = f"has {width} x {height} pixels, but its header said {item.width} x {item.height}; left out"
            problem = Problem(item.image, None, what, "corrupt image")
    except ImageError as error:
        what = f"{str(error).removeprefix(f'{item.image}: ')}; left out"
        problem = Problem(item.image, None, what, "corrupt image")
    if problem is not None:
        return _Read(index, None, None, problem, time.thread_time() - began)
    letterboxer = _local.__dict__.setdefault("letterboxer", None) or Letterboxer()
    _local.letterboxer = letterboxer
    pixels = np.empty((*shape, 3), np.uint8)
    box = letterboxer.write_rgb(image, pixels)
    return _Read(index, pixels, box, None, time.thread_time() - began)


class _Progress:
    """A line every few seconds."""

    def __init__(self, total: int, say: Say) -> None:
        self._total = total
        self._say = say
        self._began = self._said = time.monotonic()

    def step(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said >= _PROGRESS_S:
            self._said = now
            rate = done / (now - self._began)
            left = (self._total - done) / rate
            self._say(f"{done}/{self._total} images, {rate:.1f} images/s, {left:.0f} s left")
