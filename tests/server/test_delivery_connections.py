"""Connections of clients that are slow, greedy or many. Each raw client does one thing wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_runtime import FakeRuntime, detection
from live_server import Live, live_server, raw_websocket

from server.delivery import connections, serve
from server.delivery.connections import MAX_HEAD_BYTES, Bounds

QUICK_S = 0.3
"""Instead of the seconds that a client has."""


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """As the real one, with little time for its clients."""
    monkeypatch.setattr(serve, "Bounds", lambda total, each: Bounds(total, each, QUICK_S, QUICK_S))
    async with live_server(FakeRuntime()) as live:
        live.runtime.add("door")
        yield live


@asynccontextmanager
async def client(server: Live) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """A little, again and again, each time before anybody loses patience."""
    while True:
        writer.write(piece)
        await asyncio.sleep(QUICK_S / 4)


HOST = b"Host: localhost\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST
POST = b"POST /streams HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n" + HOST
CHUNKED = POST.replace(b"Content-Length: 60000", b"Transfer-Encoding: chunked")
LATE = [
    pytest.param(b"", b"", id="says nothing"),
    pytest.param(b"GET /hea", b"l", id="a request line without end"),
    pytest.param(GET, b"X: y\r\n", id="headers without end"),
    pytest.param(GET + b"\r\n", b"\r\n", id="empty lines after a request"),
    pytest.param(POST + b"\r\n", b" ", id="a body without end"),
    pytest.param(b"POST /none HTTP/1.1\r\nContent-Length: 60000\r\n" + HOST + b"\r\n", b" ", id="a body nobody reads"),
    pytest.param(
        b"POST /streams HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\n", b"1\r\n \r\n", id="chunks"
    ),
]


@pytest.mark.parametrize(("begin", "piece"), LATE)
async def test_who_is_slow_is_not_waited_for(server: Live, begin: bytes, piece: bytes) -> None:
    async with client(server) as (reader, writer):
        writer.write(begin)
        dripping = asyncio.create_task(drip(writer, piece))
        try:
            async with asyncio.timeout(10):
                await reader.read()  # to the end of the connection
        except ConnectionResetError:
            pass
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


async def test_who_waits_for_an_answer_may_be_silent(server: Live) -> None:
    """SSE, a keep-alive connection, a WebSocket: nothing is due from the client."""
    async with client(server) as (reader, writer), client(server) as (kept_reader, kept):
        writer.write(b"GET /detections/sse HTTP/1.1\r\n" + HOST + b"\r\n")
        await reader.readuntil(b"retry: 2000\n\n")
        kept.write(GET + b"\r\n")
        assert (await answer(kept_reader))[0] == 200
        _, socket = await raw_websocket(server.port)
        await asyncio.sleep(3 * QUICK_S)
        kept.write(GET + b"\r\n")
        assert (await answer(kept_reader))[0] == 200
        server.runtime.see("door", detection())
        await reader.readuntil(b'"type":"result"')
        assert not socket.is_closing()
        socket.close()


async def test_a_fast_body_may_take_its_time(server: Live) -> None:
    """Longer than between two checks, but at a good rate."""
    image = b"\xff\xd8\xff" + bytes(100_000)
    async with client(server) as (reader, writer):
        writer.write(b"POST /detect HTTP/1.1\r\nContent-Length: %d\r\n" % len(image) + HOST + b"\r\n")
        for start in range(0, len(image), 10_000):
            writer.write(image[start : start + 10_000])
            await asyncio.sleep(QUICK_S / 3)
        status, _ = await answer(reader)
    assert status == 200
    assert server.runtime.detected[0][0] == image


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\n"], ids=["whole", "without end"])
@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, 200_000])
async def test_long_heads_are_refused(server: Live, size: int, end: bytes) -> None:
    async with client(server) as (reader, writer):
        writer.write(GET + b"".join(b"X%d: %b\r\n" % (n, b"y" * 1000) for n in range(size // 1000 + 1)) + end)
        try:
            status, problem = await answer(reader)
            assert (status, problem["code"]) == (431, "head_too_large")
            assert await reader.read() == b""
        except ConnectionResetError:  # more came after the end: the kernel drops the answer as well
            assert size > MAX_HEAD_BYTES


async def test_a_full_server_says_so_and_takes_others_later() -> None:
    async with live_server(FakeRuntime(), max_connections=2) as server:
        _, socket = await raw_websocket(server.port)
        async with client(server) as (reader, writer):
            writer.write(GET + b"\r\n")
            assert (await answer(reader))[0] == 200
            async with client(server) as (refused, _):
                status, problem = await answer(refused)
                assert (status, problem["code"]) == (503, "no_capacity")
                assert await refused.read() == b""
        socket.close()
        async with asyncio.timeout(10):
            while True:
                async with client(server) as (reader, writer):
                    writer.write(GET + b"\r\n")
                    if (await answer(reader))[0] == 200:
                        return


@pytest.mark.parametrize(("loopback", "status"), [(True, 200), (False, 503)])
async def test_one_address_does_not_take_all_places(
    monkeypatch: pytest.MonkeyPatch, loopback: bool, status: int
) -> None:
    """Loopback may: it is the proxy on this machine."""
    monkeypatch.setattr(connections, "_is_loopback", lambda address: loopback)
    async with live_server(FakeRuntime(), max_connections_per_address=1) as server:
        _, socket = await raw_websocket(server.port)
        async with client(server) as (reader, writer):
            writer.write(GET + b"\r\n")
            assert (await answer(reader))[0] == status
        socket.close()
