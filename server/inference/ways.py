"""The ways in which a worker's engine can run: its prepared shapes and, where it has the choice, its two modes.

What takes long (compiling a shape, making the engine for the other mode) happens in one thread, one after the other,
beside the running batches. The second mode is only made once the load has asked for it (`modes`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from server.inference import protocol
from server.inference.loading import Loaded, describe
from server.inference.modes import Mode, ModeSwitch
from yolov9.engines import Engine

log = logging.getLogger("yolov9.inference")

Shape = tuple[int, int]
"""(height, width)"""


class Way(NamedTuple):
    """An engine in one of its modes."""

    engine: Engine
    mode: Mode
    slots: threading.Semaphore
    """One for each batch that may be inside."""
    shapes: set[Shape]
    """Prepared; only added to."""


class Ways:
    """`say` sends a reply to the server; `on_parallel(n)` comes before so many batches may be inside at once."""

    def __init__(
        self, loaded: Loaded, say: Callable[[protocol.Reply], None], on_parallel: Callable[[int], None]
    ) -> None:
        self._say = say
        self._on_parallel = on_parallel
        self._first = self._now = _way(loaded.engine, "latency", {loaded.shape})
        self._second: Way | None = None
        self._make_second = loaded.throughput
        self._switch = ModeSwitch()
        self._switching = threading.Lock()
        self._wanted: queue.SimpleQueue[Shape | Mode | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="preparer", daemon=True)
        self._thread.start()

    def pick(self, shape: Shape) -> Way | None:
        """How to run a batch of this shape now; None: it has not been prepared."""
        now = self._now
        if shape in now.shapes:
            return now
        return self._first if shape in self._first.shapes else None

    def ended(self, way: Way, started_at: float, finished_at: float, images: int) -> None:
        """A batch has run: the load may now ask for the other mode."""
        if self._make_second is None:
            return
        with self._switching:
            if self._switch.ended(started_at, finished_at, images, way.mode, way.engine.parallel):
                self._wanted.put(self._switch.mode)

    def prepare(self, height: int, width: int) -> None:
        """Make a shape ready; Prepared follows."""
        self._wanted.put((height, width))

    def stop(self, timeout_s: float) -> bool:
        """Whether the thread has ended within the time."""
        self._wanted.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        for way in (self._first, self._second):
            if way is not None:
                way.engine.close()

    # In the thread.

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            if isinstance(wanted, tuple):
                self._prepare(wanted)
            else:
                self._enter(wanted)

    def _prepare(self, shape: Shape) -> None:
        height, width = shape
        began = time.monotonic()
        error = None
        try:
            if shape not in self._first.shapes:
                self._first.engine.prepare(height, width)
            self._first.shapes.add(shape)
        except Exception as failure:  # the shape is refused; the others go on
            log.exception("shape=%dx%d could not be prepared", width, height)
            error = describe(failure)
        self._say(protocol.Prepared(height, width, time.monotonic() - began, error))
        if self._second is not None:
            self._complete(self._second)

    def _enter(self, mode: Mode) -> None:
        """Run new batches in `mode` from now on; those inside end where they are."""
        if mode == "throughput":
            if self._second is None:
                self._second = self._other_way()
            if self._second is None:
                return
            self._complete(self._second)
            way = self._second
        else:
            way = self._first
        self._on_parallel(way.engine.parallel)
        self._now = way
        log.info("mode=%s parallel=%d", way.mode, way.engine.parallel)
        self._say(protocol.Mode(way.mode, way.engine.parallel))

    def _other_way(self) -> Way | None:
        """The engine for throughput; None, for good, if it cannot be had or runs one batch at a time as well."""
        make, self._make_second = self._make_second, None
        assert make is not None, "asked for by a switch that needs it"
        try:
            engine = make()
        except Exception:  # the first goes on
            log.exception("the engine cannot run for throughput")
            return None
        if engine.parallel < 2:
            engine.close()
            return None
        self._make_second = make
        return _way(engine, "throughput", set())

    def _complete(self, way: Way) -> None:
        """Give it the shapes of the first. What it cannot do stays with the first."""
        for shape in self._first.shapes - way.shapes:
            try:
                way.engine.prepare(*shape)
            except Exception:
                log.exception("shape=%dx%d could not be prepared for throughput", shape[1], shape[0])
            else:
                way.shapes.add(shape)


def _way(engine: Engine, mode: Mode, shapes: set[Shape]) -> Way:
    return Way(engine, mode, threading.Semaphore(engine.parallel), shapes)
