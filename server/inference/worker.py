"""The inference worker: one engine in a process of its own, so that a native call that hangs or crashes can be ended.

It owns the engine and the mappings of the arenas, and talks to the server through one SOCK_SEQPACKET socket
(`protocol`). Threads: the main one reads requests; `parallel + 1` runners take batches, of which `parallel` are inside
the engine while another pre- or post-processes; one prepares new shapes beside the running ones. At the end of the
socket, which is the end of the server, the process ends at once, whatever its threads are caught in.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from server import logs
from server.inference import protocol
from server.inference.config import WorkerConfig, decode_config
from server.inference.loading import Loaded, check_prediction, describe, load
from server.inference.ways import Way, Ways
from server.shm import Arena
from yolov9.engines import Engine, Limits, SuppressingEngine
from yolov9.geometry import Letterbox
from yolov9.postprocess import postprocess, to_source

__all__ = ["Host", "WorkerConfig", "main", "worker_main"]

log = logging.getLogger("yolov9.inference")

_SWITCH_INTERVAL_S = 0.0005
"""Python's default lets post-processing keep the interpreter from a thread that has a batch to start for 5 ms."""
_SEND_BUFFER_BYTES = 4 << 20
_USUAL_DETECTIONS = 300
_STOP_S = 1.0
_PR_SET_PDEATHSIG = 1

Images = Sequence[npt.NDArray[np.uint8]]


class RequestError(Exception):
    """A batch that cannot be run, whatever the engine's health. One sentence."""


