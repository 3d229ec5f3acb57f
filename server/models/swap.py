"""One model takes the place of another while frames keep coming.

The new one's worker is started beside the old one's and put on trial (`trial`): it must come up, make every shape
ready that the running cameras need, and answer with numbers, in a time that is not absurd. Then new batches go to it.
What is under way ends where it is, and so does what cameras have scaled for the old input size until they have heard of
the new one; then the old worker ends. Whatever goes wrong before the switch leaves the old model as it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable

from server.delivery.ports import ServerError
from server.engine_room import EngineRoom
from server.metrics import Metrics
from server.models.deployment import Deployment
from server.models.registry import Entry, Registry
from server.models.start import MEMORY
from server.models.trial import Refused, Trial
from server.roster import Roster
from server.settings import ServerSettings
from server.store import Store, StoreError
from yolov9.bundle import Bundle, BundleError
from yolov9.geometry import input_shape

log = logging.getLogger("yolov9.models")

_DRAIN_S = 15.0
"""For the last frames of the old input size: a camera's process that has stopped is killed well before."""
_LOOK_S = 0.02
_FAST_S = 0.005
"""No model that takes less for a picture is too slow, whatever the one before took."""
_USUAL_SIZE = (16, 9)


class SwapInProgress(ServerError):
    """Another model is being activated."""

    status, code = 409, "swap_in_progress"


class ClassesMissing(ServerError):
    """Streams ask for classes that the model does not have."""

    status, code = 409, "classes_missing"


