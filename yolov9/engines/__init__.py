"""Engines run a model bundle: by name, or the fastest that works here. Each is imported only when it is tried."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from yolov9.bundle import Bundle
from yolov9.engines.base import Engine, EngineError, Limits, SuppressingEngine
from yolov9.geometry import input_shape

__all__ = [
    "ENGINES",
    "Choice",
    "Engine",
    "EngineError",
    "Limits",
    "SuppressingEngine",
    "choose",
    "create",
    "make",
    "nvidia_gpu",
    "usual_shape",
]

ENGINES = {
    "tensorrt": ("yolov9.engines.tensorrt.engine", "TensorRtEngine"),
    "openvino": ("yolov9.engines.openvino", "OpenVinoEngine"),
    "onnxruntime": ("yolov9.engines.onnxruntime", "OnnxRuntimeEngine"),
    "torch": ("yolov9.engines.torch", "TorchEngine"),
}
"""Name -> module and class. First what needs an NVIDIA GPU, then by measured speed on a CPU."""
_NVIDIA = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there with an NVIDIA driver (Linux, WSL). Looked at before torch is imported, which takes seconds."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONLY_ON = {"openvino": "cpu"}
"""Engines of one kind of device."""
_ONLY_IF_BUILT = {"build": False}

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
    device: str | None = None,
) -> Choice:
    """Make an engine and run it once at `usual_shape`, so that what comes back works.

    `engine`: auto or a key of ENGINES; auto takes TensorRT if its engine has been built before, because to build one
    takes minutes. `precision`: auto, fp32, fp16, bf16 or int8. `threads`: CPU threads, None for
    all that this process may use. `max_batch`: largest batch, None for what pays on the device. `cache_dir`: compiled
    models are kept there. `device`: cpu, cuda or cuda:N, None for whatever is fastest. EngineError says what is wrong
    with each engine that was tried.
    """
    options: dict[str, Any] = {
        "precision": precision, "threads": threads, "max_batch": max_batch, "cache_dir": cache_dir, "mode": mode,
    }  # fmt: skip
    if engine != "auto":
        made = _working(bundle, engine, {**options, **_on_device(engine, device)})
        return Choice(made, f"{engine} {made.precision}: asked for by name")
    failures: list[str] = []
    gpu = nvidia_gpu()
    for name, more in _candidates(gpu, device):
        try:
            made = _working(bundle, name, {**options, **more})
        except EngineError as error:
            failures.append(f"{name}{' on the GPU' if name != 'tensorrt' and more else ''}: {error}")
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


def make(
    bundle: Bundle,
    engine: str,
    precision: str = "auto",
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    mode: Mode = "latency",
    device: str | None = None,
) -> Engine:
    """The engine of that name with no shape made ready, for who wants one shape alone. Options as for `choose`.
    EngineError."""
    options = {"precision": precision, "threads": threads, "max_batch": max_batch, "mode": mode}
    return _made(bundle, engine, {**options, **_on_device(engine, device)})


def nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA driver. Says nothing of what works with it."""
    return any(path.exists() for path in _NVIDIA)


def _candidates(gpu: bool, device: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to try in turn, with further options."""
    if device is not None:
        for name in ENGINES:
            try:
                options = _on_device(name, device)
            except EngineError:  # not an engine for that device
                continue
            yield name, {**options, **(_ONLY_IF_BUILT if name == "tensorrt" else {})}
        return
    if gpu:
        yield "tensorrt", _ONLY_IF_BUILT
        yield "torch", {"device": "cuda"}
    for name in ENGINES:
        if name != "tensorrt":
            yield name, {}


def _on_device(engine: str, device: str | None) -> dict[str, Any]:
    """The options by which an engine runs there. EngineError if it cannot."""
    if device is None:
        return {}
    kind = device.partition(":")[0]
    if engine == "torch" or (engine == "tensorrt" and kind == "cuda"):
        return {"device": device}
    if engine == "onnxruntime" and device in _PROVIDERS:
        return {"providers": [_PROVIDERS[device]]}
    if _ONLY_ON.get(engine) != kind:
        raise EngineError(f"{engine}: does not run on the device {device!r}")
    return {}


def _working(bundle: Bundle, name: str, options: dict[str, Any]) -> Engine:
    engine = _made(bundle, name, options)
    engine.prepare(*usual_shape(bundle))
    return engine


def _made(bundle: Bundle, name: str, options: dict[str, Any]) -> Engine:
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r} (auto, {', '.join(ENGINES)})")
    module, class_name = ENGINES[name]
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing or of another build
        raise EngineError(f"not installed, or broken: {error}") from error
    return cast(Engine, kind(bundle, **options))
