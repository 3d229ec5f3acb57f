"""A model's way to its worker: which shapes it can run, when it takes the next batch, and what it has out.

Usually there is one line. While one model takes the place of another there are two, until the old one's last frame has
come back.
"""

from __future__ import annotations

from typing import Protocol

from server.batching.scheduler import Shape, Waiting
from server.batching.window import Window
from server.inference.protocol import Hello, Infer
from server.models.model import Model


class WorkerPort(Protocol):
    """What a line needs of `server.inference.client.Worker`."""

    @property
    def ready(self) -> bool: ...
    def prepare(self, height: int, width: int) -> None: ...
    def infer(self, request: Infer) -> None: ...


class Line:
    """`worker` is set right after construction (it needs callbacks that name this line)."""

    worker: WorkerPort

    def __init__(self, model: Model) -> None:
        self.model = model
        self.window = Window()
        self.max_batch = 1
        self.batches: dict[int, list[Waiting]] = {}
        """Sent and not answered yet, by number."""
        self.prepared: set[Shape] = set()
        self._asked: set[Shape] = set()

    @property
    def frames_out(self) -> int:
        return sum(map(len, self.batches.values()))

    def made_for(self, shape: Shape) -> bool:
        """Whether cameras that know this line's model make frames of this shape."""
        return max(shape) == self.model.input_size

    def want(self, shape: Shape) -> None:
        """Have a shape prepared, if it is not yet."""
        if shape not in self._asked:
            self._asked.add(shape)
            self.worker.prepare(*shape)

    # What the worker says.

    def on_up(self, hello: Hello) -> None:
        self.window.parallel = hello.parallel
        self.max_batch = hello.max_batch
        self.prepared.add((hello.height, hello.width))
        self._asked.add((hello.height, hello.width))

    def on_prepared(self, shape: Shape, error: str | None) -> None:
        """After an error the shape is asked for again with the next frame that needs it."""
        if error is None:
            self.prepared.add(shape)
        else:
            self._asked.discard(shape)

    def on_down(self) -> None:
        """The worker will prepare its shapes anew."""
        self.prepared.clear()
        self.window.clear()
