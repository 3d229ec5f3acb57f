"""An inference worker's process as seen from the server: started, talked to, ended and reaped, without ever blocking.

A process of its own interpreter (`python -m server.inference`), neither forked from the server (threads, event loop)
nor importing its `__main__`. It inherits one descriptor, its end of the socket; everything else closes on exec.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from server.inference import protocol
from server.inference.config import WorkerConfig, encode_config
from server.secrecy import child_environment

_SOCKET_BUFFER_BYTES = 4 << 20
_READS = 64
"""Replies read in one go before the loop has its turn again."""
_EXIT_S = 0.5
"""A process whose socket has ended is dead within microseconds, and then one knows how it died."""


class WorkerProcess:
    """One life of a worker. `on_reply` gets its messages; `on_gone` is called once, when its socket or it has ended, or
    when it sent what is no message; not after `kill`. Both are called from the event loop. OSError if it cannot be
    started."""

    def __init__(
        self,
        config: WorkerConfig,
        on_reply: Callable[[protocol.Reply], None],
        on_gone: Callable[[str], None],
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._on_reply = on_reply
        self._on_gone = on_gone
        self._loop = loop
        self._unsent: deque[tuple[bytes, int]] = deque()  # message, duplicated descriptor or -1
        self._open = True
        self._ending: asyncio.TimerHandle | None = None
        self._exited = asyncio.Event()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            command = [sys.executable, "-m", "server.inference", str(theirs.fileno())]
            # vfork and exec: some milliseconds, whatever the size of the server. Not from a helper thread: the worker
            # asks for SIGKILL at the end of the thread that started it.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=child_environment()
            )
            self._pidfd = _pidfd_of(self._process)
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        loop.add_reader(self._pidfd, self._reap)
        loop.add_reader(self._sock, self.read)
        self._send(encode_config(config), -1)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: protocol.Request, fd: int | None = None) -> None:
        """Never blocks: what the socket does not take now goes later, in order. `fd` may be closed right after."""
        self._send(protocol.encode(message), -1 if fd is None else fd)

    def read(self) -> None:
        """Take in what has come."""
        for _ in range(_READS):
            if not self._open:
                return
            try:
                data = self._sock.recv(protocol.MAX_MESSAGE_BYTES)
                if not data:
                    return self._wait_for_the_exit()
                reply = protocol.decode_reply(data)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:  # killed with requests unread
                return self._wait_for_the_exit()
            except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
                return self._end(f"its socket failed: {error}")
            self._on_reply(reply)

    def kill(self) -> None:
        """SIGKILL; also ends a stopped or hung process. Nothing is called any more."""
        self._close()
        if not self._exited.is_set():
            self._process.kill()

    async def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, and been reaped, within the time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), timeout_s)
        return self._exited.is_set()

    def _send(self, data: bytes, fd: int) -> None:
        if not self._open:
            return
        if not self._unsent and self._try_send(data, fd):
            return
        if not self._unsent:
            self._loop.add_writer(self._sock, self._flush)
        self._unsent.append((data, fd if fd < 0 else os.dup(fd)))

    def _try_send(self, data: bytes, fd: int) -> bool:
        try:
            socket.send_fds(self._sock, [data], [] if fd < 0 else [fd])
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:
            pass  # it is gone: the reader finds out and says so
        return True

    def _flush(self) -> None:
        while self._unsent:
            data, fd = self._unsent[0]
            if not self._try_send(data, fd):
                return
            self._unsent.popleft()
            if fd >= 0:
                os.close(fd)
        self._loop.remove_writer(self._sock)

    def _wait_for_the_exit(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._ending is None:
            self._ending = self._loop.call_later(_EXIT_S, self._end, "its socket ended")

    def _end(self, why: str) -> None:
        if self._open:
            self._close()
            self._on_gone(why)

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._ending is not None:
            self._ending.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, fd in self._unsent:
            if fd >= 0:
                os.close(fd)
        self._unsent.clear()

    def _reap(self) -> None:
        """The process has ended. What it said last is still in the socket."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._exited.set()
        self.read()
        self._end(self._fate())

    def _fate(self) -> str:
        """How the process ended, for the log."""
        code = self._process.returncode
        if code is None:
            return "still running"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _pidfd_of(process: subprocess.Popen[bytes]) -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
