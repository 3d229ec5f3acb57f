"""The CUDA driver, as far as running an engine takes: device, memory, one-way streams, graphs.

Through ctypes on the driver's own library, which is there wherever there is a GPU, has kept its interface for a decade,
and fits every version of TensorRT. The alternatives bring what serving does without: torch is gigabytes, cuda-bindings
and a runtime library must match the driver's and TensorRT's CUDA version. Calls of ctypes release the GIL.

The device's primary context is used, which TensorRT's runtime, torch and everything else in the process share.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.api import Capability

LIBRARY = "libcuda.so.1"
"""Comes with the driver; in WSL too."""

Pointer = NewType("Pointer", int)
"""On the device."""
Stream = NewType("Stream", int)
Event = NewType("Event", int)
Graph = NewType("Graph", int)
"""Instantiated, ready to be launched."""

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_STREAM_NON_BLOCKING = 1
_EVENT_BLOCKING_SYNC, _EVENT_DISABLE_TIMING = 1, 2
_CAPTURE_THREAD_LOCAL = 1
"""What other threads do on the device meanwhile does not break the capture."""

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}
"""Every function gives a CUresult."""


class Cuda:
    """One device. `enter` must have been called in a thread before anything else is called in it. EngineError."""

    def __init__(self, device: int = 0, library: Any = None) -> None:
        """`device`: as CUDA_VISIBLE_DEVICES counts. `library`: instead of the driver's."""
        self._library = _open() if library is None else library
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise EngineError(f"the NVIDIA driver is too old: it has no {name} (CUDA 11.4 has)") from None
            function.argtypes, function.restype = arguments, c_int
        self._call("cuInit", 0)
        count, self._device = c_int(), c_int()
        self._call("cuDeviceGetCount", byref(count))
        if not 0 <= device < count.value:
            raise EngineError(f"there is no CUDA device {device} ({count.value} can be seen)")
        self._call("cuDeviceGet", byref(self._device), device)
        self.name = self._name()
        """Of the GPU, for people."""
        self.capability: Capability = (self._attribute(_CAPABILITY_MAJOR), self._attribute(_CAPABILITY_MINOR))
        self._context = c_void_p()

    def enter(self) -> None:
        """Make the device current in this thread; cheap if it is."""
        if not self._context:
            self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Everything made here must have been freed."""
        if self._context:
            self._context = c_void_p()
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    # Memory.

    def allocate(self, size: int) -> Pointer:
        """`size` bytes on the device, aligned to 256 at least."""
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", byref(pointer), size)
        return Pointer(pointer.value)

    def free(self, pointer: Pointer) -> None:
        self._call("cuMemFree_v2", pointer)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """`size` bytes of host memory that the device reads and writes by itself. To be given to `free_pinned`, after
        which neither it nor a view of it may be touched."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), size, 0)
        assert address.value is not None, "success means memory"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))

    def free_pinned(self, memory: npt.NDArray[np.uint8]) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def to_device(self, target: Pointer, source: npt.NDArray[Any], stream: Stream) -> None:
        """Copy contiguous pinned memory, in the stream's order."""
        self._call("cuMemcpyHtoDAsync_v2", target, source.ctypes.data, source.nbytes, stream)

    def to_host(self, target: npt.NDArray[Any], source: Pointer, stream: Stream) -> None:
        """Copy to contiguous pinned memory, in the stream's order."""
        self._call("cuMemcpyDtoHAsync_v2", target.ctypes.data, source, target.nbytes, stream)

    # Streams.

    def stream(self) -> Stream:
        return Stream(self._made("cuStreamCreate", _STREAM_NON_BLOCKING))

    def destroy_stream(self, stream: Stream) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: Stream) -> None:
        """Wait for all that the stream has to do; may burn a core meanwhile, which `wait` does not."""
        self._call("cuStreamSynchronize", stream)

    def event(self) -> Event:
        return Event(self._made("cuEventCreate", _EVENT_BLOCKING_SYNC | _EVENT_DISABLE_TIMING))

    def destroy_event(self, event: Event) -> None:
        self._call("cuEventDestroy_v2", event)

    def wait(self, event: Event, stream: Stream) -> None:
        """As `synchronize`, asleep: the cores are busy decoding video."""
        self._call("cuEventRecord", event, stream)
        self._call("cuEventSynchronize", event)

    # Graphs.

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[list[Graph]]:
        """What is put into the stream inside is not run but recorded; the list holds the graph afterwards."""
        captured: list[Graph] = []
        self._call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        graph = c_void_p()
        try:
            yield captured
        except BaseException:
            # The capture has to be ended, else the stream is lost. It may be invalid by now: the first error counts.
            self._library.cuStreamEndCapture(stream, byref(graph))
            if graph:
                self._library.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", stream, byref(graph))
        try:
            captured.append(Graph(self._made("cuGraphInstantiateWithFlags", graph, 0)))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Graph, stream: Stream) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Graph) -> None:
        self._call("cuGraphExecDestroy", graph)

    # Calls.

    def _made(self, function: str, *arguments: Any) -> int:
        """The handle that a function gives through its first parameter."""
        handle = c_void_p()
        self._call(function, byref(handle), *arguments)
        assert handle.value is not None, "success means a handle"
        return handle.value

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise EngineError(f"{function} failed: {self._error(code)}")

    def _error(self, code: int) -> str:
        name, text = c_char_p(), c_char_p()
        self._library.cuGetErrorName(code, byref(name))
        self._library.cuGetErrorString(code, byref(text))
        parts = [value.decode("utf-8", "replace") for value in (name.value, text.value) if value]
        return ", ".join(parts) or f"error {code}"

    def _name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode("utf-8", "replace")

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value


def _open() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EngineError(f"no NVIDIA driver here: {error}") from error
