"""TensorRT's runtime on a machine without a GPU: `cuda_stub.c` is the driver, ONNX Runtime computes.

A "serialised engine" is the ONNX graph itself. What TensorRT demands of its caller is checked: memory, profile, shapes
and addresses before a batch; one batch outside of a capture before one inside.
"""

from __future__ import annotations

import ctypes
import enum
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort

from yolov9.engines.tensorrt.api import Api, Messages
from yolov9.engines.tensorrt.cuda import Cuda

_WORK = ctypes.CFUNCTYPE(ctypes.c_int)
SCRATCH = 4096


def compile_stub(folder: Path) -> Path:
    """FileNotFoundError without a C compiler."""
    library = folder / "libcuda_stub.so"
    source = Path(__file__).with_name("cuda_stub.c")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-lpthread"], check=True
    )
    return library


class FakeGpu:
    """`api` and `cuda` for `Site`; knobs for what goes wrong."""

    def __init__(self, library: Path, flavour: str = "tensorrt") -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.stub_enqueue.argtypes = (ctypes.c_void_p, _WORK)
        self.cuda = Cuda(library=self.library)
        self.messages = Messages()
        self.contexts: list[FakeContext] = []
        self.capturable = True
        self.failing = False
        """Batches fail."""
        self.kernels = [b"compiled"]
        module = SimpleNamespace(
            ILogger=SimpleNamespace(Severity=enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")),
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=self._deserialize),
            ExecutionContextAllocationStrategy=enum.Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"),
            DynamicShapesKernelSpecializationStrategy=enum.Enum("Specialization", "LAZY EAGER NONE"),
        )
        self.api = Api(module, flavour, "99.1", object(), self.messages)  # type: ignore[arg-type]

    @property
    def live(self) -> int:
        """Allocations, streams, events, graphs and contexts of the driver that have not been given back."""
        return self.library.stub_live()

    @property
    def launches(self) -> int:
        return self.library.stub_launches()

    def fail(self, function: str, code: int = 2) -> None:
        """The next call of a driver's function fails."""
        self.library.stub_fail(function.encode(), code)

    def _deserialize(self, plan: bytes):
        try:
            return FakeEngine(self, plan)
        except Exception:  # ONNX Runtime's own
            self.messages.add(40, "the magic tag does not match")
            return None


class FakeEngine:
    device_memory_size_v2 = SCRATCH

    def __init__(self, gpu: FakeGpu, plan: bytes) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.gpu = gpu
        self.session = ort.InferenceSession(plan, options)

    def create_execution_context(self, how):
        if isinstance(how, SimpleNamespace):
            assert how.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            how = how.strategy
        assert how.name == "USER_MANAGED"
        context = FakeContext(self)
        self.gpu.contexts.append(context)
        return context

    def create_runtime_config(self):
        cache = SimpleNamespace(deserialize=lambda blob: blob == b"compiled", serialize=lambda: self.gpu.kernels[-1])
        config = SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda cache: True)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._work = _WORK(self._run)
        self._profile: int | None = None
        self._memory: tuple[int, int] | None = None
        self.runs = 0
        self.enqueued = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "shapes are those of a profile"
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "predictions"
        session = self._engine.session
        inputs = {
            value.name: np.zeros(self._shapes[value.name], np.uint8 if "uint8" in value.type else np.float32)
            for value in session.get_inputs()
        }
        return session.run([name], inputs)[0].shape

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.gpu.capturable

    def execute_async_v3(self, stream: int) -> bool:
        session = self._engine.session
        names = {value.name for value in (*session.get_inputs(), *session.get_outputs())}
        assert self._addresses.keys() == names
        assert self._shapes.keys() == {value.name for value in session.get_inputs()}
        assert self._memory is not None
        assert self._memory[1] >= SCRATCH
        if self._engine.gpu.failing:
            self._engine.gpu.messages.add(40, "an illegal memory access was encountered")
            return False
        self.enqueued += 1
        return self._engine.gpu.library.stub_enqueue(stream, self._work) == 0

    def _run(self) -> int:
        self.runs += 1
        session = self._engine.session
        inputs = {}
        for value in session.get_inputs():
            dtype = np.uint8 if value.type == "tensor(uint8)" else np.float32
            shape = self._shapes[value.name]
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            inputs[value.name] = np.frombuffer(ctypes.string_at(self._addresses[value.name], size), dtype).reshape(
                shape
            )
        for value, result in zip(session.get_outputs(), session.run(None, inputs), strict=True):
            ctypes.memmove(self._addresses[value.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)
        return 0
