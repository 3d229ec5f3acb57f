"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

_PACKAGES = ("av", "openvino", "onnxruntime", "torch", "numpy")


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory in bytes, kernel."""
    return {
        "cpu": cpu_model(_read("/proc/cpuinfo")) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load_average_at_begin": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """The server, Python and the packages that do the work, as far as they are installed."""
    found = {"server": importlib.metadata.version("yolov9-server"), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_model(cpuinfo: str) -> str | None:
    """The first model name in the text of /proc/cpuinfo (x86; ARM has none)."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == "model name":
            return value.strip()
    return None


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
