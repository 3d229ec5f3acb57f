"""What a server's processes use at one instant, from /proc alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.procfs import PROC, pss_bytes, roles, snapshot

KINDS = {"memory": "memory", "server_memory": "memory", "camera_memory": "memory"}
"""Series that are bytes; all others are counts."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of the server together, unless a name says otherwise."""

    at: float
    """Seconds from the begin of the run."""
    memory: int
    """Proportional set size in bytes: shared pages count once."""
    server_memory: int
    """Of the server's own process."""
    camera_memory: int
    """Of the camera process that has most."""
    processes: int
    threads: int
    descriptors: int
    segments: int
    """Descriptors of shared memory (memfd)."""

    def series(self) -> dict[str, float]:
        """Everything but the time."""
        return {name: float(getattr(self, name)) for name in SERIES}


SERIES = ("memory", "server_memory", "camera_memory", "processes", "threads", "descriptors", "segments")


def take(server: int, at: float, proc: Path = PROC) -> Sample:
    """One look at the server's process and all below it. One that ends meanwhile counts as far as it was seen."""
    found = roles(server, snapshot(proc))
    memory = {pid: pss_bytes([pid], proc) or 0 for pid in found}
    threads = descriptors = segments = 0
    for pid in found:
        threads += _count(proc / str(pid) / "task")
        links = _links(proc / str(pid) / "fd")
        descriptors += len(links)
        segments += sum(link.startswith("/memfd:yolov9-") for link in links)
    return Sample(
        at=at,
        memory=sum(memory.values()),
        server_memory=memory.get(server, 0),
        camera_memory=max((memory[pid] for pid, role in found.items() if role == "camera"), default=0),
        processes=len(found),
        threads=threads,
        descriptors=descriptors,
        segments=segments,
    )


def compared(before: Sample, after: Sample) -> dict[str, dict[str, Any]]:
    """Counts of two calm moments with the same streams and clients: they have to be equal."""
    return {
        name: {"before": int(before.series()[name]), "after": int(after.series()[name])}
        for name in SERIES
        if name not in KINDS
    }


def _count(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def _links(folder: Path) -> list[str]:
    found = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        try:
            found.append(os.readlink(folder / name))
        except OSError:
            continue  # closed meanwhile
    return found
