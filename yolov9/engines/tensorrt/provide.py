"""Engines from where they are: the cache, or the builder. Graph, build and cache put together."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolov9.bundle import Bundle
from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.api import Api, Capability, load
from yolov9.engines.tensorrt.build import Options, Progress, build
from yolov9.engines.tensorrt.cache import EngineCache, default_folder, write
from yolov9.engines.tensorrt.cuda import Cuda
from yolov9.engines.tensorrt.graph import engine_graph
from yolov9.engines.tensorrt.recipe import Recipe, Shape, capability_of, portable_target, recipe, targets
from yolov9.engines.tensorrt.runtime import try_out

log = logging.getLogger("yolov9.engines.tensorrt")

SUFFIX = ".engine"


class NotBuilt(EngineError):
    """TensorRT could run here, but there is no engine for the bundle yet."""


@dataclass(frozen=True)
class Site:
    """A bundle on a GPU that TensorRT can run it on."""

    bundle: Bundle
    api: Api
    cuda: Cuda
    cache: EngineCache
    recipes: tuple[Recipe, ...]
    """Engines that would do, the best first; the last is what is built if there is none."""

    @property
    def wanted(self) -> Recipe:
        return self.recipes[-1]

    @property
    def built(self) -> bool:
        """Whether there is a file for one of them; it may turn out to be damaged."""
        return any(self.cache.holds(one) for one in self.recipes)

    def find(self) -> tuple[Recipe, bytes] | None:
        """The best engine that there is in the cache."""
        for one in self.recipes:
            plan = self.cache.find(one)
            if plan is not None:
                return one, plan
        return None


def site(
    bundle: Bundle,
    *,
    precision: str = "auto",
    max_batch: int | None = None,
    cache_dir: str | Path | None = None,
    device: str | None = None,
    api: Api | None = None,
    cuda: Cuda | None = None,
) -> Site:
    """EngineError if TensorRT cannot run the bundle here: no driver, no TensorRT, no such precision. `device`:
    cuda or cuda:N, by default the first. `api` and `cuda`:
    instead of what is found on this machine."""
    cuda = cuda or Cuda(_index(device))
    api = api or load()
    unsupported = api.supports(cuda.capability)
    if unsupported is not None:
        raise EngineError(unsupported)
    folder = Path(cache_dir) if cache_dir is not None else default_folder()
    recipes = tuple(
        recipe(bundle, api, target, precision=precision, max_batch=max_batch)
        for target in targets(api, cuda.name, cuda.capability)
    )
    return Site(bundle, api, cuda, EngineCache(folder), recipes)


def provide(
    where: Site, *, progress: Progress = lambda share, what: None, cancelled: threading.Event | None = None
) -> tuple[Recipe, bytes]:
    """The engine from the cache, or built, tried out and put into it: which takes seconds to many minutes, and waits
    for other processes that build. BuildCancelled, EngineError; OSError from the disk."""
    with where.cache.building(cancelled):
        found = where.find()  # perhaps what we waited for
        if found is not None:
            return found
        began = time.monotonic()
        wanted = where.wanted
        options = Options(
            timing_cache=where.cache.timing(wanted),
            capability=capability_of(wanted.target) if where.api.portable else None,
            progress=progress,
            cancelled=cancelled,
        )
        graph = engine_graph(where.bundle, wanted.precision, wanted.candidates)
        built = build(where.api, graph, wanted, options)
        if built.timing_cache is not None:
            where.cache.add_timing(wanted, built.timing_cache)
        progress(1.0, "trying it out")
        kernels = try_out(where.api, where.cuda, wanted, built.plan)  # what does not run, or crashes, is not kept
        path = where.cache.add(wanted, built.plan)
        if kernels is not None:
            where.cache.add_kernels(wanted, kernels)
    log.info(
        "built engine=tensorrt precision=%s flavour=%s profiles=%d bytes=%d seconds=%.1f file=%s",
        wanted.precision, where.api, len(wanted.shapes), len(built.plan), time.monotonic() - began, path,
    )  # fmt: skip
    return wanted, built.plan


def build_engine(
    bundle: Bundle,
    out: str | Path,
    *,
    precision: str = "auto",
    shapes: Sequence[Shape] | None = None,
    max_batch: int | None = None,
    target: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Build an engine for a bundle ahead of time; where it was written.

    `out`: a file that ends in `.engine`, or a folder, in which the file gets the name under which `TensorRtEngine`
    looks for it: a server's `DATA/engines` or `cache.default_folder()`. `shapes`: (height, width), by default all that
    pictures may take; an engine of other shapes or another `max_batch` than the defaults is not looked for by itself.
    `target`: compute capability, such as "8.9", for TensorRT for RTX, which by default builds for all of 8.0 and later
    and needs no GPU; TensorRT itself builds for the GPU at hand. `say` gets progress lines. EngineError, OSError.
    """
    api = load()
    wanted = recipe(
        bundle, api, _target(api, target), precision=precision, max_batch=max_batch,
        shapes=None if shapes is None else tuple(shapes),
    )  # fmt: skip
    path = Path(out)
    if path.suffix != SUFFIX:
        path /= wanted.file
    say(
        f"{api}: building {wanted.precision}, {len(wanted.shapes)} shapes, batches of 1 to {wanted.max_batch}, for "
        + ("compute capability 8.0 and later" if wanted.target == "any" else wanted.target)
    )
    began = time.monotonic()
    graph = engine_graph(bundle, wanted.precision, wanted.candidates)
    capability = capability_of(wanted.target) if api.portable else None
    built = build(
        api, graph, wanted, Options(capability=capability, progress=lambda share, what: say(f"{share:4.0%} {what}"))
    )
    write(path, wanted, built.plan)
    say(f"built in {time.monotonic() - began:.1f} s: {path} ({len(built.plan) / 1e6:.1f} MB)")
    return path


def _index(device: str | None) -> int:
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device or "cuda")
    if match is None:
        raise EngineError(f"tensorrt: does not run on the device {device!r}")
    return int(match[1] or 0)


def _target(api: Api, asked: str | None) -> str:
    if not api.portable:
        if asked is not None:
            raise EngineError(f"{api} builds for the GPU at hand only, not for a target ({asked})")
        cuda = Cuda()
        return targets(api, cuda.name, cuda.capability)[-1]
    capability = None if asked is None else _capability(asked)
    if capability is not None:
        api.target(capability)  # refuses what there is not
    return portable_target(capability)


def _capability(text: str) -> Capability:
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    if match is None:
        raise EngineError(f"target {text!r} is not a compute capability such as 8.9")
    return int(match[1]), int(match[2])
