"""ASGI without a server: HTTP through httpx, and the beginning of a WebSocket connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
from starlette.types import ASGIApp, Message


def http_client(
    app: ASGIApp, base_url: str, *, client: tuple[str, int] = ("127.0.0.1", 1), **options: Any
) -> httpx.AsyncClient:
    """Answers 500 as a server does, instead of raising into the test. `client`: the address that it comes from."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=client)
    return httpx.AsyncClient(transport=transport, base_url=base_url, **options)


_PATIENCE_S = 0.5
"""A first message comes at once, or not at all."""


class Handshake(NamedTuple):
    status: int
    """101, or that of the answer that refused it."""
    body: bytes
    """Of the refusal, or the first message; empty if there is none."""


async def websocket(app: ASGIApp, target: str, headers: Mapping[str, str]) -> Handshake:
    """Open a WebSocket, wait for the first message or the refusal, go away. Some say nothing at first."""
    path, _, query = target.partition("?")
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    enough = asyncio.Event()
    sent: list[Message] = []
    incoming = iter([{"type": "websocket.connect"}])

    async def receive() -> Message:
        for message in incoming:
            return message
        await enough.wait()
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "websocket.accept":
            asyncio.get_running_loop().call_later(_PATIENCE_S, enough.set)
        if message["type"] in ("websocket.send", "websocket.close", "websocket.http.response.body"):
            enough.set()

    async with asyncio.timeout(10):
        await app(scope, receive, send)
    if sent[0]["type"] == "websocket.accept":
        if len(sent) == 1:
            return Handshake(101, b"")
        return Handshake(101, sent[1]["text"].encode() if "text" in sent[1] else sent[1]["bytes"])
    assert sent[0]["type"] == "websocket.http.response.start", sent
    return Handshake(sent[0]["status"], sent[1]["body"])
