"""State dicts out of pickled modules: what `torch.nn.Module.state_dict` would give, taken from stubs.

A module is a stub whose state has `_parameters`, `_buffers` and `_modules`. Modules may be shared or, in a hostile
file, contain themselves: the walk is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from yolov9.checkpoints.errors import RefusedError, WeightsError, shown
from yolov9.checkpoints.globals import Stub
from yolov9.checkpoints.tensors import TensorRef

_MAX_DEPTH = 32
_MAX_MODULES = 50_000
_MAX_TENSORS = 200_000
"""The deepest of the references nests 9 modules, the largest has some 3,000, with 5,000 tensors."""

Refs = dict[str, TensorRef]


@dataclass
class Module:
    """A pickled module, harvested."""

    name: str
    """Of its class, such as models.yolo.DetectionModel."""
    attributes: dict[str, Any]
    """Everything else that it keeps."""
    tensors: Refs = field(default_factory=dict)
    """Its state dict."""
    children: list[Child] = field(default_factory=list)
    """All modules inside, in the order of the file."""


@dataclass(frozen=True)
class Child:
    """One module inside another."""

    path: str
    name: str
    attributes: dict[str, Any]


def is_module(value: Any) -> TypeGuard[Stub]:
    """Whether a value out of a pickle is a module."""
    return (
        type(value) is Stub
        and isinstance(value.state, dict)
        and all(isinstance(value.state.get(key), dict) for key in ("_parameters", "_buffers", "_modules"))
    )


def harvest(root: Stub) -> Module:
    """All tensors and modules inside one module. WeightsError, RefusedError."""
    module = Module(root.name, root.state)
    for child, stub in _walk(root):
        module.children.append(child)
        transient = stub.state.get("_non_persistent_buffers_set")
        skipped = {x for x in transient.elements if type(x) is str} if type(transient) is Stub else set()
        for kind in ("_parameters", "_buffers"):
            for name, value in stub.state[kind].items():
                if value is None or name in skipped:
                    continue
                key = f"{child.path}.{name}" if child.path else name
                if type(name) is not str or not isinstance(value, TensorRef):
                    raise WeightsError(f"its {key} is {shown(value)} instead of a tensor")
                module.tensors[key] = value
        if len(module.tensors) > _MAX_TENSORS:
            raise RefusedError(f"has more than {_MAX_TENSORS:,} tensors")
    return module


def _walk(root: Stub) -> Iterator[tuple[Child, Stub]]:
    """Every module below `root`, itself first, with its path; depth first, without recursion."""
    waiting = [("", root, 0)]
    count = 0
    while waiting:
        path, stub, depth = waiting.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_MODULES:
            raise RefusedError(f"nests its modules without end (at {path[:60]})")
        yield Child(path, stub.name, stub.state), stub
        inside = []
        for name, value in stub.state["_modules"].items():
            inner = f"{path}.{name}" if path else name
            if value is None:
                continue
            if type(name) is not str or not is_module(value):
                raise WeightsError(f"its module {inner} is {shown(value)} instead of a module")
            inside.append((inner, value, depth + 1))
        waiting.extend(reversed(inside))
