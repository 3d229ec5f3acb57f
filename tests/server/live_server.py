"""A real server on loopback around a fake runtime, and raw clients that misbehave."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fake_runtime import FakeRuntime

from server.delivery.app import create_app
from server.delivery.serve import serve
from server.settings import ServerSettings


@dataclass
class Live:
    runtime: FakeRuntime
    http: str
    """http://127.0.0.1:PORT, with TLS https://..."""
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def ws(self) -> str:
        return self.http.replace("http", "ws", 1)

    @property
    def port(self) -> int:
        return int(self.http.rpartition(":")[2])


@asynccontextmanager
async def live_server(runtime: FakeRuntime, **settings: object) -> AsyncIterator[Live]:
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    chosen = ServerSettings(**{"port": 0, **settings})  # type: ignore[arg-type]
    task = asyncio.create_task(serve(create_app(runtime, chosen), chosen, address.set_result, stop=stop))
    await asyncio.wait((task, address), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield Live(runtime, address.result() if address.done() else "", stop, task)
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await task


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what must come, without guessing how long it takes."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def raw_websocket(port: int, path: str = "/detections") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has shaken hands and does nothing more: it answers no pings. Reads no more than `limit` ahead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    return reader, writer
