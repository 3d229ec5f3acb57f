"""TensorRT by whichever of its two names is installed: everything that differs between them is told here.

`tensorrt` times kernels on the GPU at hand and builds an engine for it alone, in minutes. `tensorrt_rtx` (TensorRT for
RTX) builds a portable engine in seconds, even without a GPU, and finishes the compilation when it is loaded. Their
Python interfaces are the same but for what `Api` states.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from yolov9.engines.base import EngineError

log = logging.getLogger("yolov9.engines.tensorrt")

Flavour = Literal["tensorrt", "tensorrt_rtx"]
_PACKAGES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Flavour -> extra of this project. In order of preference: engines timed on the GPU itself are the faster ones."""
_OLDEST = (10, 3)
"""tensorrt: contexts of one profile side by side, user-managed memory, 64-bit shapes."""
_TAIL = 8
"""Messages kept: an error is often explained by the one before it."""

Capability = tuple[int, int]
"""Compute capability of a GPU, (major, minor)."""


@dataclass(frozen=True)
class Api:
    module: ModuleType
    flavour: Flavour
    version: str
    logger: Any
    """The one ILogger of the process: TensorRT keeps it for good."""
    messages: Messages
    """What TensorRT said of late."""

    @property
    def portable(self) -> bool:
        """An engine runs on other GPUs than the one that built it, and can be built without any."""
        return self.flavour == "tensorrt_rtx"

    @property
    def times_tactics(self) -> bool:
        """The builder measures kernels, and a timing cache spares it that."""
        return self.flavour == "tensorrt"

    def __str__(self) -> str:
        return f"{self.flavour} {self.version}"

    def supports(self, capability: Capability) -> str | None:
        """None, or why GPUs of this compute capability are not served."""
        if self.portable and (capability < (7, 5) or 9 <= capability[0] < 12):
            return f"{self.flavour} has no kernels for compute capability {_dotted(capability)}; tensorrt has"
        return None

    def target(self, capability: Capability) -> Any:
        """The portable flavour's name for a compute capability to build for. EngineError, with those that there are."""
        known = {
            name: value for name, value in self.module.ComputeCapability.__members__.items() if name.startswith("SM")
        }
        major, minor = capability
        value = known.get(f"SM{major}{minor}")
        if value is None:
            there = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known)
            raise EngineError(f"{self.flavour} has no target for compute capability {major}.{minor} (it has {there})")
        return value


class Messages:
    """What TensorRT says: logged, what it repeats (the same for each layer) once, and the last errors kept to explain a
    failure. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: deque[str] = deque(maxlen=_TAIL)
        self._told: set[str] = set()

    def add(self, level: int, text: str) -> None:
        line = " ".join(text.split())
        with self._lock:
            if level >= logging.ERROR:
                self._errors.append(line)
            if level < logging.INFO or line in self._told:
                return
            self._told.add(line)
        log.log(level, "%s", line)

    def clear(self) -> None:
        """Begin anew, as for another engine."""
        with self._lock:
            self._errors.clear()
            self._told.clear()

    def why(self) -> str:
        """The last errors as one line, the cause first; they are told once."""
        with self._lock:
            errors = dict.fromkeys(self._errors)
            self._errors.clear()
        return "; ".join(errors) or "it gave no reason"


@functools.cache
def load(flavour: Flavour | None = None) -> Api:
    """The named flavour, or the first that can be imported. EngineError says what is wrong with each."""
    problems = []
    for name in [flavour] if flavour is not None else _PACKAGES:
        try:
            return _load(name)
        except EngineError as error:
            problems.append(str(error))
    raise EngineError("; ".join(problems))


def _load(flavour: Flavour) -> Api:
    try:
        module = importlib.import_module(flavour)
        version = str(module.__version__)
        if flavour == "tensorrt" and _numbers(version) < _OLDEST:
            raise EngineError(f"tensorrt {version} is too old: {_dotted(_OLDEST)} or later is needed")
        messages = Messages()
        return Api(module, flavour, version, _logger(module, messages), messages)
    except ModuleNotFoundError as error:
        if error.name != flavour:
            raise EngineError(f"{flavour} cannot be imported: {error}") from error
        raise EngineError(f"{flavour} is not installed (pip install 'yolov9-server[{_PACKAGES[flavour]}]')") from error
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        # Its shared libraries are missing or do not fit the driver; half an installation has no attributes.
        raise EngineError(f"{flavour} cannot be imported: {' '.join(str(error).split())}") from error


def _logger(module: ModuleType, messages: Messages) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.INFO,  # nothing that a user could change
        severity.INFO: logging.DEBUG,  # a line for each pass of the compiler: not logged
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]  # known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, kind: Any, text: str) -> None:
            messages.add(levels[kind], text)

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)
