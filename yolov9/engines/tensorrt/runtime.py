"""A serialised engine on a device: lanes with memory, contexts and CUDA graphs of their own.

A *lane* runs one batch at a time. While the device computes for one, the host fills the pinned buffer of the other, so
two of them keep a fast device busy. Each (height, width, batch) of a small set becomes one CUDA graph a lane: copy in,
infer, copy the candidates out, in a single launch. A captured graph holds on to the state of its execution context, so
each has a context of its own; contexts are small, because all of a lane share its scratch memory.

Knows TensorRT only through `Api` and the device only through `Cuda`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from yolov9.bundle import INPUT_NAME, OUTPUT_NAME
from yolov9.engines.base import EngineError, buckets
from yolov9.engines.tensorrt.api import Api
from yolov9.engines.tensorrt.cuda import Cuda, Event, Graph, Pointer, Stream
from yolov9.engines.tensorrt.names import CANDIDATE_ROWS, CANDIDATES, MINIMUM, SHARE, SUMMARY, SUMMARY_COLUMNS
from yolov9.engines.tensorrt.recipe import Recipe

log = logging.getLogger("yolov9.engines.tensorrt")

LANES = 2
_FLOAT = 4
_PIXEL = 3
_COPIED_OUT = (CANDIDATES, SUMMARY)
"""What is copied to the host with every batch; the predictions are fetched if they are needed."""

Images = Sequence[npt.NDArray[np.uint8]]
Floats = npt.NDArray[np.float32]
_Key = tuple[int, int, int]
"""(height, width, batch)"""


class Thresholds(NamedTuple):
    minimum: Floats
    """(B, classes)"""
    share: Floats
    """(B, 1)"""


@dataclass(frozen=True)
class _Buffer:
    """The same tensor in both memories."""

    device: Pointer
    host: npt.NDArray[np.uint8]
    """Pinned bytes."""

    def view(self, shape: tuple[int, ...]) -> Floats:
        return self.host[: int(np.prod(shape)) * _FLOAT].view(np.float32).reshape(shape)


@dataclass(frozen=True)
class _Prepared:
    """A context that is set to one shape and batch."""

    context: Any
    graph: Graph | None
    """None: the engine cannot be captured."""
    predictions: Pointer
    shape: tuple[int, ...]
    """Of the predictions, (batch, 4+nc, A)."""


@dataclass(eq=False)
class Lane:
    belongings: contextlib.ExitStack
    """Gives back everything that was made on the device, the last first."""
    stream: Stream
    event: Event
    scratch: Pointer
    buffers: dict[str, _Buffer]
    predictions: dict[int, Pointer] = field(default_factory=dict)
    """Size in bytes -> memory on the device. Only one batch runs at a time, so a few sizes serve all shapes."""
    fetched: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Size -> pinned memory, for predictions that are asked for."""
    prepared: dict[_Key, _Prepared] = field(default_factory=dict)


class _Pool:
    """Lanes that are free. One that is asked for by itself is kept from the others until it has been had."""

    def __init__(self) -> None:
        self._free: list[Lane] = []
        self._reserved: list[Lane] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self) -> Iterator[Lane]:
        with self._changed:
            self._changed.wait_for(lambda: any(lane not in self._reserved for lane in self._free))
            lane = next(lane for lane in self._free if lane not in self._reserved)
            self._free.remove(lane)
        try:
            yield lane
        finally:
            self.give(lane)

    @contextlib.contextmanager
    def take_this(self, lane: Lane) -> Iterator[None]:
        with self._changed:
            self._reserved.append(lane)
            self._changed.wait_for(lambda: lane in self._free)
            self._reserved.remove(lane)
            self._free.remove(lane)
        try:
            yield
        finally:
            self.give(lane)

    def give(self, lane: Lane) -> None:
        with self._changed:
            self._free.append(lane)
            self._changed.notify_all()


class Batch(NamedTuple):
    """What a batch gave, valid inside `Session.run`."""

    candidates: Floats
    """(B, 7, K)"""
    summary: Floats
    """(B, 3)"""
    lane: Lane
    prepared: _Prepared


