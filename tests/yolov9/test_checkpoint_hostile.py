"""Hostile checkpoints: each would run code, read files or eat memory elsewhere. All are refused, no trace is left."""

from __future__ import annotations

import copy
import io
import os
import pickle
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_files import FLOATS, Call, Name, Persistent, Raw, nothing_happens, pickled, storage, tensor, torch_file
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov9.checkpoints import archive, globals, pickles
from yolov9.checkpoints.errors import RefusedError, WeightsError
from yolov9.checkpoints.reading import read
from yolov9.weights import load

TRAP = "yolov9-trap"
"""What a payload makes in the working directory."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def refused(tmp_path: Path, content: bytes, records: dict[str, bytes] | None = None) -> str:
    """The error of a checkpoint with this pickle, which leaves no trace."""
    path = torch_file(tmp_path / "w.pt", content, records)
    with nothing_happens(tmp_path), pytest.raises(RefusedError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text) < len(str(path)) + 400
    assert text.isprintable()
    return text


def call(module: str, name: str, *arguments: Any) -> Call:
    return Call(Name(module, name), arguments)


def test_the_payloads_are_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do work in Python's own reader, so the refusals below are of something."""
    for payload in (call("posix", "mkdir", TRAP), call("builtins", "exec", f"import os; os.environ['{TRAP}'] = 'x'")):
        pickle.loads(pickled({"model": payload}))  # noqa: S301 - written above
    assert os.path.isdir(TRAP)
    assert os.environ.pop(TRAP) == "x"
    os.rmdir(TRAP)


CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("posix", "system", (f"mkdir {TRAP}",)),
    ("posix", "mkdir", (TRAP,)),
    ("nt", "system", (f"mkdir {TRAP}",)),
    ("os", "mkdir", (TRAP,)),
    ("os", "system", (f"mkdir {TRAP}",)),
    ("os", "putenv", (TRAP, "x")),
    ("subprocess", "Popen", (["mkdir", TRAP],)),
    ("builtins", "eval", (f"__import__('os').mkdir('{TRAP}')",)),
    ("builtins", "exec", (f"import os; os.mkdir('{TRAP}')",)),
    ("builtins", "getattr", (Name("models.common", "Conv"), "forward")),
    ("builtins", "setattr", (Name("models.common", "Conv"), "forward", 1)),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "open", (TRAP, "w")),
    ("builtins", "compile", ("1", "x", "eval")),
    ("builtins", "map", (Name("os", "mkdir"), [TRAP])),
    ("builtins", "print", (TRAP,)),
    ("__builtin__", "eval", (f"__import__('os').mkdir('{TRAP}')",)),
    ("__builtin__", "getattr", (1, "real")),
    ("__builtin__", "apply", (Name("os", "mkdir"), [TRAP])),
    ("__main__", "Model", ()),
    ("pathlib", "Path.mkdir", (TRAP,)),
    ("shutil", "rmtree", (".",)),
    ("importlib", "import_module", ("antigravity",)),
    ("runpy", "run_path", ("x.py",)),
    ("pty", "spawn", ("true",)),
    ("operator", "attrgetter", ("mkdir",)),
    ("operator", "methodcaller", ("mkdir", TRAP)),
    ("functools", "partial", (Name("os", "mkdir"), TRAP)),
    ("types", "FunctionType", (1,)),
    ("types", "CodeType", (1,)),
    ("sys", "exit", ()),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("pickle", "loads", (b"N.",)),
    ("_pickle", "loads", (b"N.",)),
    ("marshal", "loads", (b"N",)),
    ("copyreg", "_reconstructor", (Name("models.common", "Conv"), Name("builtins", "object"), None)),
    ("copy_reg", "_reconstructor", (Name("models.common", "Conv"), Name("__builtin__", "object"), None)),
    ("copyreg", "__newobj__", (Name("models.common", "Conv"),)),
    ("copyreg", "add_extension", ("os", "system", 1)),
    ("torch", "load", (TRAP,)),
    ("torch", "save", (1, TRAP)),
    ("torch.hub", "load", ("x/y", "z")),
    ("torch.jit", "load", (TRAP,)),
    ("torch.serialization", "load", (TRAP,)),
    ("torch.storage", "_load_from_bytes", (b"N.",)),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", (1, 2, 3, 4)),
    ("torch._utils", "_rebuild_sparse_tensor", (1, 2)),
    ("torch._tensor", "_rebuild_from_type_v2", (Name("posix", "mkdir"), Name("torch", "Tensor"), (TRAP,), {})),
    ("torch._tensor", "_rebuild_from_type_v2", (1, 2, 3, 4)),
    ("torch.utils.model_zoo", "load_url", ("http://x",)),
    ("torch.nn.modules", "module._global_backward_hooks.clear", ()),
    ("torch.nn.modules.module", "register_module_forward_hook", (1,)),
    ("torch.optim.lr_scheduler", "warnings.warn", ("x",)),
    ("numpy", "load", (TRAP,)),
    ("numpy", "save", (TRAP, [1])),
    ("numpy.core.multiarray", "fromfile", (TRAP,)),
    ("numpy.testing._private.utils", "runstring", (f"__import__('os').mkdir('{TRAP}')", {})),
    ("models.yolo", "os.system", (f"mkdir {TRAP}",)),
    ("models.yolo", "parse_model", ()),
    ("models.yolo.os", "system", (f"mkdir {TRAP}",)),
    ("models.yolo.os", "System", (f"mkdir {TRAP}",)),
    ("models.yolo.subprocess", "Popen", (["mkdir", TRAP],)),
    ("utils.general.sys", "Modules", ()),
    ("utils..general", "Profile", ()),
    ("utils.general", "Profile.__init__", ()),
    ("utils.general", "__import__", ("os",)),
    ("ultralytics.utils", "Path\x1b[2J", ()),
    ("modelsx.yolo", "Model", ()),
    ("collections", "OrderedDict.__init__", ()),
    ("collections", "namedtuple", ("x", "y")),
    ("mоdels.common", "Conv", ()),  # a Cyrillic o
]


