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
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from server.inference import protocol
from server.inference.config import WorkerConfig, decode_config
from server.shm import Arena
from yolov9.bundle import Bundle
from yolov9.engines import Engine, choose, usual_shape
from yolov9.geometry import Letterbox
from yolov9.postprocess import PredictionError, postprocess

__all__ = ["Host", "Loaded", "WorkerConfig", "main", "worker_main"]

log = logging.getLogger("yolov9.inference")

_SWITCH_INTERVAL_S = 0.0005
"""Python's default lets post-processing keep the interpreter from a thread that has a batch to start for 5 ms."""
_SEND_BUFFER_BYTES = 4 << 20
_USUAL_DETECTIONS = 300
_STOP_S = 1.0
_PR_SET_PDEATHSIG = 1


class Loaded(NamedTuple):
    """An engine that can run, and what Hello says of it."""

    engine: Engine
    why: str
    shape: tuple[int, int]
    """(height, width) to make warm first."""


class RequestError(Exception):
    """A batch that cannot be run, whatever the engine's health. One sentence."""


def load_engine(config: WorkerConfig) -> Loaded:
    """The bundle's engine, as configured; warm for its usual shape. BundleError, EngineError."""
    bundle = Bundle.load(config.bundle)
    choice = choose(
        bundle, config.engine, config.precision, threads=config.threads, max_batch=config.max_batch,
        cache_dir=config.cache_dir,
    )  # fmt: skip
    return Loaded(choice.engine, choice.why, usual_shape(bundle))


