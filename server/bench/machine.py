"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from yolov9.benchmark.machine import versions as installed
from yolov9.engines.cpu import cpu_info

_PACKAGES = ("av", "openvino", "onnxruntime", "torch", "numpy")


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory in bytes, kernel."""
    return {
        "cpu": cpu_model() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load_average_at_begin": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """The server, Python and the packages that do the work, as far as they are installed."""
    return {"server": importlib.metadata.version("yolov9-server"), **installed(_PACKAGES)}


def cpu_model(cpuinfo: str | None = None) -> str | None:
    """The first model name in the text of /proc/cpuinfo (x86; ARM has none); None reads this machine's."""
    return cpu_info(cpuinfo).get("model name")
