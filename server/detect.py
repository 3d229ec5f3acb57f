"""The desk of `POST /detect`: single images through the same batching as the cameras' frames.

It has slots of its own, its frames are never replaced by newer ones, and each has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server import outcome as outcomes
from server.batching.dispatcher import Dispatcher, Outcome
from server.batching.scheduler import Policy, Waiting
from server.delivery.ports import InvalidField, Unavailable
from server.inference.protocol import Frame
from server.models.model import Model, class_thresholds
from server.results import Detection
from server.shm import Arena
from yolov9.geometry import input_shape
from yolov9.images import ImageError, read_header, read_image
from yolov9.letterbox import Letterboxer

STREAM = "POST /detect"
"""Its name in the scheduler; no stream can be called so."""
SLOTS = 8
DEADLINE_S = 5.0
DECODERS = 4
MAX_PIXELS = 50_000_000
"""A file of 200 kB may have so many. Decoding takes 14 bytes for each, where it is transparent 18 (measured)."""
LARGE_PIXELS = 16_000_000
"""Larger images are decoded one at a time. With the others this bounds the memory to 1.8 GB, whoever sends what."""


class Detected(NamedTuple):
    """What was found in an image."""

    width: int
    height: int
    detections: list[Detection]
    latency_ms: dict[str, float]
    model: str
    model_generation: int


class _Request(NamedTuple):
    slot: int
    width: int
    height: int
    confidence: float
    iou: float
    classes: Sequence[str] | None
    answer: asyncio.Future[Detected]


class DetectDesk:
    """`arena` has SLOTS slots and is attached to the worker as `arena_id`."""

    in_order = False
    """Images of different clients."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        arena: Arena,
        arena_id: int,
        model: Callable[[], Model],
        clock: Callable[[], float],
    ) -> None:
        self._dispatcher = dispatcher
        self._arena = arena
        self._arena_id = arena_id
        self._model = model
        self._clock = clock
        # Threads of its own: a burst of images must not hold up what else the server does in threads.
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="detect")
        self._large = threading.Lock()
        self._free = asyncio.Queue[int]()
        for slot in range(arena.slots):
            self._free.put_nowait(slot)
        self._seq = itertools.count(1)
        self._writing: Counter[int] = Counter()  # images that are being scaled, by the long side of the input
        self._waiting: dict[int, _Request] = {}
        dispatcher.configure(STREAM, Policy(weight=1.0, max_staleness_s=float("inf"), fifo=True))

    async def detect(
        self, image: bytes, confidence: float, iou: float, classes: Sequence[str] | None = None
    ) -> Detected:
        """InvalidField: not a picture. Unavailable: no answer in time."""
        began = self._clock()
        try:
            slot = await asyncio.wait_for(self._free.get(), DEADLINE_S)
        except TimeoutError:
            raise Unavailable("the engine is busy: no slot for another image came free in time") from None
        seq = next(self._seq)
        size = self._model().input_size
        self._writing[size] += 1
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._decoders, self._write, image, slot, size)
        writing.add_done_callback(lambda _: self._writing.subtract([size]))
        try:
            pixels, (height, width) = await asyncio.shield(writing)
        except ImageError as error:
            self._free.put_nowait(slot)
            raise InvalidField("image", str(error)) from None
        except BaseException:
            # A thread cannot be cancelled: as long as it writes, the slot is its own.
            writing.add_done_callback(lambda _: self._free.put_nowait(slot))
            raise
        future: asyncio.Future[Detected] = asyncio.get_running_loop().create_future()
        self._waiting[seq] = _Request(slot, pixels[1], pixels[0], confidence, iou, classes, future)
        self._dispatcher.offer(Waiting(STREAM, seq, (height, width), began, self._clock(), self, began + DEADLINE_S))
        self._dispatcher.pump()
        return await future

    def scales_for(self, input_size: int) -> bool:
        """Whether no image is being scaled for another input size."""
        return not any(count for size, count in self._writing.items() if size != input_size)

    def _write(self, image: bytes, slot: int, input_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """In a thread: decode and letterbox into the slot -> (height, width) of the picture and of the input."""
        header = read_header(image)
        with self._large if header.width * header.height > LARGE_PIXELS else contextlib.nullcontext():
            pixels: npt.NDArray[np.uint8] = read_image(image, max_pixels=MAX_PIXELS)
        height, width = pixels.shape[:2]
        shape = input_shape(input_size, width, height)
        Letterboxer().write_rgb(pixels, self._arena.image(slot, *shape))
        return (height, width), shape

    # From the dispatcher.

    def frame(self, waiting: Waiting, model: Model) -> Frame:
        request, classes = self._waiting[waiting.seq], None
        if request.classes is not None:
            known = set(model.names.values())
            classes = class_thresholds(model.names, request.confidence, [c for c in request.classes if c in known])
        return Frame(
            self._arena_id, request.slot, request.width, request.height, request.confidence, request.iou,
            None if classes is None else classes.tobytes(),
        )  # fmt: skip

    def dropped(self, frame: Waiting, reason: str) -> None:
        future = self._close(frame.seq).answer
        if not future.done():
            future.set_exception(Unavailable("the engine did not get to the image in time", retry_after_s=1))

    def done(self, frame: Waiting, outcome: Outcome) -> None:
        request = self._close(frame.seq)
        future = request.answer
        if future.done():  # the client has gone
            return
        if outcome.error is not None:
            future.set_exception(Unavailable(f"inference failed: {outcome.error}", retry_after_s=1))
            return
        now = self._clock()
        stages = {
            "decode": frame.ready_at - frame.arrived_at,
            "queue": outcome.started_at - frame.ready_at,
            "inference": outcome.finished_at - outcome.started_at,
            "postprocess": now - outcome.finished_at,
            "total": now - frame.arrived_at,
        }
        found = outcomes.detections(outcome.detections, outcome.model.names)
        latency_ms = {stage: round(s * 1e3, 3) for stage, s in stages.items()}
        model = outcome.model
        future.set_result(Detected(request.width, request.height, found, latency_ms, model.name, model.generation))

    def _close(self, seq: int) -> _Request:
        request = self._waiting.pop(seq)
        self._free.put_nowait(request.slot)
        return request
