"""The server's side of the nursery: starts it, asks it for processes, hears of their ends. Event loop only; no call
blocks, but for the start of the nursery itself (milliseconds, once).

The nursery may die as well. Processes of cameras do not depend on it; it is started again when the next is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import server
from server.ingest.nursery import MAX_MESSAGE_BYTES, Spawn, Spawned, Task, decode_report, encode
from server.secrecy import child_environment

log = logging.getLogger("yolov9.ingest")

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from server.ingest.nursery import main; main(int(sys.argv[2]))"
_ROOT = str(Path(server.__file__).resolve().parents[1])
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""numpy's thread pool would be started for nothing, and must not exist when the nursery forks. Heaps of many threads
would cost each camera some MB."""


class Process:
    """A process that was asked for. `ended` is done when it is gone; the result is its exit status (negative: the
    signal that ended it), or None if nobody knows."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.pid: int | None = None
        """None until it has been forked."""
        self.ended: asyncio.Future[int | None] = loop.create_future()
        self._pidfd: int | None = None
        self._killed = False

    def kill(self) -> None:
        """SIGKILL, as soon as there is something to kill; it ends stopped processes, too."""
        self._killed = True
        if self.ended.done() or self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            # A descriptor names this process for ever, a number may be given to another one.
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def _forked(self, pid: int, pidfd: int | None) -> None:
        self.pid, self._pidfd = pid, pidfd
        if self._killed:
            self.kill()

    def _orphaned(self) -> None:
        """Its nursery died: nobody will tell how it ends, only that it does."""
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._gone, None)
        elif self.pid is None:
            self._gone(None)
        # Neither known: the end of its pipe has to do.

    def _gone(self, status: int | None) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            with contextlib.suppress(OSError):
                # Ours only if the nursery died and this server is the first process of a container.
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            os.close(self._pidfd)
            self._pidfd = None
        if not self.ended.done():
            self.ended.set_result(status)


class Nursery:
    """One for each event loop; see `nursery`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tokens = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._children: dict[int, Process] = {}

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def spawn(self, task: Task, descriptors: list[int]) -> Process:
        """Ask for a process. The descriptors are duplicated for it: close them at will. Raises OSError."""
        channel = self._channel or self._start()
        copies = [os.dup(descriptor) for descriptor in descriptors]
        token = next(self._tokens)
        process = self._children[token] = Process(self._loop)
        self._waiting.append((encode(Spawn(token, task)), copies))
        if len(self._waiting) == 1:
            self._loop.add_writer(channel, self._send)
            self._send()
        return process

    def close(self) -> None:
        """End the nursery. Processes that still run are not told of any more."""
        channel, process = self._channel, self._process
        if channel is not None and process is not None:
            self._lose(channel)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-c", _BOOT, _ROOT, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=child_environment() | _ONE_THREAD
            )
        ours.setblocking(False)
        self._channel = ours
        self._loop.add_reader(ours, self._receive)
        log.debug("nursery pid=%d started", self._process.pid)
        return ours

    def _send(self) -> None:
        channel = self._channel
        assert channel is not None
        while self._waiting:
            message, descriptors = self._waiting[0]
            try:
                socket.send_fds(channel, [message], descriptors)
            except BlockingIOError:
                return
            except OSError:
                self._lose(channel)
                return
            self._waiting.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        self._loop.remove_writer(channel)

    def _receive(self) -> None:
        channel = self._channel
        assert channel is not None
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._lose(channel)
                return
            report = decode_report(data)
            process = self._children.get(report.token)
            if isinstance(report, Spawned):
                pidfd = descriptors[0] if descriptors else None
                if process is not None:
                    process._forked(report.pid, pidfd)
                elif pidfd is not None:
                    os.close(pidfd)
            elif process is not None:
                del self._children[report.token]
                process._gone(report.status)

    def _lose(self, channel: socket.socket) -> None:
        """The nursery is gone, or is to go. Those it would have started have ended; the others live on unwatched."""
        if not self._loop.is_closed():
            self._loop.remove_reader(channel)
            self._loop.remove_writer(channel)
        channel.close()
        self._channel = None
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        waiting, self._waiting = self._waiting, deque()
        for _, descriptors in waiting:
            for descriptor in descriptors:
                os.close(descriptor)
        children, self._children = self._children, {}
        if not self._loop.is_closed():
            for child in children.values():
                child._orphaned()


_nurseries: dict[asyncio.AbstractEventLoop, Nursery] = {}


def nursery() -> Nursery:
    """The nursery of the running loop."""
    loop = asyncio.get_running_loop()
    for other in [other for other in _nurseries if other.is_closed()]:
        _nurseries.pop(other).close()
    return _nurseries.setdefault(loop, Nursery(loop))
