"""An interpreter for the pickles of checkpoints that can build data and nothing else.

Pickle is a little language for a stack machine. Python's own interpreter calls what a file names; this one knows the
part of the language that `torch.save` writes, calls only what `globals` made inert, and refuses the rest by its name
and position. It does not recurse, allocates nothing by a number that a file states, and ends after a bounded number of
steps, so that a hostile file costs no more than an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pickletools import opcodes
from typing import Any

from yolov9.checkpoints.errors import RefusedError, WeightsError, printable, shown
from yolov9.checkpoints.globals import Global, Ordered, Stub, build, resolve

MAX_STEPS = 8_000_000
"""Instructions of one pickle: the largest YOLOv9 with its optimiser and its average has some 1.5 million. The costliest
ones make an empty container of some 60 bytes each."""
_MAX_LONG = 255
"""Bytes of one number."""
_MAX_NAME = 256
"""Bytes of a module's or a class's name."""
_MAX_KEY = 1 << 60
"""Larger integers are no keys of a checkpoint, and can be chosen to collide."""
_NAMES = {op.code: op.name for op in opcodes}
_STOP = ord(".")


class _Mark:
    """Where on the stack a group of values begins."""


_MARK = _Mark()


def load(content: bytes, persistent: Callable[[Any], Any]) -> Any:
    """The value that a pickle describes, made of plain Python data, `Stub`, `TensorRef` and numpy numbers.

    `persistent` resolves persistent ids (to storages). RefusedError for what is more than data, WeightsError for a
    pickle that is damaged.
    """
    machine = _Machine(content, persistent)
    try:
        return machine.run()
    except RefusedError as e:
        raise RefusedError(f"{e} ({machine.where}): refused, nothing of it was run") from None
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as e:
        raise WeightsError(f"its pickle is damaged ({machine.where})") from e


class _Machine:
    def __init__(self, content: bytes, persistent: Callable[[Any], Any]) -> None:
        self._content = content
        self._persistent = persistent
        self._position = self._began = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    @property
    def where(self) -> str:
        """The instruction that is being carried out, for an error."""
        code = self._content[self._began : self._began + 1].decode("latin-1")
        return f"{_NAMES.get(code, 'an unknown instruction')} at byte {self._began} of its pickle"

    def run(self) -> Any:
        content, handlers = self._content, _HANDLERS
        for _ in range(MAX_STEPS):
            self._began = self._position
            code = content[self._position]
            self._position += 1
            if code == _STOP:
                value = self._pop()
                if self._stack:
                    raise RefusedError("ends with more than one value")
                return value
            handler = handlers.get(code)
            if handler is None:
                raise RefusedError(f"uses {self._unsupported(code)}")
            handler(self)
        raise RefusedError(f"has more than {MAX_STEPS:,} instructions")

    def _unsupported(self, code: int) -> str:
        """An instruction that is not carried out, with the name that it is about."""
        name = _NAMES.get(chr(code), f"the unknown instruction {code:#04x}")
        if name == "INST":
            lines = self._content[self._position : self._position + _MAX_NAME].split(b"\n")[:2]
            name += " of " + printable(".".join(line.decode("latin-1") for line in lines))
        elif name == "OBJ":
            named = [x.name for x in self._stack if type(x) is Global]
            name += f" of {named[-1]}" if named else ""
        return f"the instruction {name}, which PyTorch never writes"

    # Reading

    def _take(self, count: int) -> bytes:
        taken = self._content[self._position : self._position + count]
        if len(taken) != count:
            raise IndexError
        self._position += count
        return taken

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self._content.find(b"\n", self._position, self._position + _MAX_NAME)
        if end < 0:
            raise IndexError
        line = self._content[self._position : end]
        self._position = end + 1
        return line.decode("utf-8")

    # The stack

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise IndexError
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise IndexError
        return value

    def _group(self) -> list[Any]:
        """The values above the last mark, which goes with them."""
        stack = self._stack
        position = len(stack) - 1
        while stack[position] is not _MARK:  # ends with IndexError below the bottom, as -1 is the top again
            position -= 1
            if position < 0:
                raise IndexError
        values = stack[position + 1 :]
        del stack[position:]
        return values

    def _discard(self) -> None:
        del self._stack[-1]

    def _discard_group(self) -> None:
        self._group()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # Instructions

    def _protocol(self) -> None:
        protocol = self._number(1)
        if not 2 <= protocol <= 5:
            raise RefusedError(f"is of protocol {protocol}")

    def _frame(self) -> None:
        self._take(8)

    def _long1(self) -> None:
        self._push(int.from_bytes(self._take(self._number(1)), "little", signed=True))

    def _long4(self) -> None:
        size = self._number(4)
        if size > _MAX_LONG:
            raise RefusedError(f"has a number of {size:,} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def _text(self, size: int) -> None:
        self._push(self._take(self._number(size)).decode("utf-8", "surrogatepass"))

    def _bytes(self, size: int) -> None:
        self._push(self._take(self._number(size)))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(values[::-1]))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(values)
        elif type(target) is Stub:
            target.elements.extend(values)
        else:
            raise RefusedError(f"appends to {shown(target)}, which is no list")

    def _append_one(self) -> None:
        value = self._pop()
        self._append([value])

    def _set_items(self, flat: list[Any]) -> None:
        target = self._top()
        table = target.entries if type(target) is Stub else target
        if type(table) not in (dict, Ordered):
            raise RefusedError(f"stores into {shown(target)}, which is no table")
        if len(flat) % 2:
            raise IndexError
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if not _is_key(key):
                raise RefusedError(f"has {shown(key)} as the key of a table")
            table[key] = value

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _dict(self) -> None:
        flat = self._group()
        self._push({})
        self._set_items(flat)

    def _set(self) -> None:
        self._push(Stub("builtins.set"))

    def _frozen_set(self) -> None:
        values = self._group()
        self._set()
        self._append(values)

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()

    def _global(self) -> None:
        self._push(resolve(self._line(), self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise RefusedError(f"asks for a name made of {shown(module)} and {shown(name)}")
        self._push(resolve(module, name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Global or function.make is None:
            called = function.name if type(function) in (Global, Stub) else shown(function)
            raise RefusedError(f"calls {called}, which is data")
        if type(arguments) is not tuple:
            raise RefusedError(f"calls {function.name} with {shown(arguments)}")
        self._push(function.make(arguments))

    def _build(self) -> None:
        state = self._pop()
        build(self._top(), state)

    def _persistent_id(self) -> None:
        self._push(self._persistent(self._pop()))


def _is_key(key: Any) -> bool:
    if type(key) is int:
        return -_MAX_KEY < key < _MAX_KEY
    return key is None or type(key) in (str, bytes, bool, Stub, Global)


_HANDLERS: dict[int, Callable[[_Machine], None]] = {
    ord(code): handler
    for code, handler in {
        "\x80": _Machine._protocol,
        "\x95": _Machine._frame,
        "N": lambda m: m._push(None),
        "\x88": lambda m: m._push(True),
        "\x89": lambda m: m._push(False),
        "J": lambda m: m._push(int.from_bytes(m._take(4), "little", signed=True)),
        "K": lambda m: m._push(m._number(1)),
        "M": lambda m: m._push(m._number(2)),
        "\x8a": _Machine._long1,
        "\x8b": _Machine._long4,
        "G": _Machine._float,
        "X": lambda m: m._text(4),
        "\x8c": lambda m: m._text(1),
        "\x8d": lambda m: m._text(8),
        "B": lambda m: m._bytes(4),
        "C": lambda m: m._bytes(1),
        "\x8e": lambda m: m._bytes(8),
        "(": lambda m: m._push(_MARK),
        ")": lambda m: m._push(()),
        "\x85": lambda m: m._tuple(1),
        "\x86": lambda m: m._tuple(2),
        "\x87": lambda m: m._tuple(3),
        "t": lambda m: m._push(tuple(m._group())),
        "]": lambda m: m._push([]),
        "l": lambda m: m._push(m._group()),
        "a": _Machine._append_one,
        "e": lambda m: m._append(m._group()),
        "}": lambda m: m._push({}),
        "d": _Machine._dict,
        "s": _Machine._set_item,
        "u": lambda m: m._set_items(m._group()),
        "\x8f": _Machine._set,
        "\x90": lambda m: m._append(m._group()),
        "\x91": _Machine._frozen_set,
        "0": _Machine._discard,
        "1": _Machine._discard_group,
        "h": lambda m: m._push(m._memo[m._number(1)]),
        "j": lambda m: m._push(m._memo[m._number(4)]),
        "q": lambda m: m._remember(m._number(1)),
        "r": lambda m: m._remember(m._number(4)),
        "\x94": lambda m: m._remember(len(m._memo)),
        "c": _Machine._global,
        "\x93": _Machine._stack_global,
        "R": _Machine._reduce,
        "\x81": _Machine._reduce,  # NEWOBJ: an object of a class by its __new__, which for data is the same
        "b": _Machine._build,
        "Q": _Machine._persistent_id,
    }.items()
}