@pytest.mark.parametrize(("module", "name", "arguments"), CALLS, ids=[f"{m}.{n}"[:60] for m, n, _ in CALLS])
def test_names_that_weights_have_no_need_of_are_refused_by_name(
    module: str, name: str, arguments: tuple[Any, ...], tmp_path: Path
) -> None:
    wanted = f"{module}.{name}".replace("\x1b", "?")
    text = refused(tmp_path, pickled({"model": call(module, name, *arguments)}))
    assert wanted in text or "os.mkdir" in text or "posix.mkdir" in text
    assert "GLOBAL at byte" in text
    assert "nothing of it was run" in text
    # The same by protocol 4, where a name may have dots and is made of two strings.
    assert wanted in refused(tmp_path, b"\x80\x04" + _strings(module, name) + b"\x93)R.")


def _strings(*texts: str) -> bytes:
    return b"".join(b"X" + struct.pack("<I", len(t.encode())) + t.encode() for t in texts)


INSTRUCTIONS = {
    "INST": (b"(S'mkdir x'\niposix\nsystem\n.", "STRING"),
    "INST alone": (b"(iposix\nsystem\n.", "INST of posix.system"),
    "OBJ": (b"(cmodels.common\nConv\no.", "OBJ of models.common.Conv"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"P0\n.", "PERSID"),
    "NEWOBJ_EX": (b"\x80\x04cmodels.common\nConv\n)}\x92.", "NEWOBJ_EX"),
    "GET": (b"g0\n.", "GET"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "unknown": (b"\x80\x02\xff.", "0xff"),
    "protocol": (b"\x80\x07N.", "protocol 7"),
    "two values": (b"NN.", "more than one value"),
    "STACK_GLOBAL of numbers": (b"\x80\x04K\x01K\x02\x93.", "a name made of 1 and 2"),
    "STACK_GLOBAL of a name": (
        b"\x80\x04cmodels.common\nConv\nX\x01\x00\x00\x00x\x93.",
        "a name made of a Global and 'x'",
    ),
    "REDUCE of a string": (b"\x80\x02X\x02\x00\x00\x00os)R.", "calls 'os', which is data"),
    "REDUCE of a type": (b"\x80\x02c__builtin__\nint\n)R.", "calls __builtin__.int, which is data"),
    "REDUCE of a storage type": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage, which is data"),
    "REDUCE of an object": (b"\x80\x02cmodels.common\nConv\n)R)R.", "calls models.common.Conv, which is data"),
    "REDUCE with a list": (b"\x80\x02cmodels.common\nConv\n]R.", "calls models.common.Conv with a list"),
    "NEWOBJ of a type": (b"\x80\x02c__builtin__\nobject\n)\x81.", "calls __builtin__.object, which is data"),
    "BUILD of a list": (b"\x80\x02]}b.", "gives state to a list"),
    "BUILD of a dict": (b"\x80\x02}}b.", "gives state to a dict"),
    "BUILD of a class": (b"\x80\x02cmodels.common\nConv\n}b.", "gives state to models.common.Conv"),
    "BUILD of an OrderedDict with a list": (b"\x80\x02ccollections\nOrderedDict\n)R]b.", "gives state to a Ordered"),
    "SETITEM of a list": (b"\x80\x02]NNs.", "stores into a list"),
    "SETITEM of a class": (b"\x80\x02cmodels.common\nConv\nNNs.", "stores into"),
    "APPEND to a dict": (b"\x80\x02}Na.", "appends to a dict"),
    "LONG4": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "a number of 2,147,483,647 bytes"),
    "a list as a key": (b"\x80\x02}]Ns.", "a list as the key"),
    "a tuple as a key": (b"\x80\x02})Ns.", "as the key"),
    "a huge key": (b"\x80\x02}\x8a\x09" + b"\x11" * 9 + b"Ns.", "as the key"),
}


