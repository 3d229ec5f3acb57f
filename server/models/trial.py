"""A model on trial: its worker runs beside the one that serves, and must come up, make every shape ready and answer.

Nothing of it touches a frame of a camera. What is wrong is said in one sentence (`Refused`); the worker is then ended
by whoever started the trial.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from server.delivery.ports import ServerError
from server.inference.protocol import DETECTION_COLUMNS, Done, Frame, Hello, Infer
from server.models.deployment import Deployment
from server.shm import Arena

Shape = tuple[int, int]

ARENA = 0
"""Number of the arena with the trial's picture; those of streams count from 1."""
_ROUNDS = 7
"""Pictures that the time is taken from."""


class Refused(ServerError):
    """The model was not activated; the one before goes on."""

    status, code = 422, "model_refused"


class Trial:
    """The listener of a deployment that has just been started."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._up: asyncio.Future[Hello] = loop.create_future()
        self._prepared: dict[Shape, asyncio.Future[None]] = {}
        self._answers: dict[int, asyncio.Future[Done]] = {}
        self._ids = itertools.count(1)

    async def run(self, deployment: Deployment, wanted: Sequence[Shape]) -> float:
        """Make shapes ready and see that each gives predictions. Returns the time for a picture of the first one,
        seconds. May be called again. Refused."""
        shapes = list(dict.fromkeys(wanted))
        await self._up
        line = deployment.line
        for shape in shapes:
            if shape not in line.prepared:
                self._prepared[shape] = asyncio.get_running_loop().create_future()
                line.want(shape)
        await asyncio.gather(*self._prepared.values())
        arena = _picture(max(height * width for height, width in shapes))
        try:
            deployment.worker.attach(ARENA, arena)
            for shape in shapes[1:]:
                await self._infer(deployment, shape)
            times = [await self._infer(deployment, shapes[0]) for _ in range(_ROUNDS)]
            return statistics.median(times)
        finally:
            deployment.worker.detach(ARENA)
            arena.close()

    async def _infer(self, deployment: Deployment, shape: Shape) -> float:
        """One picture through the worker; seconds in the engine."""
        height, width = shape
        number = next(self._ids)
        classes = len(deployment.model.names)
        # Thresholds for each class: an output of more or fewer classes than model.json names is refused by the worker.
        thresholds = np.full(classes, 0.25, np.float32).tobytes()
        frame = Frame(ARENA, 0, width, height, 0.25, 0.7, thresholds)
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        deployment.worker.infer(Infer(number, height, width, [frame]))
        done = await answer
        rows = np.frombuffer(done.detections[0], np.float32).reshape(-1, DETECTION_COLUMNS)
        if not np.isfinite(rows).all() or not (rows[:, 5] < classes).all():
            raise Refused(f"it reports boxes that are no numbers, or of none of its {classes} classes")
        return done.finished_at - done.started_at

    # What the worker says.

    def on_up(self, deployment: Deployment, hello: Hello) -> None:
        deployment.line.on_up(hello)
        if not self._up.done():
            self._up.set_result(hello)

    def on_down(self, deployment: Deployment, reason: str) -> None:
        deployment.line.on_down()
        _fail(self._up, reason)
        for preparing in self._prepared.values():
            _fail(preparing, reason)
        for answer in self._answers.values():
            _fail(answer, reason)

    def on_prepared(self, deployment: Deployment, height: int, width: int, error: str | None) -> None:
        deployment.line.on_prepared((height, width), error)
        waiting = self._prepared.get((height, width))
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            _fail(waiting, f"inputs of {width}x{height} pixels cannot be prepared: {error}")

    def on_done(self, deployment: Deployment, done: Done, reason: str | None) -> None:
        answer = self._answers.pop(done.id)
        if done.error is not None:
            _fail(answer, f"inference failed: {done.error}")
        elif not answer.done():
            answer.set_result(done)


def _fail(waiting: asyncio.Future[Hello] | asyncio.Future[None] | asyncio.Future[Done], reason: str) -> None:
    if not waiting.done():
        waiting.set_exception(Refused(reason))
        waiting.exception()  # seen: there may be nobody left who waits for it


def _picture(pixels: int) -> Arena:
    """One slot of noise: something in every input of the network."""
    arena = Arena.create("yolov9-trial", 1, -(-pixels * 3 // 4096) * 4096)
    noise = np.random.default_rng(0).integers(0, 256, (1, pixels, 3), np.uint8)
    arena.image(0, 1, pixels)[:] = noise
    return arena