class Host:
    """Serves requests from `sock` with `engine` until the socket ends or Stop comes. Says Hello first."""

    def __init__(self, sock: socket.socket, loaded: Loaded, config: WorkerConfig) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._reply_bytes = _reply_limit(sock)
        self._arenas: dict[int, Arena] = {}  # replaced, never changed: runners read it without a lock
        self._batches: queue.SimpleQueue[protocol.Infer | None] = queue.SimpleQueue()
        self._runners: list[threading.Thread] = []
        self._failing = False
        self._config = config
        self._hello = self._introduce(loaded)
        self._ways = Ways(loaded, self._send, self._make_runners, self._max_batch)

    def _introduce(self, loaded: Loaded) -> protocol.Hello:
        engine = loaded.engine
        return protocol.Hello(
            engine=engine.name,
            precision=engine.precision,
            device=engine.device,
            why=loaded.why,
            parallel=engine.parallel,
            max_batch=self._max_batch(engine),
            height=loaded.shape[0],
            width=loaded.shape[1],
        )

    def _max_batch(self, engine: Engine) -> int:
        """The largest batch to report: what pays on the engine, is allowed, and has an answer that fits a message."""
        room = max(self._reply_bytes // (_USUAL_DETECTIONS * protocol.DETECTION_COLUMNS * 4 + 16), 1)
        return min(engine.max_batch, self._config.max_batch or engine.max_batch, room)

    def serve(self) -> bool:
        """Until the end; True: told to stop, and everything has ended in order."""
        self._make_runners(self._hello.parallel)
        self._send(self._hello)
        self._ways.begin_upgrade()
        if not self._read_requests():
            return False
        prepared = self._ways.stop(_STOP_S)
        for _ in self._runners:
            self._batches.put(None)
        deadline = time.monotonic() + _STOP_S
        for thread in self._runners:
            thread.join(max(deadline - time.monotonic(), 0.0))
        if not prepared or any(thread.is_alive() for thread in self._runners):
            return False
        self._ways.close()
        return True

    def _make_runners(self, parallel: int) -> None:
        """Threads for so many batches inside the engine, and one before or after it."""
        while len(self._runners) <= parallel:
            runner = threading.Thread(target=self._run_batches, name=f"runner-{len(self._runners)}", daemon=True)
            self._runners.append(runner)
            runner.start()

    def _read_requests(self) -> bool:
        """Hand requests out until Stop (True) or the end of the socket (False)."""
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, protocol.MAX_MESSAGE_BYTES, 1)
            except ConnectionResetError:  # the server died with answers unread
                return False
            if not data:
                return False
            match protocol.decode_request(data):
                case protocol.Infer() as batch:
                    self._batches.put(batch)
                case protocol.AttachArena() as attach:
                    self._attach(attach, fds)
                case protocol.DetachArena(number):
                    gone = self._arenas.get(number)
                    self._arenas = {n: a for n, a in self._arenas.items() if n != number}
                    if gone is not None:
                        gone.close()
                case protocol.Prepare(height, width):
                    self._ways.prepare(height, width)
                case protocol.Stop():
                    return True

    def _attach(self, attach: protocol.AttachArena, fds: list[int]) -> None:
        """An arena that cannot be mapped (no descriptors, no memory) costs its own frames only."""
        try:
            arena = Arena.attach(fds[0], attach.slots, attach.slot_bytes)
        except (OSError, ValueError, IndexError) as error:
            log.error("arena=%d cannot be attached: %s", attach.arena, error)
            for fd in fds:
                os.close(fd)
        else:
            self._arenas = self._arenas | {attach.arena: arena}

    def _send(self, reply: protocol.Reply) -> None:
        data = protocol.encode(reply)
        if len(data) > self._reply_bytes and isinstance(reply, protocol.Done):
            why = f"the result has {len(data)} bytes, more than the {self._reply_bytes} that fit one message"
            data = protocol.encode(_failed(reply.id, why, reply.started_at, reply.finished_at))
        # Without the server there is nobody to answer, and the main thread is about to see the end of the socket.
        with self._sending, contextlib.suppress(ConnectionError):
            self._sock.sendall(data)

    # Batches.

    def _run_batches(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                done = self._infer(batch)
            except RequestError as error:
                done = _failed(batch.id, str(error))
            except Exception as error:  # whatever a native engine raises is an answer, not the end of the worker
                if not self._failing:
                    log.exception("inference failed; further failures are not logged until one succeeds")
                self._failing = True
                done = _failed(batch.id, describe(error), engine_failed=True)
            else:
                self._failing = False
            self._send(done)

    def _infer(self, batch: protocol.Infer) -> protocol.Done:
        with self._ways.use((batch.height, batch.width)) as way:
            if way is None:
                raise RequestError(f"the shape {batch.width}x{batch.height} has not been prepared")
            images = [self._image(frame, batch) for frame in batch.frames]
            if way.suppressing is not None:
                detections, started_at, finished_at = _suppressed(way, way.suppressing, images, batch)
            else:
                detections, started_at, finished_at = _predicted(way, images, batch)
            self._ways.ended(way, started_at, finished_at, len(images))
        return protocol.Done(batch.id, started_at, finished_at, time.monotonic(), detections)

    def _image(self, frame: protocol.Frame, batch: protocol.Infer) -> npt.NDArray[np.uint8]:
        arena = self._arenas.get(frame.arena)
        if arena is None:
            raise RequestError(f"there is no arena {frame.arena}")
        try:
            return arena.image(frame.slot, batch.height, batch.width)
        except (IndexError, ValueError) as error:
            raise RequestError(f"arena {frame.arena}: {error}") from None


class Ran(NamedTuple):
    detections: list[bytes]
    """As in Done."""
    started_at: float
    finished_at: float


def _predicted(way: Way, images: Images, batch: protocol.Infer) -> Ran:
    """Predictions from the engine, thresholds and suppression here."""
    with way.slots:
        started_at = time.monotonic()
        prediction = way.engine.infer(images)
        finished_at = time.monotonic()
    check_prediction(prediction, len(images))
    found = [_detect(prediction[i], frame, batch) for i, frame in enumerate(batch.frames)]
    return Ran([one.tobytes() for one in found], started_at, finished_at)


def _suppressed(way: Way, engine: SuppressingEngine, images: Images, batch: protocol.Infer) -> Ran:
    """Everything on the engine's device but the last step to source pixels."""
    limits = [
        Limits(frame.confidence, frame.iou, _class_thresholds(frame, engine.classes), frame.max_detections)
        for frame in batch.frames
    ]
    with way.slots:
        started_at = time.monotonic()
        found = engine.detect(images, limits)
        finished_at = time.monotonic()
    boxes = [to_source(one, _letterbox(frame, batch)) for one, frame in zip(found, batch.frames, strict=True)]
    return Ran([one.tobytes() for one in boxes], started_at, finished_at)


def _detect(
    prediction: npt.NDArray[np.float32], frame: protocol.Frame, batch: protocol.Infer
) -> npt.NDArray[np.float32]:
    """One image's prediction (4+nc, A) -> float32 (n, 6), see `protocol.DETECTION_COLUMNS`. PredictionError for NaN."""
    return postprocess(
        prediction,
        _letterbox(frame, batch),
        frame.confidence,
        frame.iou,
        _class_thresholds(frame, len(prediction) - 4),
        max_detections=frame.max_detections,
    )


def _letterbox(frame: protocol.Frame, batch: protocol.Infer) -> Letterbox:
    return Letterbox.fit(frame.source_width, frame.source_height, batch.width, batch.height)


def _class_thresholds(frame: protocol.Frame, classes: int) -> npt.NDArray[np.float32] | None:
    if frame.class_thresholds is None:
        return None
    thresholds = np.frombuffer(frame.class_thresholds, np.float32)
    if len(thresholds) != classes:
        raise RequestError(f"{len(thresholds)} class thresholds for a model of {classes} classes")
    return thresholds


def _failed(
    batch_id: int, why: str, started_at: float = 0.0, finished_at: float = 0.0, *, engine_failed: bool = False
) -> protocol.Done:
    now = time.monotonic()
    return protocol.Done(batch_id, started_at or now, finished_at or now, now, [], why, engine_failed)


def _reply_limit(sock: socket.socket) -> int:
    """Raise the send buffer as far as the system allows; the largest message that it takes then, bytes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    return min(room - 1024, protocol.MAX_MESSAGE_BYTES)


def worker_main(sock: socket.socket, config: WorkerConfig) -> bool:
    """Load, warm, say Hello and serve; or say Failed. True: ended in order."""
    try:
        loaded = load(config)
    except Exception as error:  # the reason goes to the server, which is the one that can do something about it
        log.exception("no engine could be started")
        sock.sendall(protocol.encode(protocol.Failed(describe(error))))
        return True
    return Host(sock, loaded, config).serve()


def main(fd: int) -> NoReturn:
    """The process: the server's end of the socket is held by the server alone, so its end is the server's end."""
    faulthandler.enable()
    # A terminal's Ctrl-C and a service manager's SIGTERM reach all processes; the server drains first, then says Stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _die_with_parent()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    sock = socket.socket(fileno=fd)
    status = 1
    try:
        config = decode_config(sock.recv(protocol.MAX_MESSAGE_BYTES))
        logs.inherit("worker")
        os.nice(config.nice)
        status = 0 if worker_main(sock, config) else 1
    except ConnectionError:
        pass  # the server is gone, and so are we
    except Exception:
        log.exception("the worker cannot go on")
    sys.stderr.flush()
    os._exit(status)  # engines' threads may be caught in native calls; the interpreter's own end would wait for them


def _die_with_parent() -> None:
    """SIGKILL when the server's main thread ends: a stopped process (SIGSTOP) would never see the end of its socket."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