@pytest.mark.parametrize(("content", "message"), INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_instructions_that_torch_does_not_write_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, content)


ORDERED = Name("collections", "OrderedDict")
CONV = Name("models.common", "Conv")
STATES: dict[str, tuple[Any, str]] = {
    "an OrderedDict's class": (Call(ORDERED, (), {"__class__": CONV}), "sets '__class__' of a Ordered"),
    "an OrderedDict's dict": (Call(ORDERED, (), {"__dict__": {"items": 1}}), "sets '__dict__' of a Ordered"),
    "a module's setstate": (
        Call(CONV, (), {"__setstate__": Name("collections", "OrderedDict")}),
        "sets '__setstate__'",
    ),
    "a module's class": (
        Call(CONV, (), {"__class__": Name("builtins", "int")}),
        "sets '__class__' of models.common.Conv",
    ),
    "a module's reduce": (Call(CONV, (), {"__reduce_ex__": 1}), "sets '__reduce_ex__'"),
    "a state of numbers": (Call(CONV, (), {1: 2}), "sets 1 of models.common.Conv"),
    "a set's": (Call(Name("builtins", "set"), ([1],), {"__class__": 1}), "sets '__class__' of builtins.set"),
    "a tensor's": (Call(tensor(storage(), 0, (4,), (1,)), (), {}), "which is data"),
    "an OrderedDict of tables": (Call(ORDERED, ([{1: 2}],)), "something else than pairs"),
    "an OrderedDict of lists": (Call(ORDERED, ([[[], 2]],)), "something else than pairs"),
    "an OrderedDict of text": (Call(ORDERED, ("text",)), "calls collections.OrderedDict with 'text'"),
    "a set of text": (Call(Name("builtins", "set"), ("text",)), "calls set with 'text'"),
    "a path of numbers": (Call(Name("pathlib", "PosixPath"), (1,)), "a path of something else than names"),
    "a size of text": (Call(Name("torch", "Size"), ("text",)), "calls torch.Size with 'text'"),
    "another encoding": (Call(Name("_codecs", "encode"), ("x", "rot13")), "calls _codecs.encode for 'rot13'"),
    "text that is not latin": (Call(Name("_codecs", "encode"), ("€", "latin1")), "text that is not latin1"),
}


@pytest.mark.parametrize(("value", "message"), STATES.values(), ids=STATES)
def test_states_that_reach_for_more_than_data_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, pickled({"model": value}), {"data/0": FLOATS})


def numpy_type(code: Any, state: Any = (3, "<", None, None, None, -1, -1, 0)) -> Call:
    return Call(Name("numpy", "dtype"), (code, False, True), state)


