"""The server's ends of one camera process: its event pipe and its control socket. Event loop only; nothing blocks."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable

from server.ingest.wire import RECORD_BYTES, Control, ControlReader, Event, unpack_events

PIPE_BYTES = 256 << 10
"""Some 3,600 records: a minute of a 25 fps camera while the server does not read. Taken from the kernel only as it is
filled; 64 MiB (256 cameras) is what Linux grants to a user."""
_READ_BYTES = 512 * RECORD_BYTES
_MAX_UNSENT_BYTES = 256 << 10
"""A camera that leaves so much of what it is told unread is not alive."""


class EventPipe:
    """Records in the order in which they were written. `closed` is done at the end of the pipe."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_events: Callable[[list[Event]], None]) -> None:
        """Raises OSError. `write_fd` is for the process."""
        self._loop = loop
        self._on_events = on_events
        self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.closed: asyncio.Future[None] = loop.create_future()
        self._delivering = False
        loop.add_reader(self._fd, self.drain)

    def drain(self) -> None:
        """Deliver all that is in the pipe now. A call from within a delivery is left to the one that delivers."""
        if self._fd < 0 or self._delivering:
            return
        self._delivering = True
        try:
            while True:
                try:
                    data = os.read(self._fd, _READ_BYTES)
                except BlockingIOError:
                    return
                if not data:
                    self.close()
                    return
                self._on_events(list(unpack_events(data)))
        finally:
            self._delivering = False

    def passed_on(self) -> None:
        """The process has its end: ours goes, or the pipe would never end."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        self.passed_on()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            if not self.closed.done():
                self.closed.set_result(None)


class ControlLink:
    """Messages both ways. What the process does not take at once waits here, up to a bound."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Control, bytes], None],
        on_choked: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises OSError. `remote_fd` is for the process. `on_choked`: it does not read what it is sent."""
        self._loop = loop
        self._on_message = on_message
        self._on_choked = on_choked
        self._socket, self._remote = socket.socketpair()
        self._socket.setblocking(False)
        self._reader = ControlReader()
        self._unsent = bytearray()
        self._open = True
        loop.add_reader(self._socket, self.drain)

    @property
    def remote_fd(self) -> int:
        return self._remote.fileno()

    def passed_on(self) -> None:
        """The process has its end: ours goes."""
        self._remote.close()

    def send(self, message: bytes) -> None:
        """Does nothing once the link is closed: whoever ends need not be told."""
        if not self._open:
            return
        if self._unsent:
            self._unsent += message
        else:
            sent = self._try(message)
            if sent == len(message) or not self._open:
                return
            self._unsent += message[sent:]
            self._loop.add_writer(self._socket, self._send_rest)
        if len(self._unsent) > _MAX_UNSENT_BYTES:
            self.close()
            self._on_choked()

    def drain(self) -> None:
        """Deliver all messages that are there now."""
        while self._open:
            try:
                data = self._socket.recv(256 << 10)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._socket)
                return
            for kind, payload in self._reader.feed(data):
                self._on_message(kind, payload)

    def close(self) -> None:
        self.passed_on()
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._unsent.clear()

    def _send_rest(self) -> None:
        del self._unsent[: self._try(self._unsent)]
        if not self._unsent and self._open:
            self._loop.remove_writer(self._socket)

    def _try(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            return 0
