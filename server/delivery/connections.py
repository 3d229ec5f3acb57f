"""Connections that cost more than they are worth end: too many, too many of one address, too slow, too long a head.

Uvicorn bounds none of these. Time-outs are on what arrives: a client that sends a byte now and then (slow loris) holds
a connection no longer than an honest slow one. What is sent is bounded elsewhere (`serve`, the hub's queues).
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
from functools import lru_cache
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.delivery.problems import problem_response

MAX_HEAD_BYTES = 32 << 10
"""Request line and headers. Cookies and tokens take 1 or 2 kB."""
HEAD_S = 10.0
"""The head must have come within it, from the connection's or the request's first byte on."""
BODY_CHECK_S = 20.0
MIN_BODY_RATE = 500
"""Bytes a second that a body must bring on average between two checks."""


class Bounds(NamedTuple):
    connections: int
    per_address: int
    """Of addresses other than loopback: a proxy on this machine speaks for everybody."""
    head_s: float = HEAD_S
    body_check_s: float = BODY_CHECK_S


class BoundedHttp(HttpToolsProtocol):
    """For `uvicorn.Config(http=functools.partial(BoundedHttp, bounds))`."""

    def __init__(self, bounds: Bounds, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bounds = bounds
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._head_bytes = 0
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_one_too_many():
            self._refuse(503, "no_capacity", "There are too many connections already.")
        else:
            self._arm(self._bounds.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "head_too_large", _HEAD_TOO_LARGE)
        elif self._timer is None and self._is_idle():  # empty lines between requests: uvicorn waits for no end of them
            self._arm(self._bounds.head_s, self._head_is_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._arm(self._bounds.head_s, self._head_is_late)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self._head_bytes = -1 << 62  # no head until the next one begins
        self._body_bytes = 0
        self._arm(self._bounds.body_check_s, self._body_is_late)
        if size > MAX_HEAD_BYTES:
            self.app = _head_too_large  # closes the connection
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._head_bytes = 0
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._disarm()
        super().handle_websocket_upgrade()

    def _is_idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.transport.is_closing() and self.transport.get_protocol() is self

    def _is_one_too_many(self) -> bool:
        """Connections, WebSockets too, are counted when one comes, and by address only when it may matter."""
        if len(self.connections) > self._bounds.connections:
            return True
        if self.client is None or len(self.connections) <= self._bounds.per_address or _is_loopback(self.client[0]):
            return False
        address = self.client[0]
        clients = (getattr(connection, "client", None) for connection in self.connections)
        return [c[0] for c in clients if c is not None].count(address) > self._bounds.per_address

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer without the application, and end the connection."""
        self._refused = True
        self._disarm()
        answer = problem_response(status, code, detail)
        head = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "connection: close"]
        head += [f"{name.decode()}: {value.decode()}" for name, value in answer.raw_headers]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + bytes(answer.body))
        self.transport.close()

    def _arm(self, after_s: float, then: Any) -> None:
        self._disarm()
        self._timer = self.loop.call_later(after_s, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The next request came early, and nothing is read until this one has its answer.
            self._arm(self._bounds.head_s, self._head_is_late)
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        if self._body_bytes < MIN_BODY_RATE * self._bounds.body_check_s and not self.flow.read_paused:
            self.transport.close()
            return
        self._body_bytes = 0
        self._arm(self._bounds.body_check_s, self._body_is_late)


_HEAD_TOO_LARGE = f"Request line and headers may have {MAX_HEAD_BYTES} bytes at most."


async def _head_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Connection": "close"}
    await problem_response(431, "head_too_large", _HEAD_TOO_LARGE, headers=headers)(scope, receive, send)


@lru_cache(1024)
def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
