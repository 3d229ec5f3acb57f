"""OpenVINO's entry, one for the whole process and for as long as it lives.

The CPU plug-in of each `Core` gives the thread an alternative signal stack and takes it away with itself. If two of
them go in another order than they came, the thread keeps a stack that is no longer there, and the next signal that
Python handles (Ctrl-C, SIGTERM, the end of a data loader's worker) kills the process with SIGSEGV (OpenVINO 2026.4.1).
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def core() -> Any:
    """`openvino.Core()`. ImportError without OpenVINO."""
    import openvino as ov

    return ov.Core()
