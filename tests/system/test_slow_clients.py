"""200 WebSocket clients of which 20 do not read: the others lose nothing, memory is bounded, the slow ones get gaps."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

CLIENTS, SLOW = 200, 20
MESSAGES, RATE, DETECTIONS = 500, 60, 50
QUEUE_MESSAGES = 2 * 64
"""What FakeRuntime's hub keeps for a subscriber to its two streams."""
RSS_LIMIT = 24 << 20
"""All 20 slow clients together: a transport's buffer each (64 kB), and one queue's worth of shared messages. Not
20 x 500 messages, which were 50 MB."""
RESULT = re.compile(rb'\{"type":"result","stream":"(\w+)","seq":(\d+),')


class Client(asyncio.Protocol):
    """Reads WebSocket frames and counts; `slow` ones shake hands and stop reading."""

    def __init__(self, port: int, slow: bool) -> None:
        self.slow = slow
        self._port = port
        self._buffer = bytearray()
        self._shaken = False
        self.got: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.gaps = 0
        self.last_seq: dict[str, int] = {}
        self.ready = asyncio.Event()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /detections HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._shaken:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            assert buffer.startswith(b"HTTP/1.1 101 ")
            del buffer[: end + 4]
            self._shaken = True
        for payload in frames(buffer):
            self._message(payload)
        if self.got.total() >= 2 and not self.ready.is_set():  # the states of both streams
            self.ready.set()
            if self.slow:
                self.transport.pause_reading()

    def _message(self, payload: bytes) -> None:
        # Parsing 10,000 whole results a second would make slow clients of all.
        if result := RESULT.match(payload):
            stream, seq = result[1].decode(), int(result[2])
            assert payload.endswith(b"]}")
            assert seq > self.last_seq.get(stream, 0)
            self.last_seq[stream] = seq
            self.got[stream] += 1
            return
        message = json.loads(payload)
        if message["type"] == "gap":
            assert message["reason"] == "slow_client"
            self.missed[message["stream"]] += message["missed"]
            self.gaps += 1
        else:
            assert message["type"] == "state"
            self.got[message["stream"]] += 1


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Payloads of the whole text frames; takes them out of the buffer."""
    at = 0
    while len(buffer) - at >= 2:
        assert buffer[at] in (0x81, 0x89), hex(buffer[at])  # text, or a ping
        text, size, head = buffer[at] == 0x81, buffer[at + 1], 2
        if size == 126 and len(buffer) - at >= 4:
            (size,), head = struct.unpack_from("!H", buffer, at + 2), 4
        if len(buffer) - at < head + size:
            break
        if text:
            yield bytes(buffer[at + head : at + head + size])
        at += head + size
    del buffer[:at]


class Server:
    """The process; commands are answered by one line of JSON each."""

    def __init__(self) -> None:
        script = Path(__file__).parents[1] / "server" / "fake_server.py"
        self._process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.answer()["address"].rpartition(":")[2])

    def answer(self) -> dict:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, command: str) -> dict:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


async def settle(clients: list[Client], expected: int) -> None:
    """Until every client has got or been told of all messages."""
    async with asyncio.timeout(30):
        while any(c.got.total() + c.missed.total() < expected for c in clients):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_200_clients_of_which_20_do_not_read(server: Server) -> None:
    loop = asyncio.get_running_loop()
    clients = []
    for number in range(CLIENTS):
        slow = number % (CLIENTS // SLOW) == 0
        client = Client(server.port, slow)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", server.port)  # type: ignore[misc]
        clients.append(client)
    async with asyncio.timeout(30):
        await asyncio.gather(*(c.ready.wait() for c in clients))
    fast, slow_ones = [c for c in clients if not c.slow], [c for c in clients if c.slow]
    assert len(slow_ones) == SLOW
    warm = await asyncio.to_thread(server.ask, f"publish 20 {RATE} {DETECTIONS}")
    before = await asyncio.to_thread(server.ask, "rss")
    assert before["clients"] == CLIENTS
    cost = await asyncio.to_thread(server.ask, f"publish {MESSAGES} {RATE} {DETECTIONS}")
    published = 2 + warm["published"] + cost["published"]
    await settle(fast, published)
    after = await asyncio.to_thread(server.ask, "rss")

    for client in fast:
        assert client.got.total() == published
        assert client.gaps == 0
    assert after["clients"] == CLIENTS  # nobody was thrown out
    grown = after["rss"] - before["rss"]
    assert grown < RSS_LIMIT

    for client in slow_ones:
        client.transport.resume_reading()
    await settle(slow_ones, published)
    for client in slow_ones:
        assert client.gaps >= 2  # of both streams
        assert client.got.total() + client.missed.total() == published
        assert client.got.total() >= QUEUE_MESSAGES
        assert client.got["door"] + client.missed["door"] == client.got["yard"] + client.missed["yard"]
        assert client.last_seq == fast[0].last_seq  # and they have the newest
        assert not client.lost

    sends = cost["published"] * len(fast)
    us = cost["cpu_s"] / sends * 1e6
    print(f"{us:.1f} us of CPU a send, {sends / cost['wall_s']:.0f} sends/s, {grown / 1e6:.1f} MB more")
    for client in clients:
        client.transport.abort()
