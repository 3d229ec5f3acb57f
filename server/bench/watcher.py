"""The client that a bench counts results with: one WebSocket for all streams, in a thread of its own."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from server.bench.processes import BenchError, Server

_ANSWER_S = 10.0
_MAX_MESSAGE_BYTES = 16 << 20


class Message(msgspec.Struct):
    """The part of a message that is counted; the rest is not even decoded."""

    type: str
    stream: str = ""
    status: str = ""
    latency_ms: dict[str, float] = {}
    """Stage -> ms; see `server.results`."""
    missed: int = 0


class Watcher:
    """Counts from `begin` to `end`; first results are noted at all times."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._counting = False
        self.first_at: dict[str, float] = {}
        """stream -> CLOCK_MONOTONIC seconds of its first result"""
        self.results: dict[str, int] = {}
        self.latencies: list[dict[str, float]] = []
        """Of results with status ok."""
        self.errors = 0
        self.gaps = 0
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        """Connect. BenchError."""
        server = self._server
        headers = {"Authorization": f"Bearer {server.token}"} if server.token else None
        try:
            self._socket = self._stack.enter_context(
                connect(
                    server.websocket_url, additional_headers=headers, compression=None, open_timeout=_ANSWER_S,
                    max_size=_MAX_MESSAGE_BYTES,
                )
            )  # fmt: skip
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise BenchError(f"WebSocket {server.websocket_url}: {error}") from None
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._stack.close()
        self._thread.join(_ANSWER_S)

    def begin(self) -> None:
        with self._lock:
            self._counting = True

    def end(self) -> None:
        with self._lock:
            self._counting = False

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        decode = msgspec.json.Decoder(Message).decode
        try:
            for text in self._socket:
                self.take(decode(text), time.monotonic())
        except ConnectionClosed:
            pass  # `alive` tells

    def take(self, message: Message, now: float) -> None:
        """Count one message that came at `now`."""
        with self._lock:
            if message.type == "result":
                self.first_at.setdefault(message.stream, now)
                if self._counting:
                    self.results[message.stream] = self.results.get(message.stream, 0) + 1
                    if message.status == "ok":
                        self.latencies.append(message.latency_ms)
                    else:
                        self.errors += 1
            elif message.type == "gap" and self._counting:
                self.gaps += message.missed
