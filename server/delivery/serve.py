"""Uvicorn, set up for endless connections: push protocol, pings, bounded buffers, a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import uvicorn
from fastapi import FastAPI

from server.delivery.connections import BoundedHttp, Bounds
from server.delivery.push import PushProtocol
from server.delivery.tls import Certificate, TlsError
from server.settings import ServerSettings

_MAX_INCOMING_BYTES = 64 << 10
"""Of a WebSocket message from a client; a larger one closes its connection (1009)."""
_PING_S = 20.0
"""Pause between pings, and the time that a client has to answer one."""
_DEAD_S = 40
"""A peer that has acknowledged nothing for so long is dropped by the kernel: half-open SSE and MJPEG clients."""
_SEND_BUFFER = 128 << 10
"""Bytes (the kernel doubles it). Autotuning would let megabytes of old messages pile up before a slow client shows."""
_FAREWELL_S = 0.5
_SHUTDOWN_S = 2


class ServeError(Exception):
    """The server cannot listen, or not with this certificate. One sentence that names the address or the file."""


async def serve(
    app: FastAPI,
    settings: ServerSettings,
    ready: Callable[[str], None],
    *,
    stop: asyncio.Event | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set; then end all connections within some 2 s.

    `drain` is waited for before that: what it still publishes reaches the clients.

    `ready` gets the real address (http://127.0.0.1:43211) once connections are taken. Raises ServeError if the address
    cannot be had. Takes over both signals only if it runs in the main thread.
    """
    try:
        certificate = Certificate.of(settings)
    except TlsError as error:
        raise ServeError(f"TLS: {error}") from None
    bounds = Bounds(settings.max_connections, settings.max_connections_per_address)
    sockets = _listen(settings.host, settings.port)
    server = _Server(
        uvicorn.Config(
            app,
            http=partial(BoundedHttp, bounds),  # type: ignore[arg-type]
            ws=PushProtocol,
            ws_max_size=_MAX_INCOMING_BYTES,
            ws_ping_interval=_PING_S,
            ws_ping_timeout=_PING_S,
            ws_per_message_deflate=False,  # frames are shared by all clients
            lifespan="off",
            log_config=None,
            # Its info lines of WebSockets hold whole request lines, its warnings come once for each broken request.
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=30,
            ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
    asked = stop or asyncio.Event()
    with _signals(asked.set):
        watching = [asyncio.create_task(app.state.context.access.watch())]
        if certificate is not None:
            watching.append(asyncio.create_task(certificate.watch()))
        serving = asyncio.create_task(server.serve(sockets))
        for event in (server.up, asked):  # if it ends by itself, this ends with its error
            serving.add_done_callback(lambda _, event=event: event.set())  # type: ignore[misc]
        try:
            await server.up.wait()
            if server.started:
                ready(_address("http" if certificate is None else "https", settings.host, sockets[0]))
                await asked.wait()
                if drain is not None and not serving.done():
                    await drain()
        finally:
            for task in watching:
                task.cancel()
            app.state.context.stop()
            # Uvicorn would close WebSockets itself, with 1012 and no reason, before they have been told.
            await app.state.context.alone(_FAREWELL_S)
            server.should_exit = True
            await asyncio.shield(serving)


class _Server(uvicorn.Server):
    """Says when it is up. Signals are ours: uvicorn would raise them anew at its end, before the runtime drains."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _signals(callback: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    taken = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, callback)
        except (ValueError, RuntimeError, NotImplementedError):  # not in the main thread: whoever runs us stops us
            break
        taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> list[socket.socket]:
    """One socket for each address of `host`, all on one port. ServeError if none can be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ServeError(f"cannot listen on {host!r}: {error.strerror}") from None
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            listener = socket.create_server((address[0], port), family=family, backlog=1024)
        except OSError as error:  # "localhost" is ::1 too, but not everywhere
            failure = error
            continue
        port = listener.getsockname()[1]
        # Connections inherit these from the listener (Linux).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_S * 1000)
        listener.setblocking(False)
        sockets.append(listener)
    if failure is not None and (not sockets or failure.errno == errno.EADDRINUSE):
        for listener in sockets:
            listener.close()
        raise ServeError(_why(host, port, failure)) from None
    return sockets


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program; choose another one (--port, 0 takes any)"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} may not be used by this user; ports from 1024 on may"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def _address(scheme: str, host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{listener.getsockname()[1]}"
