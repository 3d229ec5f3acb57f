"""Engines run a model bundle: by name, or the fastest that works here. Each is imported only when it is tried."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from yolov9.bundle import Bundle
from yolov9.engines.base import Engine, EngineError
from yolov9.geometry import input_shape

__all__ = ["ENGINES", "Choice", "Engine", "EngineError", "choose", "create", "usual_shape"]

ENGINES = {
    "openvino": ("yolov9.engines.openvino", "OpenVinoEngine"),
    "onnxruntime": ("yolov9.engines.onnxruntime", "OnnxRuntimeEngine"),
    "torch": ("yolov9.engines.torch", "TorchEngine"),
}
"""Name -> module and class. In this order by measured speed on a CPU."""
_NVIDIA = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there with an NVIDIA driver (Linux, WSL). Looked at before torch is imported, which takes seconds."""

Mode = Literal["latency", "throughput"]


class Choice(NamedTuple):
    engine: Engine
    """Ready for `usual_shape`."""
    why: str
    """For people, e.g. "openvino bf16: the fastest that works here (no NVIDIA GPU)"."""


def usual_shape(bundle: Bundle) -> tuple[int, int]:
    """(height, width) of a 16:9 camera: what nearly every frame has, hence made ready first."""
    return input_shape(bundle.input_size, 16, 9)


def choose(
    bundle: Bundle,
    engine: str = "auto",
    precision: str = "auto",
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    cache_dir: str | Path | None = None,
    mode: Mode = "latency",
) -> Choice:
    """Make an engine and run it once at `usual_shape`, so that what comes back works.

    `engine`: auto or a key of ENGINES. `precision`: auto, fp32, fp16, bf16 or int8. `threads`: CPU threads, None for
    all that this process may use. `max_batch`: largest batch, None for what pays on the device. `cache_dir`: compiled
    models are kept there. EngineError says what is wrong with each engine that was tried.
    """
    options: dict[str, Any] = {
        "precision": precision, "threads": threads, "max_batch": max_batch, "cache_dir": cache_dir, "mode": mode,
    }  # fmt: skip
    if engine != "auto":
        made = _working(bundle, engine, options)
        return Choice(made, f"{engine} {made.precision}: asked for by name")
    failures: list[str] = []
    gpu = any(path.exists() for path in _NVIDIA)
    for name, more in _candidates(gpu):
        try:
            made = _working(bundle, name, {**options, **more})
        except EngineError as error:
            failures.append(f"{name}{' on the GPU' if more else ''}: {error}")
        else:
            reasons = ([] if gpu else ["no NVIDIA GPU"]) + failures
            return Choice(made, f"{name} {made.precision}: the fastest that works here ({'; '.join(reasons) or 'GPU'})")
    raise EngineError(f"no engine runs {bundle.path} here: {'; '.join(failures)}")


def create(
    bundle: Bundle,
    engine: str = "auto",
    precision: str = "auto",
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    cache_dir: str | Path | None = None,
    mode: Mode = "latency",
) -> Engine:
    """`choose` without the reason."""
    return choose(
        bundle, engine, precision, threads=threads, max_batch=max_batch, cache_dir=cache_dir, mode=mode
    ).engine


def _candidates(gpu: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to try in turn, with further options."""
    if gpu:
        yield "torch", {"device": "cuda"}
    for name in ENGINES:
        yield name, {}


def _working(bundle: Bundle, name: str, options: dict[str, Any]) -> Engine:
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r} (auto, {', '.join(ENGINES)})")
    module, class_name = ENGINES[name]
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing or of another build
        raise EngineError(f"not installed, or broken: {error}") from error
    engine = cast(Engine, kind(bundle, **options))
    engine.prepare(*usual_shape(bundle))
    return engine