def numpy_array(kind: Any, content: Any, shape: Any = (1,)) -> Call:
    made = Name("numpy.core.multiarray", "_reconstruct")
    arguments = (Name("numpy", "ndarray"), (0,), Call(Name("_codecs", "encode"), ("b", "latin1")))
    return Call(made, arguments, (1, shape, kind, False, content))


def raw(content: bytes) -> Call:
    return Call(Name("_codecs", "encode"), (content.decode("latin1"), "latin1"))


SCALAR = Name("numpy.core.multiarray", "scalar")
NUMPY: dict[str, tuple[Any, str]] = {
    "objects": (numpy_type("O"), "calls numpy.dtype for 'O'"),
    "objects in an array": (numpy_array(numpy_type("O"), [1]), "calls numpy.dtype for 'O'"),
    "O8": (numpy_type("O8"), "calls numpy.dtype for 'O8'"),
    "fields": (numpy_type("f8", (3, "<", None, ("a",), {"a": 1}, -1, -1, 0)), "fields or objects"),
    "records": (numpy_type([("a", "f8")]), "calls numpy.dtype for a list"),
    "f1, which is none": (numpy_type("f1"), "calls numpy.dtype for 'f1'"),
    "an order that is none": (numpy_type("f8", (3, "x", None)), "fields or objects"),
    "another class": (
        Call(Name("numpy.core.multiarray", "_reconstruct"), (CONV, (0,), raw(b"b"))),
        "calls numpy _reconstruct for models.common.Conv",
    ),
    "an array of a list": (numpy_array(numpy_type("f8"), [1.0]), "1 numpy numbers of type f8 in a list"),
    "an array of too few bytes": (numpy_array(numpy_type("f8"), raw(b"1234567")), "1 numpy numbers of type f8"),
    "a huge array": (numpy_array(numpy_type("f8"), raw(b"12345678"), (1 << 40, 1 << 40)), "numpy numbers of type f8"),
    "a negative shape": (numpy_array(numpy_type("f8"), raw(b"12345678"), (-1, -1)), "a numpy array of shape (-1, -1)"),
    "a number of too many bytes": (Call(SCALAR, (numpy_type("f8"), raw(b"123456789"))), "1 numpy numbers of type f8"),
    "a number of an object": (Call(SCALAR, (numpy_type("f8"), Call(CONV))), "calls numpy scalar with"),
}


@pytest.mark.parametrize(("value", "message"), NUMPY.values(), ids=NUMPY)
def test_numpy_values_that_are_no_numbers_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, pickled({"best_fitness": value}))


REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
TENSORS: dict[str, tuple[Any, str]] = {
    "beyond the storage": (tensor(storage(), 0, (5,), (1,)), "which a storage of 4 elements does not hold"),
    "an offset beyond it": (tensor(storage(), 1, (4,), (1,)), "does not hold"),
    "strides beyond it": (tensor(storage(), 0, (2, 2), (3, 1)), "does not hold"),
    "one element, often": (tensor(storage(), 0, (1 << 40,), (0,)), "does not hold"),
    "a negative offset": (tensor(storage(), -1, (4,), (1,)), "offset -1"),
    "a negative stride": (tensor(storage(), 3, (4,), (-1,)), "strides (-1)"),
    "a negative size": (tensor(storage(), 0, (-4,), (1,)), "shape (-4)"),
    "sizes whose product is small again": (tensor(storage(), 0, (1 << 32, 1 << 32), (1, 1)), "does not hold"),
    "an empty one far away": (tensor(storage(), 9, (0,), (1,)), "does not hold"),
    "too many dimensions": (tensor(storage(), 0, (1,) * 9, (1,) * 9), "builds a tensor of offset 0, shape (1, 1"),
    "fewer strides": (tensor(storage(), 0, (2, 2), (1,)), "builds a tensor"),
    "a list as its shape": (tensor(storage(), 0, [4], [1]), "shape a list"),
    "truth as a size": (tensor(storage(), 0, (True,), (1,)), "shape (True)"),
    "text as its storage": (tensor("0", 0, (4,), (1,)), "builds a tensor from '0', which is no storage"),
    "a class as its storage": (tensor(CONV, 0, (4,), (1,)), "which is no storage"),
    "hooks": (Call(REBUILD, (storage(), 0, (4,), (1,), False, {"x": CONV})), "or with hooks"),
    "too few arguments": (Call(REBUILD, (storage(),)), "with 1 arguments"),
    "a parameter of a class": (
        Call(Name("torch._utils", "_rebuild_parameter"), (CONV, True, {})),
        "calls torch._utils._rebuild_parameter with a Global",
    ),
    "a parameter with hooks": (
        Call(Name("torch._utils", "_rebuild_parameter"), (tensor(storage(), 0, (4,), (1,)), True, {"x": 1})),
        "with hooks",
    ),
    "an id that is text": (Persistent("0"), "refers to '0'"),
    "an id of three": (Persistent(("storage", Name("torch", "FloatStorage"), "0")), "refers to"),
    "an id of another kind": (Persistent(("module", Name("torch", "FloatStorage"), "0", "cpu", 4)), "refers to"),
    "a storage of a class": (Persistent(("storage", CONV, "0", "cpu", 4)), "has a storage of type models.common.Conv"),
    "a storage of text": (Persistent(("storage", "FloatStorage", "0", "cpu", 4)), "refers to"),
    "a storage of a function": (Persistent(("storage", REBUILD, "0", "cpu", 4)), "has a storage of type torch._utils."),
    "a storage elsewhere": (storage("../../etc/passwd"), "a storage called '../../etc/passwd'"),
    "a storage called by a number": (storage(0), "a storage called 0, which is not a number"),
    "a storage of digits that are none": (storage("٣"), "which is not a number"),
    "a storage that is not there": (storage("7"), "its storage 7 wants 16 bytes, its record has 0"),
    "a larger storage": (storage("0", 1 << 50), "wants 4,503,599,627,370,496 bytes"),
    "a smaller storage": (storage("0", 3), "its storage 0 wants 12 bytes, its record has 16"),
    "a negative storage": (storage("0", -4), "a storage of -4 elements"),
    "a storage in two ways": ([storage(), storage("0", 2, "DoubleStorage")], "describes its storage 0 in two ways"),
    "a storage on a device that is none": (
        Persistent(("storage", Name("torch", "FloatStorage"), "0", CONV, 4)),
        "has a storage on a Global",
    ),
    "a quantised storage": (storage("0", 4, "QInt8Storage"), "asks for torch.QInt8Storage"),
}


@pytest.mark.parametrize(("value", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_outside_of_their_storage_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, pickled({"model": {"x": value}}), {"data/0": FLOATS})


def test_tensors_that_take_more_memory_together_than_any_model_are_refused(tmp_path: Path) -> None:
    """Many names for one storage: a small file that would fill the memory."""
    numel = 1 << 20
    state = {f"model.{n}.cv3.0.2.weight": tensor(storage("0", numel), 0, (numel,), (1,)) for n in range(600)}
    assert "its tensors take 2,516,582,400 bytes" in refused(tmp_path, pickled(state), {"data/0": bytes(4 * numel)})


def module(**inside: Any) -> Call:
    return Call(CONV, (), {"_parameters": {}, "_buffers": {}, "_modules": inside})


def test_modules_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    # {"model": X} where X's modules hold X: remember it, then go on building.
    code = (
        b"\x80\x02}" + _strings("model") + b"cmodels.common\nConv\n)\x81q\x01}(" + _strings("_parameters") + b"}"
        + _strings("_buffers") + b"}" + _strings("_modules") + b"}" + _strings("x") + b"h\x01sub" + b"s."
    )  # fmt: skip
    assert "nests its modules without end" in refused(tmp_path, code)


def test_modules_that_are_shared_a_billion_times_are_refused(tmp_path: Path) -> None:
    code = b"\x80\x02cmodels.common\nConv\n)\x81}(" + _strings("_parameters") + b"}" + _strings("_buffers") + b"}"
    code += _strings("_modules") + b"}ub\x94"
    for level in range(30):
        index = bytes([level])
        code += b"0cmodels.common\nConv\n)\x81}(" + _strings("_parameters") + b"}" + _strings("_buffers") + b"}"
        code += _strings("_modules") + b"}(" + _strings("a") + b"h" + index + _strings("b") + b"h" + index + b"uub\x94"
    assert "nests its modules without end" in refused(tmp_path, code + b".")


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "object"])
def test_deep_nesting_is_no_recursion(kind: str, tmp_path: Path) -> None:
    depth = 100_000
    code = {
        "tuple": b")" + b"\x85" * depth,
        "list": b"]" * depth + b"a" * (depth - 1),
        "dict": b"}" + b"K\x01" + b"}K\x01" * (depth - 1) + b"N" + b"s" * depth,
        "object": b"cmodels.common\nConv\n" * depth + b")" + b"R\x85" * depth,
    }[kind]
    path = torch_file(tmp_path / "w.pt", b"\x80\x02" + code + b".")
    with pytest.raises(WeightsError, match="holds no model and no state dict"):
        load(path)
    hashed = torch_file(tmp_path / "w.pt", b"\x80\x02}" + code + b"Ns.")
    with pytest.raises(WeightsError):
        load(hashed)


