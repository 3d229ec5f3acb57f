"""Runs a server with the model that reads the pattern, lets it watch senders, and keeps what it says."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server.bench.processes import BenchError, Server, running_server
from server.testing.truth.clips import HEIGHT, WIDTH
from server.testing.truth.judge import Received
from server.testing.truth.model import truth_bundle
from server.testing.truth.pattern import CERTAINTY

_FIRST_RESULT_S = 30.0
_POLL_S = 0.02
_NAP_S = 0.005


@dataclass
class Rig:
    """A running server and all of its results so far."""

    server: Server
    received: dict[str, list[Received]] = field(default_factory=dict)
    """stream -> results in the order in which they came"""
    held_up_s: float = 0.0
    """The longest that a thread which wants to run was kept waiting. Beyond the tolerance of a latency the machine is
    so busy that nobody's clock readings say when a packet went or came."""

    def add(self, stream: str, url: str, **definition: Any) -> None:
        """BenchError with the server's own words if it does not take the stream."""
        body = {"id": stream, "url": url, "confidence": CERTAINTY, **definition}
        self.server.ask("POST", "/streams", body)

    def remove(self, stream: str) -> None:
        self.server.ask("DELETE", f"/streams/{stream}")

    def ledger(self, stream: str) -> dict[str, Any]:
        ledger: dict[str, Any] = self.server.json("GET", f"/streams/{stream}/ledger")
        return ledger

    def wait_for(self, streams: Sequence[str], results: int = 1, timeout_s: float = _FIRST_RESULT_S) -> None:
        """Until each stream has so many results. BenchError names the one that has not."""
        deadline = time.monotonic() + timeout_s
        while missing := [stream for stream in streams if len(self.received.get(stream, ())) < results]:
            if time.monotonic() > deadline:
                status = self.server.json("GET", f"/streams/{missing[0]}")["status"]
                count = len(self.received.get(missing[0], ()))
                raise BenchError(f"{count} results of {missing[0]} within {timeout_s:g} s, not {results}: {status}")
            time.sleep(_POLL_S)

    def take(self, message: dict[str, Any], at: float) -> None:
        if message["type"] == "result":
            self.received.setdefault(message["stream"], []).append(Received(message, at))


@contextmanager
def running_rig(width: int = WIDTH, height: int = HEIGHT, log: Path | None = None) -> Iterator[Rig]:
    """A server for pictures of `width` x `height` on a free port; its log goes to the file `log`."""
    with tempfile.TemporaryDirectory(prefix="yolov9-truth-") as name:
        folder = Path(name)
        bundle = truth_bundle(folder / "model", width, height)
        options = ("--model", str(bundle.path), "--engine", "onnxruntime", "--threads", "1", "--data", str(folder))
        with (
            running_server(options, log or folder / "log") as server,
            connect(server.websocket_url, compression=None, max_size=None) as socket,
        ):
            rig = Rig(server)

            def listen() -> None:
                try:
                    for text in socket:
                        rig.take(json.loads(text), time.monotonic())
                except ConnectionClosed:
                    pass  # the server ends with the block

            over = threading.Event()

            def watch() -> None:
                while not over.is_set():
                    due = time.monotonic() + _NAP_S
                    time.sleep(_NAP_S)
                    rig.held_up_s = max(rig.held_up_s, time.monotonic() - due)

            threads = [threading.Thread(target=job, name="truth-rig", daemon=True) for job in (listen, watch)]
            for thread in threads:
                thread.start()
            yield rig
            over.set()
            socket.close()
            for thread in threads:
                thread.join()
