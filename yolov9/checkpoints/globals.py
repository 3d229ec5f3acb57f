"""The names that a checkpoint's pickle may use, and what each of them makes here: data, always.

Nothing is ever imported by a name from a file. The few functions that a checkpoint needs (of tensors, numpy numbers,
paths) are re-implemented on data; a class of the packages that detectors are trained with becomes a `Stub`, which keeps
what the pickle says about an object and does nothing. Every other name is refused, and named.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from yolov9.checkpoints.errors import RefusedError, printable, shown
from yolov9.checkpoints.tensors import STORAGES, TensorRef, view

Arguments = tuple[Any, ...]
_PACKAGES = (
    "models",  # R1
    "utils",
    "ultralytics",
    "yolo",  # R2
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "omegaconf",
    "torch.nn.modules",
    "torch.nn.parallel",
    "torch.optim",
)
"""Packages whose classes are found in checkpoints of detectors, as stubs."""
_CLASS = re.compile(r"_?[A-Z][A-Za-z0-9_]*|v[0-9]+[A-Z][A-Za-z0-9]*", re.ASCII)
"""What a class is called there (v8DetectionLoss, too): no function, and no way from one object to another by dots."""
_MAX_NAME = 256
_STUBS = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "collections.Counter",
        "collections.defaultdict",
        "torch.device",
        "typing.Any",
    }
)
_TYPES = frozenset({"bool", "bytes", "complex", "dict", "float", "int", "list", "object", "str", "tuple"})
"""Builtins that occur as values, such as a configuration's type of key. They are never called."""
_DTYPES = frozenset({"float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"})
_NUMPY_CODE = re.compile(r"[iu][1248]|f[248]|b1|\?", re.ASCII)
"""Numbers and booleans. Not objects ("O"), which are pickles inside of pickles."""


class Global:
    """A name in a pickle. `make` gives what calling it stands for; None if it can only be a value."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[[Arguments], Any] | None) -> None:
        self.name = name
        self.make = make


class Stub:
    """An object of a class that is not here: what the pickle said about it, as data."""

    __slots__ = ("arguments", "elements", "entries", "name", "state")

    def __init__(self, name: str, arguments: Arguments = ()) -> None:
        self.name = name
        """Of its class, with the module."""
        self.arguments = arguments
        self.state: Any = None
        """What the class would have been given to restore the object from."""
        self.elements: list[Any] = []
        """What was appended, if it is some kind of list or set."""
        self.entries: dict[Any, Any] = {}
        """What was stored, if it is some kind of table."""


class Ordered(dict[Any, Any]):
    """An OrderedDict. State dicts give it attributes, which nobody here needs."""


class NumpyType:
    """A numpy dtype of numbers: `code` such as f8, `order` < or >."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"

    def decode(self, content: Any, count: int) -> np.ndarray[Any, np.dtype[Any]]:
        """`count` numbers from their bytes. RefusedError if there are not as many."""
        dtype = np.dtype(self.order + self.code)
        if type(content) is not bytes or len(content) != count * dtype.itemsize:
            raise RefusedError(f"holds {count:,} numpy numbers of type {self.code} in {shown(content)}")
        return np.frombuffer(content, dtype)


class NumpyArray:
    """A numpy array of numbers, filled by its state."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray[Any, np.dtype[Any]] | None = None


@lru_cache(1024)
def resolve(module: str, name: str) -> Global:
    """What `module.name` stands for. RefusedError, naming it, for everything that a checkpoint has no need of."""
    full = f"{module}.{name}"
    known = _KNOWN.get(full)
    if known is not None:
        return known
    kind = name if module in ("builtins", "__builtin__") else ""
    if kind in _TYPES or (module == "torch" and name in _DTYPES):
        return Global(full, None)
    if full in _STUBS or (len(full) < _MAX_NAME and _CLASS.fullmatch(name) and _is_package(module)):
        return Global(full, lambda arguments: Stub(full, arguments))
    raise RefusedError(f"asks for {printable(full)}, which the weights of a detector have no need of")


def build(value: Any, state: Any) -> None:
    """Give an object its state, as data. RefusedError for one that has none, or a state that reaches for its class."""
    if isinstance(state, dict):
        special = [key for key in state if type(key) is not str or key.startswith("__")]
        if special:
            raise RefusedError(f"sets {shown(special[0])} of {_kind(value)}, which is not data")
    if type(value) is Stub:
        value.state = state
    elif type(value) is NumpyType:
        _build_type(value, state)
    elif type(value) is NumpyArray:
        _build_array(value, state)
    elif type(value) is not Ordered or not isinstance(state, dict):
        raise RefusedError(f"gives state to {_kind(value)}, which has none")


def _kind(value: Any) -> str:
    return value.name if type(value) in (Stub, Global) else shown(value)


def _is_package(module: str) -> bool:
    """Whether a module is one of those packages', and no way through them to the standard library (models.yolo.os)."""
    inside = any(module == package or module.startswith(package + ".") for package in _PACKAGES)
    parts = module.split(".")
    return inside and all(p.isidentifier() and p.isascii() for p in parts) and not _STDLIB.intersection(parts)


_STDLIB = sys.stdlib_module_names - {"types"}
"""No package above has modules that are called like these."""


