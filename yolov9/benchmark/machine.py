"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from yolov9.engines.cpu import available_cpus, cpu_flags, cpu_info

_PACKAGES = ("openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13", "nncf", "numpy")
_FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_tile",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""What decides how fast a CPU multiplies matrices: x86, then ARM, by Linux's names."""


def machine(threads: int) -> dict[str, Any]:
    """CPU model, flags, cores that this process may use, memory in bytes, load, kernel; GPUs if there are any."""
    flags = cpu_flags()
    return {
        "cpu": cpu_info().get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": available_cpus(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "gpus": gpus(),
    }


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Python and the packages that do the work, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU."""
    fields = ("name", "memory.total", "driver_version", "compute_cap")
    rows = _nvidia_smi(*fields)
    return [dict(zip(fields, row, strict=False)) for row in rows]


def gpu_memory_used() -> int | None:
    """Bytes in use on the first GPU, by whomever; None without one."""
    rows = _nvidia_smi("memory.used")
    try:
        return int(rows[0][0].split()[0]) << 20  # "1234 MiB"
    except (IndexError, ValueError):
        return None


def peak_memory() -> int:
    """Bytes of this process' memory at its largest. Linux's own count: libraries that are mapped are in it."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _nvidia_smi(*fields: str) -> list[list[str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer: as if there were no GPU
        return []
    return [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
