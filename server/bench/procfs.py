"""CPU time and memory of a tree of processes, from /proc alone.

CPU time is what the kernel accounts, in ticks of 10 ms: good for seconds, not for single frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
_WORKER = b"server.inference"


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one instant."""

    pid: int
    parent: int
    cpu_s: float
    """User and system time of all its threads, and of none of its children."""
    rss_bytes: int
    command: bytes
    """As started, arguments separated by NUL."""


def snapshot(proc: Path = PROC) -> dict[int, Process]:
    """All processes that can be read. One that ends meanwhile is left out."""
    found = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            process = parse(int(entry.name), (entry / "stat").read_bytes(), (entry / "cmdline").read_bytes())
        except OSError:
            continue  # it has ended
        found[process.pid] = process
    return found


def parse(pid: int, stat: bytes, command: bytes) -> Process:
    """From the contents of /proc/PID/stat and cmdline. The name in `stat` may hold blanks and parentheses."""
    fields = stat[stat.rindex(b")") + 2 :].split()
    ticks = int(fields[11]) + int(fields[12])
    return Process(
        pid=pid,
        parent=int(fields[1]),
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        rss_bytes=max(0, int(fields[21])) * os.sysconf("SC_PAGE_SIZE"),
        command=command,
    )


def roles(server: int, processes: Mapping[int, Process]) -> dict[int, str]:
    """pid -> server | inference | nursery | camera, for the server's process and all below it.

    The server's children are the inference worker and the nursery; the nursery's children are the cameras."""
    found = {server: "server"} if server in processes else {}
    level = set(found)
    while level:
        children = {pid: item for pid, item in processes.items() if item.parent in level and pid not in found}
        for pid, item in children.items():
            if found[item.parent] != "server":
                found[pid] = "camera" if found[item.parent] == "nursery" else found[item.parent]
            else:
                found[pid] = "inference" if _WORKER in item.command else "nursery"
        level = set(children)
    return found


def pss_bytes(pids: Iterable[int], proc: Path = PROC) -> int | None:
    """Memory of these processes with shared pages counted once; None where the kernel does not tell."""
    total = 0
    for pid in pids:
        try:
            lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
        except FileNotFoundError:
            continue  # it has ended
        except OSError:
            return None
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


@dataclass(slots=True)
class Usage:
    """Follows a server's processes, new ones included; those that ended keep what they had used when last seen."""

    server: int
    _first: dict[int, float] = field(default_factory=dict)
    _last: dict[int, float] = field(default_factory=dict)
    _roles: dict[int, str] = field(default_factory=dict)
    _rss: dict[int, int] = field(default_factory=dict)
    _started: bool = False
    rss_first: int = 0
    """Sum over all processes at the first sample."""
    rss_peak: int = 0

    def sample(self, processes: Mapping[int, Process]) -> None:
        """Take a look. The first one is the zero of CPU time; a process that comes later counts from its start."""
        current = roles(self.server, processes)
        self._rss = {pid: processes[pid].rss_bytes for pid in current}
        for pid, role in current.items():
            self._roles[pid] = role
            self._first.setdefault(pid, processes[pid].cpu_s if not self._started else 0.0)
            self._last[pid] = processes[pid].cpu_s
        total = sum(self._rss.values())
        if not self._started:
            self.rss_first = total
        self.rss_peak = max(self.rss_peak, total)
        self._started = True

    def cpu_s(self) -> dict[str, float]:
        """role -> CPU seconds since the first sample."""
        used: dict[str, float] = {}
        for pid, role in self._roles.items():
            used[role] = used.get(role, 0.0) + self._last[pid] - self._first[pid]
        return used

    def rss(self) -> dict[str, list[int]]:
        """role -> bytes of each of its processes at the newest sample, largest first."""
        sizes: dict[str, list[int]] = {}
        for pid, size in self._rss.items():
            sizes.setdefault(self._roles[pid], []).append(size)
        return {role: sorted(values, reverse=True) for role, values in sizes.items()}

    @property
    def pids(self) -> list[int]:
        """Those alive at the newest sample."""
        return list(self._rss)