def _wants(arguments: Arguments, *types: type, what: str, more: bool = False) -> None:
    """RefusedError unless the arguments are of exactly these types (`more`: and any others behind)."""
    given = [type(x) for x in arguments]
    if given[: len(types)] != list(types) or (len(given) > len(types) and not more):
        raise RefusedError(f"calls {what} with {', '.join(shown(x) for x in arguments[:6]) or 'nothing'}")


def _ordered(arguments: Arguments) -> Ordered:
    if not arguments:
        return Ordered()
    _wants(arguments, list, what="collections.OrderedDict")
    pairs = arguments[0]
    if any(type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str for pair in pairs):
        raise RefusedError("calls collections.OrderedDict with something else than pairs of a name and a value")
    return Ordered(pairs)


def _set(arguments: Arguments) -> Stub:
    stub = Stub("builtins.set")
    if arguments:
        _wants(arguments, list, what="set")
        stub.elements = arguments[0]
    return stub


def _encode(arguments: Arguments) -> bytes:
    """How protocol 2 writes bytes."""
    _wants(arguments, str, str, what="_codecs.encode")
    text, encoding = arguments
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"calls _codecs.encode for {shown(encoding)}")
    try:
        encoded: bytes = text.encode("latin-1")
    except UnicodeEncodeError as e:
        raise RefusedError("calls _codecs.encode for text that is not latin1") from e
    return encoded


def _path(arguments: Arguments) -> str:
    if any(type(part) is not str for part in arguments):
        raise RefusedError("has a path of something else than names")
    return "/".join(arguments).replace("//", "/")


def _size(arguments: Arguments) -> tuple[int, ...]:
    values: Any = arguments[0] if len(arguments) == 1 else None
    if type(values) not in (tuple, list) or any(type(n) is not int for n in values):
        raise RefusedError(f"calls torch.Size with {', '.join(shown(x) for x in arguments[:6]) or 'nothing'}")
    return tuple(values)


def _tensor(arguments: Arguments) -> TensorRef:
    """storage, offset, shape, strides; then whether it wants gradients, its hooks and metadata, which stay behind."""
    if len(arguments) not in (4, 6, 7) or any(arguments[5:6]):
        raise RefusedError(f"calls torch._utils._rebuild_tensor_v2 with {len(arguments)} arguments, or with hooks")
    return view(*arguments[:4])


def _parameter(arguments: Arguments) -> TensorRef:
    _wants(arguments, TensorRef, bool, what="torch._utils._rebuild_parameter", more=True)
    if len(arguments) > 4 or any(arguments[2:3]):
        raise RefusedError("calls torch._utils._rebuild_parameter with hooks")
    ref: TensorRef = arguments[0]
    return ref


def _numpy_type(arguments: Arguments) -> NumpyType:
    code = arguments[0] if 1 <= len(arguments) <= 3 else None
    if type(code) is not str or not _NUMPY_CODE.fullmatch(code):
        raise RefusedError(f"calls numpy.dtype for {shown(code)}: only numbers are read")
    return NumpyType(code)


def _numpy_scalar(arguments: Arguments) -> Any:
    _wants(arguments, NumpyType, bytes, what="numpy scalar")
    return arguments[0].decode(arguments[1], 1)[0].item()


def _numpy_array(arguments: Arguments) -> NumpyArray:
    _wants(arguments, Global, tuple, bytes, what="numpy _reconstruct")
    if arguments[0].name != "numpy.ndarray" or arguments[1] != (0,):
        raise RefusedError(f"calls numpy _reconstruct for {arguments[0].name}")
    return NumpyArray()


def _build_type(value: NumpyType, state: Any) -> None:
    plain = type(state) is tuple and 2 <= len(state) <= 9 and type(state[1]) is str and state[1] in ("<", ">", "|", "=")
    if not plain or any(x is not None for x in state[2:5]):
        raise RefusedError("gives numpy.dtype a state with fields or objects: only numbers are read")
    value.order = ">" if state[1] == ">" else "<"


def _build_array(value: NumpyArray, state: Any) -> None:
    if type(state) is not tuple or len(state) != 5 or type(state[1]) is not tuple or type(state[2]) is not NumpyType:
        raise RefusedError("gives a numpy array a state that is not numbers")
    _, shape, kind, _, content = state
    if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 8:
        raise RefusedError(f"has a numpy array of shape {shown(shape)}")
    numel = 1
    for n in shape:
        numel *= n
    value.values = kind.decode(content, numel)


def _table() -> dict[str, Global]:
    makers: dict[str, Callable[[Arguments], Any] | None] = {
        "collections.OrderedDict": _ordered,
        "builtins.set": _set,
        "__builtin__.set": _set,
        "builtins.frozenset": _set,
        "__builtin__.frozenset": _set,
        "_codecs.encode": _encode,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.Size": _size,
        "numpy.dtype": _numpy_type,
        "numpy.ndarray": None,
        "torch.Tensor": None,
        "torch.nn.parameter.Parameter": None,
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        makers |= {f"{core}.scalar": _numpy_scalar, f"{core}._reconstruct": _numpy_array}
    for module in ("pathlib", "pathlib._local"):
        makers |= {
            f"{module}.{kind}": _path
            for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
        }
    makers |= dict.fromkeys(STORAGES)
    return {name: Global(name, make) for name, make in makers.items()}


_KNOWN: Mapping[str, Global] = _table()