class Session:
    """`run` may be called from several threads; `LANES` of them are on the device at once. EngineError."""

    def __init__(
        self, api: Api, cuda: Cuda, recipe: Recipe, plan: bytes, *, lanes: int = LANES, kernels: bytes | None = None
    ) -> None:
        """`kernels`: what `compiled` gave in an earlier process."""
        self._api, self._cuda, self._recipe = api, cuda, recipe
        self._profiles = {shape: index for index, shape in enumerate(recipe.shapes)}
        self._buckets = buckets(recipe.max_batch)
        cuda.enter()
        api.messages.clear()
        self._runtime: Any = api.module.Runtime(api.logger)
        self._engine: Any = None if self._runtime is None else self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{api} cannot load the engine of {recipe}: {api.messages.why()}")
        self._config, self._kernels = self._runtime_config(kernels)
        self._lanes: list[Lane] = []
        self._pool = _Pool()
        self._making = threading.Lock()
        try:
            for _ in range(lanes):
                self._lanes.append(self._make_lane())
        except EngineError:
            self.close()
            raise
        for lane in self._lanes:
            self._pool.give(lane)

    def prepare(self, height: int, width: int) -> None:
        """Make a shape ready on every lane, one after the other: batches of other shapes go on beside it."""
        self._check_shape(height, width)
        self._cuda.enter()
        for lane in self._lanes:
            with self._pool.take_this(lane):
                for batch in self._buckets:
                    self._ready(lane, (height, width, batch))

    @contextlib.contextmanager
    def run(self, images: Images, thresholds: Thresholds) -> Iterator[Batch]:
        """Run one batch of at most `max_batch` images of one shape. What it gives lies in the lane's own memory."""
        height, width, _ = images[0].shape
        self._check_shape(height, width)
        count = len(images)
        batch = next(size for size in self._buckets if size >= count)
        self._cuda.enter()
        with self._pool.take() as lane:
            prepared = self._ready(lane, (height, width, batch))
            np.stack(images, out=_pixels(lane, (batch, height, width, _PIXEL))[:count])
            classes = self._recipe.classes
            lane.buffers[MINIMUM].view((batch, classes))[:count] = thresholds.minimum
            lane.buffers[SHARE].view((batch, 1))[:count] = thresholds.share
            if prepared.graph is not None:
                self._cuda.launch(prepared.graph, lane.stream)
            else:
                self._enqueue(lane, prepared.context, (height, width, batch))
            self._cuda.wait(lane.event, lane.stream)
            candidates = lane.buffers[CANDIDATES].view((count, CANDIDATE_ROWS, self._recipe.candidates))
            yield Batch(candidates, lane.buffers[SUMMARY].view((count, SUMMARY_COLUMNS)), lane, prepared)

    def predictions(self, batch: Batch, first: int, count: int) -> Floats:
        """(count, 4+nc, A), a copy: the predictions of images `first` and on of a batch that has just run."""
        lane, shape = batch.lane, (count, *batch.prepared.shape[1:])
        size = int(np.prod(shape[1:])) * _FLOAT
        fitting = [there for there in lane.fetched if there >= count * size]
        if not fitting:
            fitting = [self._recipe.max_batch * size]
            lane.fetched[fitting[0]] = self._pinned(lane.belongings, fitting[0])
        target = lane.fetched[min(fitting)][: count * size]
        self._cuda.to_host(target, Pointer(batch.prepared.predictions + first * size), lane.stream)
        self._cuda.wait(lane.event, lane.stream)
        return target.view(np.float32).reshape(shape).copy()

    def compiled(self) -> bytes | None:
        """Kernels that were compiled for this device, to be given to a later process. None: there is no such thing."""
        return bytes(self._kernels.serialize()) if self._kernels is not None else None

    def close(self) -> None:
        """No batch may be inside."""
        self._cuda.enter()
        for lane in self._lanes:
            self._cuda.synchronize(lane.stream)
            lane.prepared.clear()
            lane.belongings.close()
        self._lanes.clear()
        self._kernels = self._config = self._engine = self._runtime = None  # contexts went first, as they must

    def _check_shape(self, height: int, width: int) -> None:
        if (height, width) not in self._profiles:
            there = ", ".join(f"{w}x{h}" for h, w in self._recipe.shapes)
            raise EngineError(f"tensorrt: the engine has no profile for {width}x{height} (it has {there})")

    # A lane.

    def _sizes(self) -> dict[str, int]:
        """Bytes of each tensor that is copied, at its largest."""
        recipe = self._recipe
        one = {
            INPUT_NAME: max(height * width for height, width in recipe.shapes) * _PIXEL,
            MINIMUM: recipe.classes * _FLOAT,
            SHARE: _FLOAT,
            CANDIDATES: CANDIDATE_ROWS * recipe.candidates * _FLOAT,
            SUMMARY: SUMMARY_COLUMNS * _FLOAT,
        }
        return {name: recipe.max_batch * size for name, size in one.items()}

    def _make_lane(self) -> Lane:
        cuda = self._cuda
        with contextlib.ExitStack() as made:  # in case of a failure half-way
            stream = cuda.stream()
            made.callback(cuda.destroy_stream, stream)
            event = cuda.event()
            made.callback(cuda.destroy_event, event)
            scratch = self._allocated(made, max(int(self._engine.device_memory_size_v2), 1))
            buffers = {
                name: _Buffer(self._allocated(made, size), self._pinned(made, size))
                for name, size in self._sizes().items()
            }
            return Lane(made.pop_all(), stream, event, scratch, buffers)

    def _allocated(self, belongings: contextlib.ExitStack, size: int) -> Pointer:
        pointer = self._cuda.allocate(size)
        belongings.callback(self._cuda.free, pointer)
        return pointer

    def _pinned(self, belongings: contextlib.ExitStack, size: int) -> npt.NDArray[np.uint8]:
        memory = self._cuda.pinned(size)
        belongings.callback(self._cuda.free_pinned, memory)
        memory[...] = 0  # rows of a batch that are not filled are computed and left out
        return memory

    def _ready(self, lane: Lane, key: _Key) -> _Prepared:
        """The lane must be ours."""
        prepared = lane.prepared.get(key)
        if prepared is None:
            with self._making:  # an engine may run on several lanes at once; nobody promises the same of its set-up
                context = self._context(lane, key)
            shape = tuple(context.get_tensor_shape(OUTPUT_NAME))
            predictions = self._room(lane, int(np.prod(shape)) * _FLOAT)
            if not context.set_tensor_address(OUTPUT_NAME, predictions):
                raise self._failure("the predictions have no place")
            # Once without a capture: kernels are loaded or compiled, and whatever is allocated lazily is allocated.
            self._enqueue(lane, context, key)
            self._cuda.wait(lane.event, lane.stream)
            prepared = _Prepared(context, self._captured(lane, context, key), predictions, shape)
            lane.prepared[key] = prepared
        return prepared

    def _room(self, lane: Lane, size: int) -> Pointer:
        """Memory for predictions of so many bytes: some that there is, if it is large enough."""
        fitting = [there for there in lane.predictions if there >= size]
        if not fitting:
            lane.predictions[size] = self._allocated(lane.belongings, size)
        return lane.predictions[min(fitting, default=size)]

    def _context(self, lane: Lane, key: _Key) -> Any:
        height, width, batch = key
        strategy = self._api.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise self._failure("no execution context can be made")
        context.set_device_memory(lane.scratch, int(self._engine.device_memory_size_v2))
        done = context.set_optimization_profile_async(self._profiles[height, width], lane.stream)
        shapes = {
            INPUT_NAME: (batch, height, width, _PIXEL),
            MINIMUM: (batch, self._recipe.classes),
            SHARE: (batch, 1),
        }
        done = done and all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        done = done and all(context.set_tensor_address(name, b.device) for name, b in lane.buffers.items())
        if not done:
            raise self._failure(f"{width}x{height} in batches of {batch} cannot be set up")
        self._cuda.synchronize(lane.stream)
        return context

    def _captured(self, lane: Lane, context: Any, key: _Key) -> Graph | None:
        stream_capturable = getattr(context, "is_stream_capturable", None)
        if stream_capturable is not None and not stream_capturable(lane.stream):
            log.warning("tensorrt: shape=%dx%d batch=%d runs without a CUDA graph", key[1], key[0], key[2])
            return None
        with self._cuda.capture(lane.stream) as captured:
            self._enqueue(lane, context, key)
        lane.belongings.callback(self._cuda.destroy_graph, captured[0])
        return captured[0]

    def _enqueue(self, lane: Lane, context: Any, key: _Key) -> None:
        height, width, batch = key
        cuda, stream = self._cuda, lane.stream
        for name, size in (
            (INPUT_NAME, batch * height * width * _PIXEL),
            (MINIMUM, batch * self._recipe.classes * _FLOAT),
            (SHARE, batch * _FLOAT),
        ):
            cuda.to_device(lane.buffers[name].device, lane.buffers[name].host[:size], stream)
        if not context.execute_async_v3(stream):
            raise self._failure("the inference failed")
        for name in _COPIED_OUT:
            size = lane.buffers[name].host.size // self._recipe.max_batch * batch
            cuda.to_host(lane.buffers[name].host[:size], lane.buffers[name].device, stream)

    def _runtime_config(self, kernels: bytes | None) -> tuple[Any, Any]:
        """(runtime configuration, cache of kernels) of the flavour that compiles when it is loaded; else None, None."""
        if not self._api.portable:
            return None, None
        module = self._api.module
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        # What is captured stays: the kernels for the shape itself, not those that fill in until they are compiled.
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        if kernels is not None and not cache.deserialize(kernels):
            log.info("compiled kernels are of another device, driver or version: they are compiled anew")
        config.set_runtime_cache(cache)
        return config, cache

    def _failure(self, what: str) -> EngineError:
        return EngineError(f"tensorrt: {what}: {self._api.messages.why()}")


def try_out(api: Api, cuda: Cuda, recipe: Recipe, plan: bytes) -> bytes | None:
    """Run a new engine once, in its first shape. What it compiled for that (see `Session.compiled`). EngineError if it
    does not run or what it gives is not finite."""
    height, width = recipe.shapes[0]
    image = np.full((height, width, 3), 114, np.uint8)
    thresholds = Thresholds(np.ones((1, recipe.classes), np.float32), np.zeros((1, 1), np.float32))
    session = Session(api, cuda, recipe, plan, lanes=1)
    try:
        with session.run([image], thresholds) as batch:
            if not np.isfinite(batch.summary).all():
                raise EngineError(f"{api}: the engine of {recipe} gives NaN or infinity")
        return session.compiled()
    finally:
        session.close()


def _pixels(lane: Lane, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return cast("npt.NDArray[np.uint8]", lane.buffers[INPUT_NAME].host[: int(np.prod(shape))].reshape(shape))
