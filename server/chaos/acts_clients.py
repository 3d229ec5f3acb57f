"""Clients that behave badly: many, in processes of their own, so that they cost the witnesses' client nothing.

python -m server.chaos.acts_clients storm 127.0.0.1 8080 6
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

from server.bench.procfs import snapshot
from server.chaos.bed import Bed

_READERS = 20
_HALF_OPEN = 200
_STORM_PER_S = 1000
_LARGE = 1 << 20
_PAUSE_S = 0.02
"""Clients that talk nonsense do so 50 times a second: without a pause they would measure who gets the CPU."""
_GROWTH_BYTES = 128 << 20
"""20 clients of 2 MB each, and what the kernel and the allocator need besides."""
KeepGoing = Callable[[float], None]


def clients_never_read(bed: Bed) -> Iterator[KeepGoing]:
    return _clients(bed, "never_read")


def clients_garbage(bed: Bed) -> Iterator[KeepGoing]:
    return _clients(bed, "garbage")


def clients_large(bed: Bed) -> Iterator[KeepGoing]:
    return _clients(bed, "large")


def clients_half_open(bed: Bed) -> Iterator[KeepGoing]:
    return _clients(bed, "half_open")


def clients_storm(bed: Bed) -> Iterator[KeepGoing]:
    return _clients(bed, "storm")


def _clients(bed: Bed, kind: str) -> Iterator[KeepGoing]:
    """While they are there: the server answers others, and its memory does not grow with them."""
    address = urlsplit(bed.server.url)
    pid = bed.server.pid
    assert pid is not None
    before = snapshot()[pid].rss_bytes

    def keep_going(seconds: float) -> None:
        command = [sys.executable, "-m", "server.chaos.acts_clients", kind, str(address.hostname), str(address.port)]
        with subprocess.Popen([*command, f"{seconds:g}"], stdout=subprocess.PIPE, text=True) as process:
            slowest = 0.0
            while process.poll() is None:
                began = time.monotonic()
                bed.server.ask("GET", "/healthz")
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.1)
            assert process.stdout is not None
            bed.notes["done"] = process.stdout.read().strip()
        if process.returncode:
            bed.complaints.append(f"the clients ended with status {process.returncode}")
        growth = snapshot()[pid].rss_bytes - before
        bed.notes |= {"slowest_healthz_s": round(slowest, 3), "server_grew_by_mb": round(growth / 2**20, 1)}
        if growth > _GROWTH_BYTES:
            bed.complaints.append(f"the server grew by {growth >> 20} MB")

    bed.shown_at = time.monotonic()  # nothing shows: that is the point
    yield keep_going


# In the process of the clients.


async def _never_read(host: str, port: int, until: float) -> int:
    """WebSocket clients of everything, which ask and then read no more."""
    writers = []
    for _ in range(_READERS):
        _, writer = await asyncio.open_connection(host, port, limit=1024)
        writer.write(upgrade(host, port))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writers.append(writer)
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    for writer in writers:
        writer.transport.abort()
    return len(writers)


async def _garbage(host: str, port: int, until: float) -> int:
    """Bytes that are no HTTP, and after the handshake frames that are no WebSocket."""
    rng = random.Random(0)
    count = 0
    while time.monotonic() < until:
        await _say(host, port, rng.randbytes(rng.choice((1, 100, 4096))))
        await _say(host, port, upgrade(host, port) + rng.randbytes(256))
        await _say(host, port, b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n")
        await _say(host, port, b"POST /streams HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        count += 4
    return count


async def _large(host: str, port: int, until: float) -> int:
    """A WebSocket message of 1 MB, a body of 1 MB for a stream, a header line of 1 MB."""
    mask = bytes(4)
    frame = b"\x82\xff" + _LARGE.to_bytes(8, "big") + mask + bytes(_LARGE)
    post = f"POST /streams HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    body = b'{"id": "' + b"x" * _LARGE + b'"}'
    count = 0
    while time.monotonic() < until:
        await _say(host, port, upgrade(host, port) + frame)
        await _say(host, port, f"{post}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await _say(host, port, b"GET / HTTP/1.1\r\nX: " + b"x" * _LARGE + b"\r\n\r\n")
        count += 3
    return count


async def _half_open(host: str, port: int, until: float) -> int:
    """Half a request each, and then nothing."""
    writers = []
    for number in range(_HALF_OPEN):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(
            upgrade(host, port)[:40] if number % 2 else b"POST /detect HTTP/1.1\r\nContent-Length: 100\r\n\r\n"
        )
        writers.append(writer)
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    for writer in writers:
        writer.transport.abort()
    return len(writers)


async def _storm(host: str, port: int, until: float) -> int:
    """Connections that are closed at once, so many a second."""
    count = 0
    began = time.monotonic()
    pending: set[asyncio.Task[None]] = set()
    while (now := time.monotonic()) < until:
        while count < (now - began) * _STORM_PER_S and len(pending) < _STORM_PER_S:
            task = asyncio.create_task(_say(host, port, b""))
            pending.add(task)
            task.add_done_callback(pending.discard)
            count += 1
        await asyncio.sleep(0.005)
    if pending:
        await asyncio.wait(pending, timeout=5)
    return count


async def _say(host: str, port: int, data: bytes) -> None:
    """Connect, send, hear what comes within a moment, go away."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                if data:
                    await asyncio.sleep(_PAUSE_S)
                    writer.write(data)
                    await writer.drain()
                    await asyncio.wait_for(reader.read(4096), 0.2)
            finally:
                writer.transport.abort()


def upgrade(host: str, port: int) -> bytes:
    """A request for the WebSocket of all detections."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET /detections HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


KINDS: dict[str, Callable[[str, int, float], Awaitable[int]]] = {
    "never_read": _never_read, "garbage": _garbage, "large": _large, "half_open": _half_open, "storm": _storm,
}  # fmt: skip


async def _main(kind: str, host: str, port: str, seconds: str) -> None:
    print(await KINDS[kind](host, int(port), time.monotonic() + float(seconds)))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:5]))
