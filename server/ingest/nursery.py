"""The process that camera processes are forked from: one thread, PyAV loaded, and no state of any camera.

Why not multiprocessing's forkserver: it imports the server's main module again in every child (or has to be fooled
about it), its preload list is one for the whole process, starting a child blocks the caller until the fork has been
made, and it brings a resource tracker as one more process. This is the part of it that is needed: requests with their
descriptors come over a SEQPACKET socket, children are forked, their ends are told. It ends when the server does.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable

import msgspec

from server import logs
from server.ingest.wire import CameraSettings

MAX_MESSAGE_BYTES = 64 << 10
_MAX_DESCRIPTORS = 4


class CameraTask(msgspec.Struct, frozen=True, kw_only=True, tag="camera"):
    """What a camera's process is started with. Descriptors come with it: events, control, arena."""

    settings: CameraSettings
    next_seq: int
    slots: int
    slot_bytes: int
    held: list[tuple[int, int]] = []
    """(slot, seq) that the server still holds from a process before this one."""


class ProbeTask(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Open the source once and say what it is. One descriptor comes with it: control."""

    settings: CameraSettings


Task = CameraTask | ProbeTask


class Spawn(msgspec.Struct, frozen=True):
    """Server -> nursery. `token` names the child from then on."""

    token: int
    task: Task


class Spawned(msgspec.Struct, frozen=True, tag="spawned"):
    """Nursery -> server. With it comes a pidfd, where the kernel has them."""

    token: int
    pid: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The child is gone and reaped. `status` as of `os.waitstatus_to_exitcode`; None if it could not be forked."""

    token: int
    status: int | None


_encoder = msgspec.msgpack.Encoder()
decode_report = msgspec.msgpack.Decoder(Spawned | Ended).decode
_decode_spawn = msgspec.msgpack.Decoder(Spawn).decode


def encode(message: Spawn | Spawned | Ended) -> bytes:
    return _encoder.encode(message)


class _Nursery:
    def __init__(self, channel: socket.socket, run: Callable[[Task, list[int]], int]) -> None:
        self._channel = channel
        self._run = run
        self._tokens: dict[int, int] = {}  # pid -> token
        self._wakeup, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._inherited = (channel.fileno(), self._wakeup, wakeup)

    def serve(self) -> None:
        """Until the server closes its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wakeup in ready:
                    os.read(self._wakeup, 4096)
                    self._reap()
                if self._channel in ready and not self._receive(selector):
                    return

    def _receive(self, selector: selectors.BaseSelector) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS)
        if not data:
            return False
        spawn = _decode_spawn(data)
        try:
            pid = os.fork()
        except OSError:
            self._channel.send(encode(Ended(spawn.token, None)))
        else:
            if pid == 0:
                selector.close()
                self._live(spawn.task, descriptors)
            self._tokens[pid] = spawn.token
            self._report(spawn.token, pid)
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _live(self, task: Task, descriptors: list[int]) -> None:
        """The child's life. Does not return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in self._inherited:
                os.close(descriptor)
            status = self._run(task, descriptors)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _report(self, token: int, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            self._channel.send(encode(Spawned(token, pid)))
            return
        socket.send_fds(self._channel, [encode(Spawned(token, pid))], [pidfd])
        os.close(pidfd)

    def _reap(self) -> None:
        while self._tokens:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            token = self._tokens.pop(pid, None)
            if token is not None:
                self._channel.send(encode(Ended(token, os.waitstatus_to_exitcode(status))))


def main(descriptor: int) -> None:
    """Run a nursery on its end of the channel, a SEQPACKET socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Here and not above: the server imports this module for its messages, and never loads PyAV through it.
    from server.ingest import camera, probing

    def run(task: Task, descriptors: list[int]) -> int:
        if isinstance(task, CameraTask):
            return camera.main(task, *descriptors)
        return probing.main(task, *descriptors)

    logs.inherit("camera")
    channel = socket.socket(fileno=descriptor)
    with open("/proc/self/comm", "w") as comm:
        comm.write("cam nursery")
    gc.collect()
    gc.freeze()  # what is loaded stays shared with the children
    try:
        _Nursery(channel, run).serve()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server is gone
