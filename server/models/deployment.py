"""A bundle at work: the model as results name it, its worker, and the line of frames to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from server.batching.line import Line
from server.inference.client import Worker
from server.inference.protocol import Done, Hello
from server.models.model import Model
from yolov9.bundle import Bundle

WorkerFactory = Callable[..., Worker]
"""`(bundle, *, on_done, on_prepared, on_up, on_down)` -> a worker that has not been started."""


class Listener(Protocol):
    """Who hears what a deployment's worker says, see `server.inference.client.Worker`."""

    def on_up(self, deployment: Deployment, hello: Hello) -> None: ...
    def on_down(self, deployment: Deployment, reason: str) -> None: ...
    def on_prepared(self, deployment: Deployment, height: int, width: int, error: str | None) -> None: ...
    def on_done(self, deployment: Deployment, done: Done, reason: str | None) -> None: ...


class Deployment:
    """`worker` has not been started. `listener` may be replaced: on trial it is another one than at work."""

    def __init__(self, bundle: Bundle, model: Model, make_worker: WorkerFactory, listener: Listener) -> None:
        self.bundle = bundle
        self.model = model
        self.listener = listener
        self.hello: Hello | None = None
        """What the worker said of itself last."""
        self.line = Line(model)
        self.worker = make_worker(
            bundle,
            on_done=self._on_done,
            on_prepared=self._on_prepared,
            on_up=self._on_up,
            on_down=self._on_down,
        )
        self.line.worker = self.worker

    def _on_up(self, hello: Hello) -> None:
        self.hello = hello
        self.listener.on_up(self, hello)

    def _on_down(self, reason: str) -> None:
        self.listener.on_down(self, reason)

    def _on_prepared(self, height: int, width: int, error: str | None) -> None:
        self.listener.on_prepared(self, height, width, error)

    def _on_done(self, done: Done, reason: str | None) -> None:
        self.listener.on_done(self, done, reason)