def test_numbers_in_a_pickle_cost_no_memory(tmp_path: Path) -> None:
    """Sizes and positions of the memo that a file states: Python's own reader makes a table of that size."""
    codes = [
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x02j\xff\xff\xff\xff.",
    ]
    paths = [torch_file(tmp_path / f"{n}.pt", code) for n, code in enumerate(codes)]
    tracemalloc.start()
    try:
        for path in paths:
            with pytest.raises(WeightsError):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_keys_that_collide_are_no_keys(tmp_path: Path) -> None:
    """Integers that differ by 2**61 - 1 share a hash: a table of them would take hours."""
    modulus = 2**61 - 1
    state = {n * modulus: n for n in range(1, 4)}
    assert "as the key of a table" in refused(tmp_path, pickled(state))


def test_a_pickle_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    assert "has more than 1,000 instructions" in refused(tmp_path, b"\x80\x02" + b"N0" * 1000 + b"N.")
    monkeypatch.setattr(archive, "MAX_PICKLE", 100)
    assert "its data.pkl has 2,004 bytes, more than the 100 that are read" in refused(
        tmp_path, b"\x80\x02" + b"N0" * 1000 + b"N."
    )


def test_many_small_objects_end_in_bounded_time(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", b"\x80\x02(" + b"}" * 500_000 + b"l.")
    began = time.process_time()
    with pytest.raises(WeightsError):
        load(path)
    assert time.process_time() - began < 10


# The container


def refused_file(path: Path) -> str:
    with nothing_happens(path.parent), pytest.raises(WeightsError) as caught:
        load(path)
    return str(caught.value)


def test_compressed_records_are_refused_unread(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", bytes(50 << 20), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        assert "'archive/data.pkl' is compressed, which PyTorch never writes" in refused_file(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_records_that_overlap_are_refused(tmp_path: Path) -> None:
    """One stretch of bytes under many names: each is as large as it says, together they are larger than the file."""
    path = torch_file(tmp_path / "w.pt", b"N.", {f"data/{n}": bytes(1000) for n in range(2)})
    with zipfile.ZipFile(path, "a") as file:
        first = file.getinfo("archive/data/0")
        for n in range(2, 50):
            twin = copy.copy(first)
            twin.filename = f"archive/data/{n}"
            file.filelist.append(twin)
            file.NameToInfo[twin.filename] = twin
        file._didModify = True  # type: ignore[attr-defined]
    assert "bytes of records in a file of" in refused_file(path)


def test_records_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", b"N.", {"data/0": FLOATS})
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1) + 1)
    path.write_bytes(content[: at + 20] + struct.pack("<II", 1 << 31, 1 << 31) + content[at + 28 :])
    assert "declares 2,147,48" in refused_file(path)


def test_two_pickles_or_a_record_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for names, message in (
        (["a/data.pkl", "b/data.pkl"], "holds 2 pickles"),
        (["a/data.pkl", "a/b/data.pkl"], "holds 2 pickles"),
        (["a/data.pkl", "b/data/0"], "the record 'b/data/0', which is not where"),
        (["a/data.pkl", "../data/0"], "the record '../data/0', which is not where"),
        (["a/b/data.pkl"], "which is not where"),
        (["a/data.pkl", "a/code/x.py"], "a TorchScript archive"),
        (["a/data.pkl", "a/constants.pkl"], "a TorchScript archive"),
        (["a/x"], "a zip archive without data.pkl"),
        (["yolov9-c.pt"], "a zip archive around 'yolov9-c.pt', which is not opened: unpack it first"),
        (["x/inner.ZIP"], "unpack it first"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"N.")
        assert message in refused_file(path), names


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", b"N.", {"data/0": FLOATS})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", b"other bytes 1234")
    assert "two records of one name" in refused_file(path)


