"""What a client is told: every message of every stream, in a thread of its own, with the time at which it came.

The model reads the pattern that the cameras' pictures bear, so a result tells by itself whether its picture was whole.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from server.bench.processes import BenchError, Server
from server.chaos.judge import Change
from server.testing.truth.model import stamp_of

_ANSWER_S = 10.0


class Result(NamedTuple):
    at: float
    """CLOCK_MONOTONIC seconds."""
    ok: bool
    torn: bool
    """The picture could not be read."""
    total_ms: float
    width: int


class _Message(msgspec.Struct):
    type: str
    stream: str = ""
    status: str = ""
    width: int = 0
    height: int = 0
    latency_ms: dict[str, float] = {}
    detections: list[dict[str, Any]] = []
    state: str = ""
    reason: str | None = None
    retry_in_s: float | None = None
    missed: int = 0


class Recorder:
    """A context. What it collects may be read at any time; lists only grow, until `forget`."""

    def __init__(self, server: Server, patterned: bool = True) -> None:
        """`patterned`: pictures bear the pattern and the model reads it; else nothing counts as torn."""
        self._server = server
        self._patterned = patterned
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self.results: defaultdict[str, list[Result]] = defaultdict(list)
        self.changes: defaultdict[str, list[Change]] = defaultdict(list)
        self.missed: defaultdict[str, int] = defaultdict(int)
        self.counted: defaultdict[str, int] = defaultdict(int)
        """stream -> good results, also those that `forget` has thrown away"""
        self.torn: defaultdict[str, int] = defaultdict(int)
        self.errors: defaultdict[str, int] = defaultdict(int)

    def __enter__(self) -> Self:
        """Connect. BenchError."""
        try:
            self._socket = self._stack.enter_context(
                connect(self._server.websocket_url, compression=None, open_timeout=_ANSWER_S, max_size=None)
            )
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise BenchError(f"WebSocket {self._server.websocket_url}: {error}") from None
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._stack.close()
        self._thread.join(_ANSWER_S)

    @property
    def alive(self) -> bool:
        """Whether the server still tells us something."""
        return self._thread.is_alive()

    def state(self, stream: str) -> Change | None:
        """The newest state of the stream that was told."""
        changes = self.changes[stream]
        return changes[-1] if changes else None

    def good_since(self, stream: str, since: float) -> Result | None:
        """The first good result that came after that instant."""
        return next((result for result in list(self.results[stream]) if result.ok and result.at > since), None)

    def totals(self, streams: list[str], since: float, until: float) -> list[float]:
        """Latencies in ms of the good results that came within these instants."""
        return [r.total_ms for s in streams for r in list(self.results[s]) if r.ok and since <= r.at < until]

    def forget(self) -> None:
        """Throw results away that were counted: a long run would keep millions."""
        for results in list(self.results.values()):
            results.clear()

    def _run(self) -> None:
        decode = msgspec.json.Decoder(_Message).decode
        try:
            for text in self._socket:
                self._take(decode(text), time.monotonic())
        except ConnectionClosed:
            pass  # `alive` tells

    def _take(self, message: _Message, now: float) -> None:
        match message.type:
            case "result":
                self._result(message, now)
            case "state":
                change = Change(now, message.state, message.reason, message.retry_in_s)
                self.changes[message.stream].append(change)
            case "gap":
                self.missed[message.stream] += message.missed

    def _result(self, message: _Message, now: float) -> None:
        ok, torn = message.status == "ok", False
        if ok:
            self.counted[message.stream] += 1
            if self._patterned:
                torn = stamp_of(message.detections, message.width, message.height) is None
                self.torn[message.stream] += torn
        else:
            self.errors[message.stream] += 1
        total = message.latency_ms.get("total", 0.0)
        self.results[message.stream].append(Result(now, ok, torn, total, message.width))
