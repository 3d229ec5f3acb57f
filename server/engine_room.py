"""The engine's side of the running server: the worker, the model that it runs, the way to it and its health.

Everything here runs on the server's event loop. Knows no streams: frames come through the dispatcher, or from the desk
of `POST /detect`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from server.batching.dispatcher import Dispatcher
from server.batching.scheduler import Scheduler
from server.delivery.ports import InvalidField
from server.detect import SLOTS as DETECT_SLOTS
from server.detect import DetectDesk
from server.inference.client import Worker
from server.inference.protocol import Done, Hello
from server.metrics import Metrics
from server.models.model import Model, class_thresholds
from server.results import Detection
from server.settings import ServerSettings
from server.shm import Arena, slot_bytes
from yolov9.bundle import Bundle
from yolov9.geometry import input_shape

log = logging.getLogger("yolov9.runtime")

_NO_ANSWER_S = 10.0
"""Frames wait and none has been answered for so long: not ready."""


@dataclass(slots=True)
class Readiness:
    """Why the server is ready or not, from facts that change."""

    worker_ready: bool
    worker_reason: str
    failing_s: float | None
    unanswered_s: float

    def verdict(self) -> tuple[bool, str]:
        if not self.worker_ready:
            return False, self.worker_reason
        if self.failing_s is not None:
            return False, f"inference has been failing for {self.failing_s:.1f} s"
        if self.unanswered_s > _NO_ANSWER_S:
            return False, f"frames wait and none has been answered for {self.unanswered_s:.1f} s"
        return True, "model loaded, inference works"


class EngineRoom:
    """`start`, use, `stop`. `make_worker` is replaced in tests."""

    def __init__(
        self,
        settings: ServerSettings,
        bundle: Bundle,
        *,
        metrics: Metrics,
        make_worker: Callable[..., Worker],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._metrics = metrics
        self._make_worker = make_worker
        self._clock = clock
        self.model = Model(bundle.name, 1, bundle.names, bundle.input_size)
        self._hello: Hello | None = None  # what the worker said of itself
        self._arenas = itertools.count(1)

    # Life.

    def start(self) -> None:
        """Returns without waiting for the worker. OSError if there is no memory or descriptor for the desk."""
        self.worker = self._make_worker(
            on_done=self._on_done, on_prepared=self._on_prepared, on_up=self._on_up, on_down=self._on_down
        )
        scheduler = Scheduler(max_batch=1, max_delay_s=self._settings.max_delay_ms / 1e3)
        self.dispatcher = Dispatcher(
            scheduler,
            self.worker,
            clock=self._clock,
            loop=asyncio.get_running_loop(),
            on_batch=self._metrics.observe_batch,
        )
        self.worker.start()
        arena_id = self.new_arena_id()
        self._desk_arena = Arena.create("yolov9-detect", DETECT_SLOTS, slot_bytes(self.model.input_size))
        self.attach(arena_id, self._desk_arena)
        self.desk = DetectDesk(self.dispatcher, self._desk_arena, arena_id, lambda: self.model, self._clock)

    async def stop(self) -> None:
        """Batches that are out are answered as `stopped`."""
        await self.worker.stop()
        self.dispatcher.close()
        self._desk_arena.close()

    # Arenas.

    def new_arena_id(self) -> int:
        return next(self._arenas)

    def attach(self, arena_id: int, arena: Arena) -> None:
        """Let the engine read an arena. It must stay open until `detach`."""
        self.worker.attach(arena_id, arena)

    def detach(self, arena_id: int) -> None:
        self.worker.detach(arena_id)

    # Single pictures.

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: list[str] | None = None,
    ) -> tuple[int, int, list[Detection], dict[str, float]]:
        """See `delivery.ports.RuntimePort.detect`."""
        lowest = self._settings.confidence if confidence is None else confidence
        try:
            thresholds = class_thresholds(self.model.names, lowest, classes)
        except ValueError as error:
            raise InvalidField("classes", str(error).partition(": ")[2]) from None
        return await self.desk.detect(
            image,
            lowest,
            self._settings.iou if iou is None else iou,
            None if thresholds is None else thresholds.tobytes(),
        )

    # What the worker says.

    def _on_up(self, hello: Hello) -> None:
        self._hello = hello
        log.info("engine=%s precision=%s device=%s %s", hello.engine, hello.precision, hello.device, hello.why)
        self.dispatcher.on_up(hello)

    def _on_down(self, reason: str) -> None:  # the worker has logged it
        self.dispatcher.on_down()

    def _on_prepared(self, height: int, width: int, error: str | None) -> None:
        if error is not None:
            log.error("shape %dx%d could not be prepared: %s", width, height, error)
        self.dispatcher.on_prepared(height, width, error)

    def _on_done(self, done: Done, reason: str | None) -> None:
        self.dispatcher.on_done(done, reason)

    # For delivery.

    def readiness(self) -> tuple[bool, str]:
        failing = self.dispatcher.failing_since
        return Readiness(
            worker_ready=self.worker.ready,
            worker_reason=self.worker.reason,
            failing_s=None if failing is None else self._clock() - failing,
            unanswered_s=self.dispatcher.unanswered_s(),
        ).verdict()

    def view(self) -> Mapping[str, object]:
        """See `delivery.ports.RuntimePort.model`."""
        hello, model = self._hello, self.model
        return {
            "name": model.name,
            "generation": model.generation,
            "engine": hello.engine if hello else None,
            "precision": hello.precision if hello else None,
            "device": hello.device if hello else None,
            "why": hello.why if hello else None,
            "upgrade": msgspec.to_builtins(self.worker.upgrade),
            "hash": self._bundle.hash,
            "input_size": model.input_size,
            "names": model.names,
        }

    def has_room(self, width: int, height: int, frames_per_s: float) -> bool:
        """Whether the engine could detect so many pictures of this size a second."""
        usual = self.dispatcher.usual_s(input_shape(self.model.input_size, width, height))
        if usual is None:
            return True  # nothing measured yet
        return frames_per_s * usual <= (self._hello.parallel if self._hello else 1)
