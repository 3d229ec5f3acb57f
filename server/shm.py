"""Shared-memory arenas: the slots through which pixels travel between processes.

An arena is one anonymous memfd, cut into slots of equal size. It lives in no file system, so a container's 64 MB
`/dev/shm` does not bound it and nothing is left behind after `kill -9`. Its size is sealed: a process that goes wrong
cannot shrink it and so crash the others with SIGBUS. Pages are only taken once they are written: arenas are made for
the largest input that any model may have, so that a change of the model needs no new ones.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def slot_bytes(input_size: int) -> int:
    """Bytes of a slot for frames of at most `input_size` x `input_size` RGB pixels, rounded up to whole pages."""
    page = mmap.PAGESIZE
    return -(-input_size * input_size * 3 // page) * page


class Arena:
    """`slots` slots of `slot_bytes` bytes each. `fd` may be sent to other processes, which call `Arena.attach`."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.fd = fd
        self.slots = slots
        self.slot_bytes = slot_bytes
        # numpy keeps its `buffer` object alive but holds no lock on it, so the mapping is never closed by force: it
        # goes with the last view. (mmap.close() under a living view means a crash at the next access.)
        self._memory: memoryview | None = memoryview(mmap.mmap(fd, slots * slot_bytes))

    @classmethod
    def create(cls, name: str, slots: int, slot_bytes: int) -> Arena:
        """Make a new arena. `name` is only seen in /proc/PID/maps. Raises OSError when memory or descriptors lack."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, slots * slot_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, slots, slot_bytes)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, slots: int, slot_bytes: int) -> Arena:
        """Map an arena made elsewhere; takes ownership of `fd`. ValueError if the file is smaller than stated."""
        if os.fstat(fd).st_size < slots * slot_bytes:
            raise ValueError(f"arena file has {os.fstat(fd).st_size} bytes, not {slots} x {slot_bytes}")
        return cls(fd, slots, slot_bytes)

    def image(self, slot: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The (height, width, 3) uint8 RGB view of a slot: no copy. IndexError/ValueError if it does not fit."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        if height <= 0 or width <= 0 or height * width * 3 > self.slot_bytes:
            raise ValueError(f"{width}x{height} RGB does not fit a slot of {self.slot_bytes} bytes")
        if self._memory is None:
            raise ValueError("the arena is closed")
        return np.ndarray((height, width, 3), np.uint8, buffer=self._memory, offset=slot * self.slot_bytes)

    def trim(self, slot_bytes: int) -> None:
        """Give back the pages of each slot behind its first `slot_bytes` bytes: nobody writes there any more."""
        if self._memory is None:
            return
        memory: mmap.mmap = self._memory.obj  # type: ignore[assignment]
        begin = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        for slot in range(self.slots):
            if begin < self.slot_bytes:
                memory.madvise(mmap.MADV_REMOVE, slot * self.slot_bytes + begin, self.slot_bytes - begin)

    def close(self) -> None:
        """Give the descriptor back, and the mapping as soon as no view is alive. May be called again."""
        self._memory = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
