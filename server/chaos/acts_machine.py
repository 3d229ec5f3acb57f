"""What happens to processes, to the engine, to what the machine lends, and on the network. See `acts_camera`."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from server.bench.procfs import roles, snapshot
from server.chaos import namespace
from server.chaos.acts_camera import refusal
from server.chaos.bed import PATH, STREAM, WITNESSES, Bed

_REFUSED_S = 5.0
"""A change that cannot be stored must be refused within it."""
_START_S = 60.0
_SMALL_FILE = 1 << 20
"""Less than the pictures of one camera need."""


# Processes.


def _camera_pid(bed: Bed) -> int:
    """The process that receives the stream that suffers: it was started last."""
    assert bed.server.pid is not None
    found = roles(bed.server.pid, snapshot())
    return max(pid for pid, role in found.items() if role == "camera")


def process_killed(bed: Bed) -> Iterator[None]:
    os.kill(_camera_pid(bed), signal.SIGKILL)
    yield


def process_stopped(bed: Bed) -> Iterator[None]:
    os.kill(_camera_pid(bed), signal.SIGSTOP)
    yield


# The engine.


def engine_raises(bed: Bed) -> Iterator[None]:
    return _engine(bed, "raise")


def engine_nan(bed: Bed) -> Iterator[None]:
    return _engine(bed, "nan")


def engine_hangs(bed: Bed) -> Iterator[None]:
    return _engine(bed, "hang")


def engine_broken(bed: Bed) -> Iterator[None]:
    return _engine(bed, "raise always")


def _engine(bed: Bed, fault: str) -> Iterator[None]:
    bed.engine_fault.write_text(fault)
    yield
    bed.engine_fault.unlink()
    _no_reconnects(bed)


def worker_killed(bed: Bed) -> Iterator[None]:
    os.kill(bed.worker_pid(), signal.SIGKILL)
    yield
    _no_reconnects(bed)


def worker_stopped(bed: Bed) -> Iterator[None]:
    os.kill(bed.worker_pid(), signal.SIGSTOP)
    yield
    _no_reconnects(bed)


def _no_reconnects(bed: Bed) -> None:
    for stream in (STREAM, *WITNESSES):
        if reconnects := bed.server.json("GET", f"/streams/{stream}")["status"]["reconnects"]:
            bed.complaints.append(f"{stream} was reconnected {reconnects} times, and its camera is well")


# What the machine lends.


def database_locked(bed: Bed) -> Iterator[None]:
    connection = sqlite3.connect(bed.data / "streams.sqlite", isolation_level=None)
    with contextlib.closing(connection):
        connection.execute("BEGIN EXCLUSIVE")
        _change_is_refused(bed)
        yield
        connection.execute("ROLLBACK")
    _change_is_taken(bed)


def disk_full(bed: Bed) -> Iterator[None]:
    filling = bed.data / "filling"
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    _change_is_refused(bed)
    yield
    filling.unlink()
    _change_is_taken(bed)


def disk_read_only(bed: Bed) -> Iterator[None]:
    """The kernel makes no mount read-only in which files are open for writing, so another server begins on one."""
    assert bed.server.pid is not None
    folder = bed.folder / "read-only"
    folder.mkdir()
    namespace.mount_small(folder)
    namespace.remount(folder, read_only=True)
    command = [sys.executable, "-m", "server", "--port", "0", "--data", str(folder / "data"), "--model", bed.model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
    bed.shown_at = time.monotonic()
    bed.notes["said"] = done.stderr.strip()[-300:]
    if done.returncode != 1 or str(folder) not in done.stderr or "Traceback" in done.stderr:
        bed.complaints.append(f"the server ended with {done.returncode} and said: {done.stderr.strip()[-300:]}")
    yield
    namespace.unmount(folder)


def no_shared_memory(bed: Bed) -> Iterator[None]:
    """Memory for pictures is a file without a name; so large a one is refused, and the data base is smaller."""
    with _limit(bed, resource.RLIMIT_FSIZE, _SMALL_FILE):
        _change_is_refused(bed)
        yield
    _change_is_taken(bed)


def no_descriptors(bed: Bed) -> Iterator[None]:
    """One is left, for the connection of the request that needs more."""
    assert bed.server.pid is not None
    bed.reading.clear()
    bed.settle()
    used = {int(name) for name in os.listdir(f"/proc/{bed.server.pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    with _limit(bed, resource.RLIMIT_NOFILE, next(free) + 1):
        _change_is_refused(bed)
        yield
    bed.reading.set()
    _change_is_taken(bed)


@contextlib.contextmanager
def _limit(bed: Bed, kind: int, soft: int) -> Iterator[None]:
    assert bed.server.pid is not None
    before = resource.prlimit(bed.server.pid, kind)
    resource.prlimit(bed.server.pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(bed.server.pid, kind, before)


def _change_is_refused(bed: Bed) -> None:
    began = time.monotonic()
    answer = refusal(bed, "POST", "/streams", _another(bed))
    took = time.monotonic() - began
    bed.notes["refused_after_s"] = round(took, 2)
    if answer is None:
        bed.complaints.append("another stream was taken, and there is no room for it")
        bed.remove("another")
    elif ": 503 " not in answer:
        bed.complaints.append(f"another stream was refused in other words than 503: {answer}")
    elif took > _REFUSED_S:
        bed.complaints.append(f"another stream was refused after {took:.1f} s only")
    if answer is not None and ": 503 " in answer:
        bed.shown_at = time.monotonic()


def _change_is_taken(bed: Bed) -> None:
    answer = refusal(bed, "POST", "/streams", _another(bed))
    if answer is not None:
        bed.complaints.append(f"another stream is still refused when the fault is over: {answer}")
        return
    bed.remove("another")


def _another(bed: Bed) -> dict[str, object]:
    return {"id": "another", "url": bed.camera.url(PATH)}


# The network.


def net_loss5(bed: Bed) -> Iterator[None]:
    return _datagrams(bed, "numgen random mod 100 < 5")


def net_loss30(bed: Bed) -> Iterator[None]:
    return _datagrams(bed, "numgen random mod 100 < 30")


def net_silence(bed: Bed) -> Iterator[None]:
    return _datagrams(bed, "")


def _datagrams(bed: Bed, condition: str) -> Iterator[None]:
    """Witnesses are watched over TCP, so all datagrams are those of the stream that suffers."""
    with namespace.dropping([f"meta l4proto udp {condition}".strip()]):
        yield


def net_black_hole(bed: Bed) -> Iterator[None]:
    port = urlsplit(bed.url).port
    with namespace.dropping([f"tcp sport {port}", f"tcp dport {port}", "meta l4proto udp"]):
        yield
