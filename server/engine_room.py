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
from server.checks import Check
from server.delivery.ports import InvalidField
from server.detect import SLOTS as DETECT_SLOTS
from server.detect import DetectDesk, Detected
from server.inference.protocol import Done, Hello
from server.metrics import Metrics
from server.models.deployment import Deployment, Listener, WorkerFactory
from server.models.model import Model, missing_classes
from server.settings import ServerSettings
from server.shm import Arena, slot_bytes
from yolov9.bundle import MAX_INPUT_SIZE, Bundle
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
        failing = next((check for check in self.checks() if not check.ok), None)
        return (True, "model loaded, inference works") if failing is None else (False, failing.detail)

    def checks(self) -> list[Check]:
        inference = "works"
        if not self.worker_ready:
            inference = "waits for the model"
        elif self.failing_s is not None:
            inference = f"inference has been failing for {self.failing_s:.1f} s"
        elif self.unanswered_s > _NO_ANSWER_S:
            inference = f"frames wait and none has been answered for {self.unanswered_s:.1f} s"
        model = "loaded" if self.worker_ready else self.worker_reason
        return [
            Check("model", self.worker_ready, model, required=True),
            Check("inference", inference == "works", inference, required=True),
        ]


class EngineRoom:
    """`start`, use, `stop`. `make_worker` is replaced in tests."""

    def __init__(
        self,
        settings: ServerSettings,
        bundle: Bundle,
        name: str,
        *,
        metrics: Metrics,
        make_worker: WorkerFactory,
        clock: Callable[[], float],
    ) -> None:
        """`name`: what results call the bundle's model."""
        self._settings = settings
        self._metrics = metrics
        self._make_worker = make_worker
        self._clock = clock
        self._arenas: dict[int, Arena] = {}
        self._arena_ids = itertools.count(1)
        self.live = Deployment(bundle, _model(bundle, name, 1), make_worker, self)
        """To which new batches go."""
        self._others: list[Deployment] = []
        """On trial, or draining."""

    # Life.

    def start(self) -> None:
        """Returns without waiting for the worker. OSError if there is no memory or descriptor for the desk."""
        scheduler = Scheduler(max_batch=1, max_delay_s=self._settings.max_delay_ms / 1e3)
        self.dispatcher = Dispatcher(
            scheduler,
            self.live.line,
            clock=self._clock,
            loop=asyncio.get_running_loop(),
            on_batch=self._metrics.observe_batch,
        )
        self.live.worker.start()
        arena_id = self.new_arena_id()
        self._desk_arena = Arena.create("yolov9-detect", DETECT_SLOTS, slot_bytes(MAX_INPUT_SIZE))
        self.attach(arena_id, self._desk_arena)
        self.desk = DetectDesk(self.dispatcher, self._desk_arena, arena_id, lambda: self.model, self._clock)

    async def stop(self) -> None:
        """Batches that are out are answered as `stopped`."""
        await asyncio.gather(*(deployment.worker.stop() for deployment in (self.live, *self._others)))
        self.dispatcher.close()
        self._desk_arena.close()

    @property
    def model(self) -> Model:
        """The one to which new batches go."""
        return self.live.model

    # One model takes the place of another.

    def deploy(self, bundle: Bundle, name: str, listener: Listener) -> Deployment:
        """Start a worker for the bundle beside those that run. It knows every arena, and no frame goes to it."""
        model = _model(bundle, name, self.model.generation + 1)
        deployment = Deployment(bundle, model, self._make_worker, listener)
        self._others.append(deployment)
        for arena_id, arena in self._arenas.items():
            deployment.worker.attach(arena_id, arena)
        deployment.worker.start()
        return deployment

    def activate(self, deployment: Deployment) -> Deployment:
        """New batches go to this one, which is up and has been tried; returns the one that has to be drained, and then
        to be ended."""
        self._others.remove(deployment)
        old, self.live = self.live, deployment
        self._others.append(old)
        deployment.listener = self
        self.dispatcher.switch(deployment.line)
        if not old.worker.ready:
            self.dispatcher.retire()  # it could not drain anything
        return old

    def trim(self) -> None:
        """Give back memory that only a model of a larger input needed."""
        for arena in self._arenas.values():
            arena.trim(slot_bytes(self.model.input_size))

    async def end(self, deployment: Deployment) -> None:
        """End the worker of a deployment that is not live, and forget it."""
        if deployment.line is self.dispatcher.old_line:
            self.dispatcher.retire()
        await deployment.worker.stop()
        if deployment in self._others:
            self._others.remove(deployment)

    # Arenas.

    def new_arena_id(self) -> int:
        return next(self._arena_ids)

    def attach(self, arena_id: int, arena: Arena) -> None:
        """Let the engine read an arena. It must stay open until `detach`."""
        self._arenas[arena_id] = arena
        for deployment in (self.live, *self._others):
            deployment.worker.attach(arena_id, arena)

    def detach(self, arena_id: int) -> None:
        self._arenas.pop(arena_id, None)
        for deployment in (self.live, *self._others):
            deployment.worker.detach(arena_id)

    # Single pictures.

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: list[str] | None = None,
    ) -> Detected:
        """See `delivery.ports.RuntimePort.detect`."""
        if missing := missing_classes(self.model.names, classes, None):
            raise InvalidField("classes", f"the model has no class {missing[0]!r}")
        return await self.desk.detect(
            image,
            self._settings.confidence if confidence is None else confidence,
            self._settings.iou if iou is None else iou,
            classes,
        )

    # What the workers say.

    def on_up(self, deployment: Deployment, hello: Hello) -> None:
        log.info(
            "model=%s engine=%s precision=%s device=%s %s", deployment.model.name, hello.engine, hello.precision,
            hello.device, hello.why,
        )  # fmt: skip
        self.dispatcher.on_up(deployment.line, hello)

    def on_down(self, deployment: Deployment, reason: str) -> None:  # the worker has logged it
        self.dispatcher.on_down(deployment.line)
        if deployment.line is self.dispatcher.old_line:
            self.dispatcher.retire()  # it need not come back

    def on_prepared(self, deployment: Deployment, height: int, width: int, error: str | None) -> None:
        if error is not None:
            log.error("shape %dx%d could not be prepared: %s", width, height, error)
        self.dispatcher.on_prepared(deployment.line, height, width, error)

    def on_done(self, deployment: Deployment, done: Done, reason: str | None) -> None:
        self.dispatcher.on_done(deployment.line, done, reason)

    # For delivery.

    def readiness(self) -> Readiness:
        failing = self.dispatcher.failing_since
        return Readiness(
            worker_ready=self.live.worker.ready,
            worker_reason=self.live.worker.reason,
            failing_s=None if failing is None else self._clock() - failing,
            unanswered_s=self.dispatcher.unanswered_s(),
        )

    def view(self) -> Mapping[str, object]:
        """See `delivery.ports.RuntimePort.model`."""
        hello, model = self.live.hello, self.model
        return {
            "name": model.name,
            "generation": model.generation,
            "engine": hello.engine if hello else None,
            "precision": hello.precision if hello else None,
            "device": hello.device if hello else None,
            "why": hello.why if hello else None,
            "upgrade": msgspec.to_builtins(self.live.worker.upgrade),
            "hash": self.live.bundle.hash,
            "input_size": model.input_size,
            "names": model.names,
        }

    def usual_s(self, width: int, height: int) -> float | None:
        """Usual time for one picture of this size, seconds; None: nothing has been measured yet."""
        return self.dispatcher.usual_s(input_shape(self.model.input_size, width, height))

    def has_room(self, width: int, height: int, frames_per_s: float) -> bool:
        """Whether the engine could detect so many pictures of this size a second."""
        usual = self.usual_s(width, height)
        if usual is None:
            return True  # nothing measured yet
        return frames_per_s * usual <= (self.live.hello.parallel if self.live.hello else 1)


def _model(bundle: Bundle, name: str, generation: int) -> Model:
    return Model(name, generation, bundle.names, bundle.input_size)
