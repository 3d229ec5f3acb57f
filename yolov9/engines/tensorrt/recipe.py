"""Which engine is wanted: everything that makes two engines different, and the name that follows from it. Pure."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from yolov9.bundle import Bundle
from yolov9.engines.base import EngineError, check_shape
from yolov9.engines.tensorrt.api import Api, Capability
from yolov9.geometry import input_shapes

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
INT8_ONNX = "int8.onnx"
"""A bundle's quantised graph: QDQ, symmetric."""
MAX_BATCH = 16
"""Unless told otherwise. T at 640 gains little beyond 12 on an RTX 4090."""
CANDIDATES = 512
"""Boxes that enter suppression on the device. coco128 has 164 a picture at most at a confidence of .25, 467 at .05;
the memory and time of suppression grow with the square."""
_GRAPH = 1
"""Version of what `graph` makes of a bundle: engines of another one are not used."""
_ANY = "any"

Shape = tuple[int, int]
"""(height, width)"""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine file states in its header, and what is asked for."""

    name: str
    """The bundle's, for people."""
    model: str
    """The bundle's hash."""
    classes: int
    precision: Precision
    shapes: tuple[Shape, ...]
    """One optimisation profile each, in this order."""
    max_batch: int
    candidates: int
    flavour: str
    version: str
    """TensorRT's: a serialised engine fits exactly one."""
    target: str
    """A GPU's name and compute capability; of a portable engine `any` or a compute capability."""
    graph: int
    """Version of `graph.engine_graph`."""

    @property
    def key(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @property
    def file(self) -> str:
        return f"{self.name}-{self.precision}-{self.key}.engine"

    def __str__(self) -> str:
        return f"{self.name} {self.precision} for {self.flavour} {self.version}"


def recipe(
    bundle: Bundle,
    api: Api,
    target: str,
    *,
    precision: str = "auto",
    max_batch: int | None = None,
    shapes: tuple[Shape, ...] | None = None,
) -> Recipe:
    """`precision`: auto takes int8 where the bundle is quantised, else fp16. `shapes`: (height, width), by default all
    that pictures may take at the bundle's input size. EngineError."""
    wanted = tuple(shapes or input_shapes(bundle.input_size))
    for height, width in wanted:
        check_shape(height, width)
    batch = max_batch if max_batch is not None else MAX_BATCH
    if batch < 1:
        raise EngineError(f"tensorrt: a largest batch of {batch}")
    return Recipe(
        name=bundle.name,
        model=bundle.hash,
        classes=len(bundle.names),
        precision=_precision(bundle, precision),
        shapes=wanted,
        max_batch=batch,
        candidates=CANDIDATES,
        flavour=api.flavour,
        version=api.version,
        target=target,
        graph=_GRAPH,
    )


def targets(api: Api, gpu: str, capability: Capability) -> list[str]:
    """What engines may be built for that run on this GPU, the best first; the last is what is built if there is none.

    A portable engine covers compute capability 8.0 and later unless it was built for one, which 7.5 needs."""
    own = dotted(capability)
    if not api.portable:
        return [f"{gpu} ({own})"]
    return [own, _ANY] if capability >= (8, 0) else [own]


def portable_target(capability: Capability | None) -> str:
    """Of an engine that is built ahead of time for `capability`, or for all of 8.0 and later."""
    return _ANY if capability is None else dotted(capability)


def capability_of(target: str) -> Capability | None:
    """What a portable engine's target has to be set to; None: the builder's default."""
    if target == _ANY:
        return None
    major, _, minor = target.partition(".")
    return int(major), int(minor)


def dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _precision(bundle: Bundle, asked: str) -> Precision:
    quantised = bundle.precision == "int8" or bundle.file(INT8_ONNX) is not None
    if asked == "auto":
        return "int8" if quantised else "fp16"
    if asked not in PRECISIONS:
        raise EngineError(f"tensorrt: no {asked} (there are {', '.join(PRECISIONS)})")
    if asked == "int8" and not quantised:
        raise EngineError(f"tensorrt: int8 was asked for, but {bundle.path} has no {INT8_ONNX}")
    if asked != "int8" and bundle.precision == "int8":
        raise EngineError(f"tensorrt: {asked} was asked for, but the bundle is int8")
    return asked