def test_too_many_records_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_RECORDS", 5)
    path = torch_file(tmp_path / "w.pt", b"N.", {f"data/{n}": b"" for n in range(9)})
    assert "an archive of 11 files, more than the 5" in refused_file(path)


def test_a_pickle_in_a_storage_stays_bytes(tmp_path: Path) -> None:
    """An archive or a pickle inside of a record is numbers like any others."""
    inner = io.BytesIO()
    torch_file(Path(tmp_path / "inner.pt"), pickled(call("posix", "mkdir", TRAP)))
    inner.write((tmp_path / "inner.pt").read_bytes())
    record = inner.getvalue() + bytes(-len(inner.getvalue()) % 4)
    state = {"model.0.weight": tensor(storage("0", len(record) // 4), 0, (len(record) // 4,), (1,))}
    path = torch_file(tmp_path / "w.pt", pickled(state), {"data/0": record})
    assert "no detection head in a known layout" in refused_file(path)


def test_damaged_records_are_found(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", pickled({"epoch": 3}))
    content = path.read_bytes()
    at = content.index(b"epoch")
    path.write_bytes(content[:at] + b"epocx" + content[at + 5 :])
    assert "its record archive/data.pkl is damaged" in refused_file(path)
    path.write_bytes(content[:-30])
    assert "a zip archive that is cut off or damaged" in refused_file(path)


def test_an_encrypted_record_is_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", b"N.")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refused_file(path)


def test_a_file_that_changes_between_its_description_and_its_tensors_is_an_error(tmp_path: Path) -> None:
    state = {"model.0.cv3.0.2.weight": tensor(storage(), 0, (4,), (1,))}
    path = torch_file(tmp_path / "w.pt", pickled(state), {"data/0": FLOATS})
    for records in ({"data/0": FLOATS[:8]}, {"data/1": FLOATS}):
        torch_file(path, pickled(state), {"data/0": FLOATS})
        found = read(path)
        torch_file(path, pickled(state), records)
        with pytest.raises(WeightsError, match=r"w\.pt: its record data/0 changed while it was read"):
            found.tensors()
    safetensors.torch.save_file({"model.0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    found = read(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match=r"w\.safetensors: neither safetensors"):
        found.tensors()


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"N.")
        file.writestr("a/byteorder", b"big")
    assert "big-endian" in refused_file(path)


@pytest.mark.parametrize("live", [False, True])
def test_the_format_before_version_1_6_is_refused(live: bool, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (TRAP,)

    torch.save({"model": Trap() if live else torch.zeros(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert "in the format before PyTorch 1.6" in refused_file(tmp_path / "w.pt")


def test_tar_archives_and_bare_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(pickled(call("posix", "mkdir", TRAP)))
    with tarfile.open(tmp_path / "w.pt", "w") as file:
        file.add(tmp_path / "pickle", "pickle")
    assert "neither safetensors nor a torch file" in refused_file(tmp_path / "w.pt")
    assert "a bare pickle, not a file of torch.save: refused" in refused_file(tmp_path / "pickle")


@pytest.mark.parametrize("names", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"0": ' * 5000, "1" * 5000])
def test_names_of_a_safetensors_file_that_are_no_table_are_refused(names: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"model.0.weight": torch.zeros(1)}, tmp_path / "w.safetensors", {"names": names})
    assert "its class names are not JSON" in refused_file(tmp_path / "w.safetensors")


# What is let through


def test_names_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name next to the script is what an attacker would love to have imported."""
    (tmp_path / "cwd" / "models").mkdir()
    (tmp_path / "cwd" / "models" / "__init__.py").write_text(f"import os; os.mkdir('{TRAP}')")
    (tmp_path / "cwd" / "models" / "common.py").write_text("class Conv: pass")
    monkeypatch.syspath_prepend(str(tmp_path / "cwd"))
    path = torch_file(tmp_path / "w.pt", pickled({"model": module(x=module())}))
    with nothing_happens(tmp_path), pytest.raises(WeightsError, match="no detection head"):
        load(path)
    assert "models" not in sys.modules


def test_a_stub_does_nothing() -> None:
    """Called with anything, given anything: it keeps data and has no methods of its own."""
    made = globals.resolve("models.common", "Conv").make
    assert made is not None
    stub = made(("a",))
    globals.build(stub, {"forward": 1})
    assert (type(stub), stub.arguments, stub.state) == (globals.Stub, ("a",), {"forward": 1})
    with pytest.raises(AttributeError):
        stub.forward  # noqa: B018
    assert not callable(stub)


def test_what_checkpoints_hold_besides_weights_is_read_as_data(tmp_path: Path) -> None:
    value = {
        "best_fitness": numpy_array(numpy_type("f8"), raw(struct.pack("<d", 0.25))),
        "scalar": Call(SCALAR, (numpy_type("f4", (3, ">", None, None, None, -1, -1, 0)), raw(struct.pack(">f", 0.5)))),
        "save_dir": Call(Name("pathlib", "PosixPath"), ("/", "runs", "exp")),
        "shape": Call(Name("torch", "Size"), ([1, 64],)),
        "device": Call(Name("torch", "device"), ("cuda", 0)),
        "dtype": Name("torch", "float16"),
        "opt": Call(Name("argparse", "Namespace"), (), {"lr": 0.01}),
        "table": Call(Name("collections", "defaultdict"), (Name("builtins", "list"),)),
        "set": Call(Name("__builtin__", "set"), ([1, 2],)),
        "cfg": Call(Name("omegaconf.dictconfig", "DictConfig"), (), {"_content": {"a": 1}}),
        "bytes": raw(b"\xff\x00"),
        "ordered": Call(ORDERED, (), {"_metadata": Call(ORDERED)}),
    }
    found = pickles.load(pickled(value), lambda _: None)
    assert found["best_fitness"].values.tolist() == [0.25]
    assert (found["scalar"], found["save_dir"], found["shape"], found["bytes"]) == (
        0.5,
        "/runs/exp",
        (1, 64),
        b"\xff\x00",
    )
    assert found["cfg"].state == {"_content": {"a": 1}}
    assert found["set"].elements == [1, 2]
    assert found["ordered"] == {}


def test_every_protocol_of_torch_save_is_read(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        data = {"a": [1, -1, 300, 1 << 40, 0.5, None, True], "t": (1, (2, 3), (1, 2, 3, 4)), "s": "ü", "e": {}}
        assert pickles.load(pickle.dumps(data, protocol), lambda _: None) == data
        found = pickles.load(pickle.dumps({"x": {1, 2}, "b": b"\x00\xff"}, protocol), lambda _: None)
        assert sorted(found["x"].elements) == [1, 2]
        assert found["b"] == b"\x00\xff"


SEED = pickled(
    {
        "epoch": 3,
        "model": Call(
            CONV, (), {"_parameters": {"w": tensor(storage(), 0, (2, 2), (2, 1))}, "_buffers": {}, "_modules": {}}
        ),
        "best": Call(SCALAR, (numpy_type("f8"), raw(bytes(8)))),
        "path": Call(Name("pathlib", "PosixPath"), ("a",)),
        "size": Call(Name("torch", "Size"), ([1],)),
        "set": Call(Name("builtins", "set"), ([1],)),
        "raw": Raw(b"K\x01"),
    }
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(min_size=0, max_size=3)), min_size=1, max_size=6))
def test_any_damage_to_a_pickle_is_an_error_of_ours(changes: list[tuple[int, bytes]]) -> None:
    content = SEED
    for at, new in changes:
        content = content[:at] + new + content[at + 1 :]
    try:
        pickles.load(content, lambda _: None)
    except WeightsError:
        pass


@settings(max_examples=150)
@given(st.data())
def test_any_damage_to_an_archive_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    torch_file(path, SEED, {"data/0": FLOATS})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))]))
    try:
        read(path)
    except WeightsError:
        pass
