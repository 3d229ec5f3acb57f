"""Where a fault is tried out: a real server, two healthy cameras as witnesses, a client that hears everything, and the
camera that suffers.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from server.bench.processes import BenchError, Server, running_cameras, running_server
from server.bench.report import balances
from server.chaos import matrix, namespace
from server.chaos.judge import Change
from server.chaos.matrix import Case
from server.chaos.recorder import Recorder
from server.testing.camera import Camera, Mount
from server.testing.processes import CameraProcess
from server.testing.truth.clips import pattern_clip
from server.testing.truth.pattern import CERTAINTY

STREAM = "suffers"
PATH = "/suffers"
WITNESSES = ("witness0", "witness1")
FPS = 10.0
_WITNESS_FPS = 20.0
_LOOK_S = 0.02
_READ_EVERY_S = 0.25
_START_S = 30.0
_SETTLE_S = 1.0
_DRAIN_S = 4.0
"""Longer than the read time-out: a connection within which a frame was cut short is given up then."""
_BAD_LINE = re.compile(r"Traceback|CRITICAL|Task exception was never retrieved|LedgerError|supervision ended")


class Bed:
    """A context: everything runs within it. `folder` is empty and belongs to it."""

    def __init__(
        self, case: Case, folder: Path, model: Path, engine: str = "auto", damaged: Path | None = None
    ) -> None:
        """`damaged`: a folder of damaged byte streams, to be played besides those that are made here."""
        self.case = case
        self.folder = folder
        self.data = folder / "data"
        self.engine_fault = folder / "engine-fault"
        """What `server.chaos.engine` reads."""
        self.url = ""
        """Where the stream that suffers is opened."""
        self.definition: dict[str, Any] = {}
        """More of its definition."""
        self.suffering: list[str] = [STREAM]
        """Whose states are looked at."""
        self.damaged = damaged
        self.shown_at: float | None = None
        """Set by acts that look for themselves."""
        self.back_at: float | None = None
        self.complaints: list[str] = []
        self.notes: dict[str, Any] = {}
        self.reads = self.unbalanced = 0
        self.model = str(model)
        self._engine = engine
        self._log = folder / "server.log"
        self._stack = ExitStack()
        self.reading = threading.Event()
        """Ledgers are read as long as it is set."""
        self.reading.set()
        self._over = threading.Event()
        self._streams: set[str] = set()
        self.camera: Camera
        """Ours. Every case has it; some leave it alone."""
        self.gst: CameraProcess | None = None
        self.server: Server
        self.recorder: Recorder

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            self._stack.close()
            said = self._log.read_text(errors="replace")[-500:].strip() if self._log.exists() else ""
            if isinstance(error, BenchError) and said:
                raise BenchError(f"{error}; its log ends with: {said}") from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._over.set()
        self._stack.close()

    def _start(self) -> None:
        row, stack = self.case.row, self._stack
        self.data.mkdir()
        if row.needs == "mount":
            namespace.mount_small(self.data)
            stack.callback(namespace.unmount, self.data)
        clip = self.clip()
        self.camera = stack.enter_context(Camera({PATH: Mount(clip)}))
        self.url = self.camera.url(PATH)
        if row.camera == "gst":
            self.gst = stack.enter_context(CameraProcess({STREAM: clip}, kind="gst"))
            self.url = self.gst.url(STREAM)
        witness = pattern_clip(frames=60, fps=_WITNESS_FPS, gop=20)
        self._cameras = stack.enter_context(running_cameras(len(WITNESSES), witness, None))
        os.environ["YOLOV9_CHAOS_ENGINE"] = str(self.engine_fault)
        options = ["--config", str(self._config()), "--model", self.model, "--data", str(self.data)]
        options += ["--engine", self._engine, "--threads", "1", "--media", str(self.folder)]
        self.server = stack.enter_context(running_server(options, self._log, module="server.chaos.serve"))
        self.recorder = stack.enter_context(Recorder(self.server))
        for witness_id, url in zip(WITNESSES, self._cameras.urls.values(), strict=True):
            self.add(witness_id, url)
        reader = threading.Thread(target=self._read_ledgers, name="ledgers", daemon=True)
        reader.start()
        stack.callback(self._over.set)
        for witness_id in WITNESSES:
            self.wait(lambda w=witness_id: self.recorder.counted[w] >= 3, _START_S, f"results of {witness_id}")  # type: ignore[misc]

    def _config(self) -> Path:
        path = self.folder / "server.yaml"
        settings = {
            "open_timeout_s": matrix.OPEN_S, "read_timeout_s": matrix.READ_S,
            "backoff_initial_s": matrix.BACKOFF_S, "backoff_max_s": matrix.BACKOFF_MAX_S,
        }  # fmt: skip
        path.write_text(yaml.safe_dump(settings))
        return path

    # Streams.

    def clip(self, *, width: int = 640, height: int = 360) -> Path:
        """Three groups of pictures of the case's codec, each with its number."""
        gop = self.case.row.gop
        return pattern_clip(
            frames=max(30, gop), fps=FPS, codec=self.case.codec, gop=gop, width=width, height=height
        )  # fmt: skip

    def add(self, stream: str, url: str, **definition: Any) -> None:
        """BenchError with the server's own words if it does not take the stream."""
        body = {"id": stream, "url": url, "confidence": CERTAINTY, **definition}
        self.server.ask("POST", "/streams", body)
        self._streams.add(stream)

    def add_sufferer(self) -> None:
        extra = {} if self.case.row.start == "file" else {"transport": self.case.transport}
        self.add(STREAM, self.url, **extra, **self.definition)

    def remove(self, stream: str) -> None:
        self._streams.discard(stream)
        self.server.ask("DELETE", f"/streams/{stream}")

    def restart_gst(self, **options: Any) -> None:
        """The other camera on the port that it had. With `username` and `password` it asks for them."""
        port = str(urlsplit(self.url).port)
        if self.gst is not None:
            self.gst.__exit__(None, None, None)
        gst = CameraProcess({STREAM: self.clip()}, kind="gst", options=("--port", port), **options)
        self.gst = self._stack.enter_context(gst)

    def patch(self, **changes: Any) -> None:
        """Change the stream that suffers."""
        self.server.ask("PATCH", f"/streams/{STREAM}", changes)

    def ledger(self, stream: str) -> Mapping[str, Any]:
        ledger: Mapping[str, Any] = self.server.json("GET", f"/streams/{stream}/ledger")
        return ledger

    # Looking.

    def wait(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """The first true value. BenchError after the time-out."""
        value = self.look(condition, timeout_s)
        if not value:
            raise BenchError(f"waited {timeout_s:g} s in vain for {what}")
        return value

    def look(self, condition: Callable[[], Any], timeout_s: float) -> Any:
        """The first true value within the time-out, or the last one."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return value

    def ready(self) -> bool:
        try:
            self.server.ask("GET", "/readyz")
        except BenchError:
            return False
        return True

    def settle(self) -> None:
        time.sleep(_SETTLE_S)

    def quiesce(self) -> tuple[dict[str, Mapping[str, Any]], dict[str, int]]:
        """All cameras fall silent. (ledgers, good results told to the client) once nothing is under way any more."""
        self._cameras.fall_silent()
        self.camera.faults(PATH).stalled = True
        if self.gst is not None:
            self.gst.__exit__(None, None, None)
        streams = sorted(self._streams)
        ledgers: dict[str, Mapping[str, Any]] = {}

        def told() -> dict[str, int]:
            return {stream: self.recorder.counted[stream] + self.recorder.missed[stream] for stream in streams}

        def over() -> bool:
            ledgers.update({stream: self.ledger(stream) for stream in streams})
            return all(ledgers[s]["in_flight"] == 0 and ledgers[s]["completed"] == told()[s] for s in streams)

        self.look(over, _DRAIN_S)
        return ledgers, told()

    def changes(self) -> list[Change]:
        """What the streams that suffer told of their states, oldest first."""
        told = (list(self.recorder.changes[stream]) for stream in self.suffering)
        return sorted(itertools.chain.from_iterable(told), key=lambda change: change.at)

    def bad_lines(self) -> list[str]:
        """Lines of the server's log that tell of a programming error."""
        return [line.strip()[:300] for line in self._log.read_text(errors="replace").splitlines()
                if _BAD_LINE.search(line)]  # fmt: skip

    def worker_pid(self) -> int:
        """Of the engine's process, as the log has it. BenchError."""
        pids = re.findall(r"worker pid=(\d+) state=starting", self._log.read_text(errors="replace"))
        if not pids:
            raise BenchError("the log names no worker")
        return int(pids[-1])

    def _read_ledgers(self) -> None:
        while not self._over.wait(_READ_EVERY_S):
            for stream in list(self._streams) if self.reading.is_set() else ():
                try:
                    ledger = self.ledger(stream)
                except BenchError:
                    continue  # it has just gone, or the server has no descriptor for us: acts judge that
                self.reads += 1
                self.unbalanced += not balances(ledger)