class Host:
    """Serves requests from `sock` with `engine` until the socket ends or Stop comes. Says Hello first."""

    def __init__(self, sock: socket.socket, loaded: Loaded, config: WorkerConfig) -> None:
        self._sock = sock
        self._engine = loaded.engine
        self._sending = threading.Lock()
        self._reply_bytes = _reply_limit(sock)
        self._arenas: dict[int, Arena] = {}  # replaced, never changed: runners read it without a lock
        self._shapes = {loaded.shape}  # only added to
        self._batches: queue.SimpleQueue[protocol.Infer | None] = queue.SimpleQueue()
        self._to_prepare: queue.SimpleQueue[protocol.Prepare | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(self._engine.parallel)
        self._failing = False
        self._hello = self._introduce(loaded, config)

    def _introduce(self, loaded: Loaded, config: WorkerConfig) -> protocol.Hello:
        engine = self._engine
        room = max(self._reply_bytes // (_USUAL_DETECTIONS * protocol.DETECTION_COLUMNS * 4 + 16), 1)
        return protocol.Hello(
            engine=engine.name,
            precision=engine.precision,
            device=engine.device,
            why=loaded.why,
            parallel=engine.parallel,
            max_batch=min(engine.max_batch, config.max_batch or engine.max_batch, room),
            height=loaded.shape[0],
            width=loaded.shape[1],
        )

    def serve(self) -> bool:
        """Until the end; True: told to stop, and everything has ended in order."""
        threads = [
            threading.Thread(target=self._run_batches, name=f"runner-{i}", daemon=True)
            for i in range(self._engine.parallel + 1)
        ]
        preparer = threading.Thread(target=self._prepare_shapes, name="preparer", daemon=True)
        for thread in (*threads, preparer):
            thread.start()
        self._send(self._hello)
        if not self._read_requests():
            return False
        for _ in threads:
            self._batches.put(None)
        self._to_prepare.put(None)
        deadline = time.monotonic() + _STOP_S
        for thread in (*threads, preparer):
            thread.join(max(deadline - time.monotonic(), 0.0))
        if any(thread.is_alive() for thread in (*threads, preparer)):
            return False
        self._engine.close()
        return True

    def _read_requests(self) -> bool:
        """Hand requests out until Stop (True) or the end of the socket (False)."""
        while True:
            data, fds, _flags, _address = socket.recv_fds(self._sock, protocol.MAX_MESSAGE_BYTES, 1)
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
                case protocol.Prepare() as prepare:
                    self._to_prepare.put(prepare)
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
        if (batch.height, batch.width) not in self._shapes:
            raise RequestError(f"the shape {batch.width}x{batch.height} has not been prepared")
        images = [self._image(frame, batch) for frame in batch.frames]
        with self._slots:
            started_at = time.monotonic()
            prediction = self._engine.infer(images)
            finished_at = time.monotonic()
        check_prediction(prediction, len(images))
        detections = [
            detect(prediction[i], frame, batch.height, batch.width).tobytes() for i, frame in enumerate(batch.frames)
        ]
        return protocol.Done(batch.id, started_at, finished_at, time.monotonic(), detections)

    def _image(self, frame: protocol.Frame, batch: protocol.Infer) -> npt.NDArray[np.uint8]:
        arena = self._arenas.get(frame.arena)
        if arena is None:
            raise RequestError(f"there is no arena {frame.arena}")
        try:
            return arena.image(frame.slot, batch.height, batch.width)
        except (IndexError, ValueError) as error:
            raise RequestError(f"arena {frame.arena}: {error}") from None

    # Shapes.

    def _prepare_shapes(self) -> None:
        while (wanted := self._to_prepare.get()) is not None:
            began = time.monotonic()
            error = None
            try:
                if (wanted.height, wanted.width) not in self._shapes:
                    self._engine.prepare(wanted.height, wanted.width)
                self._shapes.add((wanted.height, wanted.width))
            except Exception as failure:  # the shape is refused; the others go on
                log.exception("shape=%dx%d could not be prepared", wanted.width, wanted.height)
                error = describe(failure)
            self._send(protocol.Prepared(wanted.height, wanted.width, time.monotonic() - began, error))


def detect(
    prediction: npt.NDArray[np.float32], frame: protocol.Frame, height: int, width: int
) -> npt.NDArray[np.float32]:
    """One image's prediction (4+nc, A) -> float32 (n, 6), see `protocol.DETECTION_COLUMNS`. PredictionError for NaN."""
    thresholds = None
    if frame.class_thresholds is not None:
        thresholds = np.frombuffer(frame.class_thresholds, np.float32)
        if len(thresholds) != len(prediction) - 4:
            raise RequestError(f"{len(thresholds)} class thresholds for a model of {len(prediction) - 4} classes")
    return postprocess(
        prediction,
        Letterbox.fit(frame.source_width, frame.source_height, width, height),
        frame.confidence,
        frame.iou,
        thresholds,
        max_detections=frame.max_detections,
    )


def check_prediction(prediction: npt.NDArray[np.float32], images: int) -> None:
    """PredictionError unless there is one prediction for each image. What is inside is checked by `postprocess`."""
    if prediction.ndim != 3 or len(prediction) != images:
        raise PredictionError(f"the engine gave predictions of shape {prediction.shape} for {images} images")


def describe(error: Exception) -> str:
    """An exception as one line for people."""
    text = " ".join(str(error).split()) or "no message"
    known = type(error).__module__.partition(".")[0] in ("server", "yolov9")
    return text if known else f"{type(error).__name__}: {text}"


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
        loaded = _factory(config)(config)
        height, width = loaded.shape
        loaded.engine.prepare(height, width)
        prediction = loaded.engine.infer([np.zeros((height, width, 3), np.uint8)])
        check_prediction(prediction, 1)
        postprocess(prediction[0], Letterbox.fit(width, height, width, height))
    except Exception as error:  # the reason goes to the server, which is the one that can do something about it
        log.exception("no engine could be started")
        sock.sendall(protocol.encode(protocol.Failed(describe(error))))
        return True
    return Host(sock, loaded, config).serve()


def _factory(config: WorkerConfig) -> Callable[[WorkerConfig], Loaded]:
    if config.engine_factory is None:
        return load_engine
    module, _, function = config.engine_factory.partition(":")
    made: Callable[[WorkerConfig], Loaded] = getattr(importlib.import_module(module), function)
    return made


def main(fd: int) -> NoReturn:
    """The process: the server's end of the socket is held by the server alone, so its end is the server's end."""
    faulthandler.enable()
    # A terminal's Ctrl-C and a service manager's SIGTERM reach all processes; the server drains first, then says Stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    sock = socket.socket(fileno=fd)
    status = 1
    try:
        config = decode_config(sock.recv(protocol.MAX_MESSAGE_BYTES))
        logging.basicConfig(
            level=config.log_level, format="%(asctime)s %(levelname)s %(name)s worker %(message)s", stream=sys.stderr
        )
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
