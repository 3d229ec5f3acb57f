"""From a graph to a serialised engine: parse, one optimisation profile a shape, build. The caller keeps the result.

Networks are strongly typed: what computes in which precision is the graph's business (`graph`), and is read back from
the parsed network, so that an engine is never called fp16 without being it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from yolov9.bundle import INPUT_NAME
from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.api import Api, Capability
from yolov9.engines.tensorrt.names import MINIMUM, SHARE
from yolov9.engines.tensorrt.recipe import Precision, Recipe

WORKSPACE_BYTES = 2 << 30
"""Scratch memory that a kernel may ask for: the GPU is shared with whoever serves meanwhile."""
_LONG_PHASE = "Computing profile costs"
"""In which nearly all of the time goes: kernels are compiled and measured."""

Progress = Callable[[float, str], None]
"""Share that is done, 0..1, and what is being done."""


class BuildCancelled(EngineError):
    """Given up because it was asked to."""


@dataclass(frozen=True)
class Options:
    workspace: int = WORKSPACE_BYTES
    """Bytes."""
    timing_cache: bytes | None = None
    """Of an earlier build by the same version on the same device; ignored by flavours that measure nothing."""
    capability: Capability | None = None
    """To build for another GPU than the default; portable flavours only."""
    progress: Progress = lambda share, what: None
    cancelled: threading.Event | None = None


class Parsed(NamedTuple):
    """A graph as TensorRT has understood it. The parser owns the weights."""

    builder: Any
    network: Any
    parser: Any
    layers: Counter[str]
    """How many layers of each kind give, and thus compute in, each type, e.g. {"CONVOLUTION HALF": 185}."""


class Built(NamedTuple):
    plan: bytes
    """The serialised engine."""
    timing_cache: bytes | None
    layers: Counter[str]
    """See `Parsed`."""


def build(api: Api, graph: bytes, recipe: Recipe, options: Options = Options()) -> Built:
    """Takes seconds to many minutes, and the GPU. BuildCancelled, EngineError."""
    parsed = parse(api, graph)
    check_precision(recipe.precision, parsed.layers)
    config = _config(api, parsed.builder, recipe, options)
    monitor = _monitor(api, options)
    config.progress_monitor = monitor
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if options.cancelled is not None and options.cancelled.is_set():
        raise BuildCancelled(f"building {recipe} was cancelled")
    if plan is None:
        raise EngineError(f"{api} cannot build {recipe}: {api.messages.why()}")
    timing = bytes(config.get_timing_cache().serialize()) if api.times_tactics else None
    return Built(bytes(plan), timing, parsed.layers)


def parse(api: Api, graph: bytes) -> Parsed:
    """EngineError with what the parser says, and of which node."""
    api.messages.clear()
    module = api.module
    builder = module.Builder(api.logger)
    if builder is None:
        raise EngineError(f"{api} cannot build here: {api.messages.why()}")
    typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # None: there is no other kind
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = module.OnnxParser(network, api.logger)
    if not parser.parse(graph):
        raise EngineError(f"{api} cannot read the graph: {_parser_errors(parser)}")
    return Parsed(builder, network, parser, _layers(network))


def _layers(network: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        tensor = layer.get_output(0) if layer.num_outputs else None
        if tensor is not None:
            found[f"{layer.type.name} {tensor.dtype.name}"] += 1
    return found


def check_precision(precision: Precision, layers: Counter[str]) -> None:
    """EngineError unless the convolutions are what the precision says."""
    half, single = layers["CONVOLUTION HALF"], layers["CONVOLUTION FLOAT"]
    quantised = layers["QUANTIZE INT8"]
    fits = {
        "fp32": not half and not quantised,
        "fp16": half and not single and not quantised,
        "int8": half and not single and quantised,
    }
    if not fits[precision]:
        raise EngineError(
            f"the graph is not {precision}: {half} convolutions in half precision, {single} in single, "
            f"{quantised} quantisers"
        )


def _config(api: Api, builder: Any, recipe: Recipe, options: Options) -> Any:
    module = api.module
    config = builder.create_builder_config()
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace)
    config.clear_flag(module.BuilderFlag.TF32)  # fp32 means fp32
    config.set_flag(module.BuilderFlag.STRICT_NANS)  # NaN must stay NaN: it tells a broken engine from an empty scene
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # costs nothing at run time; the inspector reads it
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else its engines cannot be captured in a graph
    if options.capability is not None:
        if not api.portable:
            raise EngineError(f"{api} builds for the GPU at hand only")
        config.num_compute_capabilities = 1
        config.set_compute_capability(api.target(options.capability), 0)
    if api.times_tactics:
        cache = config.create_timing_cache(options.timing_cache or b"")
        if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another device: begin anew
            config.set_timing_cache(config.create_timing_cache(b""), False)
    for height, width in recipe.shapes:
        _add_profile(builder, config, recipe, height, width)
    return config


def _add_profile(builder: Any, config: Any, recipe: Recipe, height: int, width: int) -> None:
    """Of one shape, for batches of 1 to the largest. Kernels are chosen for the largest: what counts is what the engine
    can do when it has much to do."""
    profile = builder.create_optimization_profile()
    for name, rest in ((INPUT_NAME, (height, width, 3)), (MINIMUM, (recipe.classes,)), (SHARE, (1,))):
        largest = (recipe.max_batch, *rest)
        profile.set_shape(name, (1, *rest), largest, largest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{recipe}: no profile can be made for {width}x{height} in batches of {recipe.max_batch}")


def _parser_errors(parser: Any) -> str:
    """The parser's errors as one line, with the names of their nodes."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
        found.append(node + " ".join(error.desc().split()))
    return "; ".join(dict.fromkeys(found)) or "it gave no reason"


def _monitor(api: Api, options: Options) -> Any:
    """Reports progress, and ends the build when it has been cancelled. Called from the builder's threads."""

    class Monitor(api.module.IProgressMonitor):  # type: ignore[misc, name-defined]  # known at run time only
        def __init__(self) -> None:
            api.module.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._phases = Phases()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases.start(name, parent, steps)

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.finish(name)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                changed = self._phases.step(name, step)
                share = self._phases.share
            if changed:
                options.progress(share, name)
            return options.cancelled is None or not options.cancelled.is_set()

    return Monitor()


class Phases:
    """How far a build is, from what the builder tells of its nested phases. Never goes back."""

    _RESOLUTION = 0.01

    def __init__(self) -> None:
        self._parents: dict[str, str | None] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self.share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._parents[name], self._steps[name], self._done[name] = parent, max(steps, 1), 0

    def finish(self, name: str) -> None:
        self._done.pop(name, None)

    def step(self, name: str, step: int) -> bool:
        """Whether `share` has grown by so much that it is worth telling."""
        if name in self._done:
            self._done[name] = step + 1
        share = self._of_long_phase(name)
        if share < self.share + self._RESOLUTION:
            return False
        self.share = share
        return True

    def _of_long_phase(self, name: str) -> float:
        """The share of the long phase that is done, its open inner phases counted in; 0 outside of it."""
        share, inner = 0.0, name
        while True:
            if inner not in self._done:
                return 0.0
            share = min((self._done[inner] + share) / self._steps[inner], 1.0)
            if inner == _LONG_PHASE:
                return share
            parent = self._parents[inner]
            if parent is None:
                return 0.0
            inner = parent