class Swapper:
    """One activation at a time. Event loop only."""

    def __init__(
        self,
        settings: ServerSettings,
        engine: EngineRoom,
        roster: Roster,
        registry: Registry,
        store: Store,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._roster = roster
        self._registry = registry
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def give_up(self) -> None:
        """End a trial. A model that has been switched to is remembered all the same."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def stop(self) -> None:
        """Give up what is under way, the drain of the model before included."""
        tasks = [task for task in (self._running, self._draining) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def begin(self, name: str, *, force: bool = False) -> asyncio.Task[None] | None:
        """Start to activate a model; None if it is active. `force`: even if streams lose classes, or it is slow.

        The task ends with the switch, or raises Refused; see `drained`. UnknownModel, SwapInProgress, ClassesMissing,
        Refused.
        """
        entry = self._registry.get(name)
        if entry.state == "active":
            return None
        if self._running is not None:
            raise SwapInProgress("another model is being activated; one at a time", retry_after_s=5)
        if entry.bundle is None:
            raise Refused(entry.reason or "the bundle cannot be read")
        self._check_classes(entry, entry.bundle, force)
        entry.state, entry.reason, entry.note = "loading", None, None
        self._running = asyncio.get_running_loop().create_task(self._swap(entry, force))
        self._running.add_done_callback(self._ended)
        return self._running

    async def drained(self) -> None:
        """Until the active model is remembered, and the worker of the one before has ended."""
        if self._draining is not None:
            await asyncio.wait([self._draining])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._running is task:
            self._running = None
        if not task.cancelled():
            task.exception()  # seen: the entry tells of it, whether or not somebody waits

    # The old and the new one side by side.

    async def _swap(self, entry: Entry, force: bool) -> None:
        began = self._clock()
        deployment: Deployment | None = None
        log.info("model=%s state=loading", entry.name)
        try:
            await self.drained()
            async with asyncio.timeout(self._settings.swap_timeout_s):
                bundle = await self._load(entry)
                trial = Trial()
                deployment = self._engine.deploy(bundle, entry.name, trial)
                await self._try(trial, deployment, force)
            self._check_classes(entry, bundle, force)  # streams came and changed meanwhile
        except Exception as error:
            entry.state, entry.reason = "refused", self._reason(error)
            self._metrics.model_swap(False)
            log.error("model=%s state=refused %s", entry.name, entry.reason)
            if deployment is not None:
                await self._engine.end(deployment)
            raise Refused(entry.reason) from None
        except asyncio.CancelledError:
            entry.state = "ready"
            raise
        self._switch(entry, deployment)
        self._running = None  # who sees that it is active may ask for the next one
        took = self._clock() - began
        log.info("model=%s state=active generation=%d seconds=%.2f", entry.name, entry.generation, took)

    async def _load(self, entry: Entry) -> Bundle:
        """The bundle as it lies there now, checked anew."""
        try:
            bundle = await asyncio.to_thread(Bundle.load, entry.path)
        except BundleError as error:
            raise Refused(str(error)) from None
        if entry.bundle is None or bundle.hash != entry.bundle.hash:
            raise Refused("its files are not those that were registered")
        return bundle

    async def _try(self, trial: Trial, deployment: Deployment, force: bool) -> None:
        sizes = self._sizes()
        size = deployment.model.input_size
        while True:
            seconds = await trial.run(deployment, [input_shape(size, *source) for source in sizes])
            known, sizes = sizes, self._sizes()
            if set(sizes) <= set(known):  # no camera of another shape has come meanwhile
                break
        now = self._engine.usual_s(*known[0])
        allowed = self._settings.swap_max_slowdown
        if now is not None and seconds > max(allowed * now, _FAST_S) and not force:
            raise Refused(
                f"it takes {seconds * 1e3:.1f} ms for a picture, {seconds / now:.1f} times as long as the active model "
                f"({now * 1e3:.1f} ms); {allowed:g} times are allowed (swap_max_slowdown), more with force"
            )

    def _sizes(self) -> list[tuple[int, int]]:
        """(width, height) of what the cameras show, the most frequent first."""
        seen = Counter(size for stream in self._roster.streams.values() if (size := stream.source_size) is not None)
        return [size for size, _ in seen.most_common()] or [_USUAL_SIZE]

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"it was not ready within {self._settings.swap_timeout_s:g} s (swap_timeout_s)"
        if isinstance(error, ClassesMissing):  # says of which streams, which is not for everybody
            return "streams ask for classes that it does not have"
        if isinstance(error, ServerError):
            return error.detail
        if isinstance(error, OSError):
            return f"there is no memory, process or descriptor for it: {error.strerror}"
        log.exception("a model could not be activated", exc_info=error)
        return "something went wrong inside the server; its log says what"

    def _check_classes(self, entry: Entry, bundle: Bundle, force: bool) -> None:
        lacking = {
            stream.id: missing
            for stream in self._roster.streams.values()
            if (missing := stream.missing_classes(bundle.names))
        }
        if not lacking:
            return
        what = "; ".join(f"{stream}: {', '.join(missing)}" for stream, missing in lacking.items())
        if not force:
            raise ClassesMissing(f"streams ask for classes that {entry.name!r} does not have ({what}); more with force")
        ignored = ", ".join(sorted({name for missing in lacking.values() for name in missing}))
        entry.note = f"streams ask for classes that it does not have, which are ignored: {ignored}"

    # The switch, and what follows.

    def _switch(self, entry: Entry, deployment: Deployment) -> None:
        """Between two batches: nothing is awaited here."""
        before = self._registry.active
        size = deployment.model.input_size
        old = self._engine.activate(deployment)
        if size != old.model.input_size:
            self._roster.resize(size)
        before.state, before.generation = "ready", None
        entry.state, entry.bundle, entry.generation = "active", deployment.bundle, deployment.model.generation
        self._metrics.model_swap(True)
        self._draining = asyncio.get_running_loop().create_task(self._drain(entry, old))

    async def _drain(self, entry: Entry, old: Deployment) -> None:
        await self._remember(entry)
        deadline = self._clock() + _DRAIN_S
        while self._clock() < deadline and self._needed(old.model.input_size):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        await self._engine.end(old)
        if self._engine.model.input_size < old.model.input_size:
            self._engine.trim()
        log.info("model=%s state=drained", old.model.name)

    def _needed(self, old_size: int) -> bool:
        """Whether frames for the old model are there, or could still come."""
        size = self._engine.model.input_size
        if self._engine.dispatcher.draining:
            return True
        return size != old_size and not (self._roster.scale_for(size) and self._engine.desk.scales_for(size))

    async def _remember(self, entry: Entry) -> None:
        try:
            await self._store.remember(MEMORY, json.dumps({"name": entry.name, "path": str(entry.path.resolve())}))
        except StoreError as error:
            log.error("model=%s is active, but not at the next start: %s", entry.name, error)
            entry.note = "it is active, but could not be remembered for the next start"
