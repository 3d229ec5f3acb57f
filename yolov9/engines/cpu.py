"""How many CPUs this process may really use, and what they are.

In a container with `--cpus=2` on a machine of 64 cores the libraries see 64 and start so many threads, which then wait
for each other's time slices. The limit stands in the control group, where no library looks.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_cpus() -> int:
    """CPUs of this process: its affinity, cut to the control group's quota. At least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def limited() -> bool:
    """Whether it is fewer than the machine has, so that libraries have to be told."""
    return available_cpus() < (os.cpu_count() or 1)


def cpu_info(text: str | None = None) -> dict[str, str]:
    """Linux's own words on the first CPU (`text`: of /proc/cpuinfo); {} where there are none."""
    if text is None:
        try:
            text = _CPU_INFO.read_text()
        except OSError:
            return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def cpu_flags() -> frozenset[str]:
    """What it can do, by Linux's names: x86's flags or ARM's features. Empty where that cannot be told."""
    info = cpu_info()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def _quota() -> float | None:
    """CPUs of the control group; None without a limit, or where there are no such files."""
    for read in (_read_v2, _read_v1):
        try:
            quota, period = read()
        except (OSError, ValueError):  # the other version, no Linux, or "max": no limit
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def _read_v2() -> tuple[int, int]:
    quota, period = _CGROUP_V2.read_text().split()
    return int(quota), int(period)


def _read_v1() -> tuple[int, int]:
    quota, period = (path.read_text() for path in _CGROUP_V1)
    return int(quota), int(period)
