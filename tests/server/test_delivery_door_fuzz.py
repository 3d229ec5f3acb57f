"""Whatever a client writes into path, query and headers: an answer that is meant, and no way in without the token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_runtime import FakeRuntime
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message

from server.delivery.app import create_app
from server.delivery.permissions import PROBES, TABLE, WEBSOCKET, find
from server.settings import ServerSettings

TOKEN = "a-token-of-some-length"
VALUE = st.binary(max_size=40).filter(lambda value: not set(value) & set(b"\r\n\0"))
NAMES = st.sampled_from(
    [b"authorization", b"cookie", b"host", b"origin", b"content-length", b"content-type", b"x-forwarded-for"]
)
# fmt: off
LIKELY = st.sampled_from([
    b"Bearer ", b"bearer x", b"Bearer \xff\xfe", b"yolov9_session=", b"[::1", b"http://", b"null",
    b"yolov9_session=a; yolov9_session=b", b"localhost:99999999", b"\xc3\x28", b"-1", b"99999999999999999999",
    b"application/json",
])
# fmt: on
HEADERS = st.lists(st.tuples(NAMES, VALUE | LIKELY), max_size=6)
PATHS = st.sampled_from(sorted({path for _, path in TABLE})) | st.text(max_size=30).map("/".__add__)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT", "TRACE", WEBSOCKET, "get", "X"])
QUERIES = (
    st.sampled_from([b"", b"token", b"token=", b"token=%ff", b"&&token=x&token=y", b"stream=%00&token=\xff"]) | VALUE
)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    runtime = FakeRuntime()
    runtime.add("door")
    return create_app(runtime, ServerSettings(token=TOKEN))


async def call(app: FastAPI, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """-> status; 101 for a WebSocket that is taken."""
    scope: dict[str, Any] = {
        "type": "websocket" if method == WEBSOCKET else "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
        "method": method, "scheme": "http", "path": path, "raw_path": path.encode("utf-8", "replace"), "root_path": "",
        "query_string": query, "headers": headers, "client": ("192.0.2.1", 1), "server": ("127.0.0.1", 8080),
        "subprotocols": [], "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    sent: list[Message] = []
    incoming = iter([{"type": "websocket.connect"} if method == WEBSOCKET else {"type": "http.request", "body": b"{}"}])

    async def receive() -> Message:
        return next(incoming, {"type": f"{scope['type']}.disconnect", "code": 1000})

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await app(scope, receive, send)  # type: ignore[arg-type]
    status: int = sent[0].get("status", 101)
    return status


@given(METHODS, PATHS, QUERIES, HEADERS)
@example("GET", "/streams", b"", [(b"authorization", b"Bearer " + TOKEN.encode() + b"\xff")])
@example("POST", "/session", b"", [(b"content-type", b"application/json"), (b"origin", b"\xff")])
def test_nobody_gets_in_and_nothing_breaks(
    app: FastAPI, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    status = asyncio.run(call(app, method, path, query, headers))
    assert status < 500
    if path not in PROBES and find(method, path).rule.role is not None:
        assert status in (401, 403, 429), "got in without a token"
