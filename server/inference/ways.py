"""The ways in which a worker's engine can run: its prepared shapes, where it has the choice its two modes, and where a
faster engine has to be built first, the change to that one.

What takes long (compiling a shape, making the engine for the other mode, loading the faster one) happens in one thread,
one after the other, beside the running batches. The second mode is only made once the load has asked for it (`modes`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from server.inference import protocol
from server.inference.loading import Loaded, Upgrade, describe, try_out
from server.inference.modes import Mode, ModeSwitch
from server.inference.upgrades import Building
from yolov9.engines import Engine, SuppressingEngine

log = logging.getLogger("yolov9.inference")

Shape = tuple[int, int]
"""(height, width)"""


class Way:
    """An engine in one of its modes."""

    def __init__(self, engine: Engine, mode: Mode, shapes: set[Shape]) -> None:
        self.engine = engine
        self.suppressing = engine if isinstance(engine, SuppressingEngine) else None
        self.mode: Mode = mode
        self.slots = threading.Semaphore(engine.parallel)
        """One for each batch that may be inside."""
        self.shapes = shapes
        """Prepared; only added to."""
        self.users = 0
        """Batches that hold on to it."""
        self.retired = False
        """No new batch comes; the last one closes the engine."""


class Ways:
    """`say` sends a reply to the server; `on_parallel(n)` comes before so many batches may be inside at once;
    `max_batch(engine)` is what the server is told of it."""

    def __init__(
        self,
        loaded: Loaded,
        say: Callable[[protocol.Reply], None],
        on_parallel: Callable[[int], None],
        max_batch: Callable[[Engine], int],
    ) -> None:
        self._say = say
        self._on_parallel = on_parallel
        self._max_batch = max_batch
        self._first = self._now = Way(loaded.engine, "latency", {loaded.shape})
        self._second: Way | None = None
        self._make_second = loaded.throughput
        self._upgrade = loaded.upgrade
        self._building = None
        if loaded.upgrade is not None:
            self._building = Building(loaded.upgrade, say, lambda: self._wanted.put("upgrade"))
        self._picking = threading.Lock()
        self._switch = ModeSwitch()
        self._switching = threading.Lock()
        self._wanted: queue.SimpleQueue[Shape | Mode | Literal["upgrade"] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="preparer", daemon=True)
        self._thread.start()

    def begin_upgrade(self) -> None:
        """Have the faster engine built if there is one. Once, after Hello."""
        if self._building is not None:
            self._building.start()

    @contextlib.contextmanager
    def use(self, shape: Shape) -> Iterator[Way | None]:
        """How to run a batch of this shape now; its engine stays open inside. None: it has not been prepared."""
        with self._picking:
            way = next((way for way in (self._now, self._first) if shape in way.shapes), None)
            if way is not None:
                way.users += 1
        try:
            yield way
        finally:
            if way is not None:
                self._leave(way)

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
        if self._building is not None:
            self._building.cancel()
        self._wanted.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        for way in (self._first, self._second):
            if way is not None:
                way.engine.close()

    def _leave(self, way: Way) -> None:
        with self._picking:
            way.users -= 1
            last = way.retired and not way.users
        if last:
            _close(way.engine)

    # In the thread.

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            if isinstance(wanted, tuple):
                self._prepare(wanted)
            elif wanted == "upgrade":
                self._enter_upgrade()
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
        if make is None:  # asked for by the load on an engine that has been replaced since
            return None
        try:
            engine = make()
        except Exception:  # the first goes on
            log.exception("the engine cannot run for throughput")
            return None
        if engine.parallel < 2:
            engine.close()
            return None
        self._make_second = make
        return Way(engine, "throughput", set())

    def _complete(self, way: Way) -> None:
        """Give it the shapes of the first. What it cannot do stays with the first."""
        for shape in self._first.shapes - way.shapes:
            try:
                way.engine.prepare(*shape)
            except Exception:
                log.exception("shape=%dx%d could not be prepared for throughput", shape[1], shape[0])
            else:
                way.shapes.add(shape)

    def _enter_upgrade(self) -> None:
        """The faster engine has been built: run new batches on it from now on, if it can do all that the old one can.
        The old one is closed when its last batch has left."""
        upgrade, building = self._upgrade, self._building
        assert upgrade is not None, "only what is built comes here"
        assert building is not None, "only what is built comes here"
        try:
            way = self._upgraded(upgrade)
        except Exception as error:  # the old one goes on
            building.failed(error)
            return
        self._on_parallel(way.engine.parallel)
        with self._picking:
            old = [one for one in (self._first, self._second) if one is not None]
            self._first = self._now = way
            self._second = self._make_second = None
            for one in old:
                one.retired = True
            idle = [one for one in old if not one.users]
        engine = way.engine
        why = f"{engine.name} {engine.precision}: it has been built while {old[0].engine.name} served"
        log.info("upgrade engine=%s %s state=running %s", engine.name, engine.precision, why)
        self._say(
            protocol.Switched(
                engine.name, engine.precision, engine.device, why, engine.parallel, self._max_batch(engine)
            )
        )
        for one in idle:
            _close(one.engine)

    def _upgraded(self, upgrade: Upgrade) -> Way:
        """The new engine, which has answered in every shape of the old one. Raises whatever is in the way."""
        engine = upgrade.make()
        try:
            for shape in self._first.shapes:
                try_out(engine, shape)
        except BaseException:
            engine.close()
            raise
        return Way(engine, "latency", set(self._first.shapes))


def _close(engine: Engine) -> None:
    """One that has been replaced. The batch that was its last must not fail for it."""
    try:
        engine.close()
    except Exception:
        log.exception("engine=%s could not be closed", engine.name)
