"""Messages of a WebSocket that is opened again whenever it is lost."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from server.client.errors import ApiError, ClientError, Unreachable, api_error
from server.ingest.backoff import Backoff
from server.results import Message

_REMOVED = 1000
"""Close code of a subscription whose stream was removed. A server that ends says 1001."""
_PING_S = 10.0
"""A connection that is dead without saying so is noticed within twice as long."""
_MAX_BYTES = 16 << 20

OnRetry = Callable[[float, Exception], None]
"""Called with the pause, in seconds, and why the connection was lost or refused."""


class Feed:
    """Connections to one server, until `close`."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        context: ssl.SSLContext | None,
        retry_s: tuple[float, float],
        on_retry: OnRetry,
    ) -> None:
        self._url = url
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._context = context
        self._retry_s = retry_s
        self._on_retry = on_retry
        self._sockets: set[ClientConnection] = set()
        self._closed = asyncio.Event()

    async def messages(self, path: str, on_return: Callable[[float], None]) -> AsyncGenerator[Message]:
        """All messages, over lost connections, until the stream is removed. `on_return` gets the seconds that an
        outage took, before the first message after it. ApiError: refused for good; Unreachable: not trusted."""
        backoff = Backoff(*self._retry_s, random.random)
        clock = asyncio.get_running_loop().time
        lost_at: float | None = None
        while not self._closed.is_set():
            try:
                async with self._connect(path) as socket:
                    self._sockets.add(socket)
                    connected_at = clock()
                    if lost_at is not None:
                        on_return(connected_at - lost_at)
                        lost_at = None
                    try:
                        async for data in socket:
                            yield _decoded(data)
                    finally:
                        self._sockets.discard(socket)
                        lost_at = clock()
                        backoff.delivered(lost_at - connected_at)
                    if socket.close_code == _REMOVED:
                        return
                    why: Exception = ClientError(
                        f"the server closed the connection: {socket.close_reason or 'no reason'}"
                    )
            except InvalidStatus as refused:
                answer = refused.response
                why = api_error(answer.status_code, answer.headers, bytes(answer.body or b""))
                if not why.passing:
                    raise why from None
            except ssl.SSLCertVerificationError as error:
                raise Unreachable(f"{self._url}: {error}") from error
            except (OSError, WebSocketException) as error:  # a TimeoutError is an OSError
                why = error
            await self._pause(backoff, why)

    async def close(self) -> None:
        """All iterators end."""
        self._closed.set()
        await asyncio.gather(*(socket.close() for socket in self._sockets))

    def _connect(self, path: str) -> connect:
        return connect(
            self._url + path,
            additional_headers=self._headers,
            ssl=self._context,
            compression=None,
            open_timeout=self._timeout_s,
            close_timeout=1.0,
            ping_interval=_PING_S,
            ping_timeout=_PING_S,
            max_size=_MAX_BYTES,
        )

    async def _pause(self, backoff: Backoff, why: Exception) -> None:
        if self._closed.is_set():
            return
        pause_s = backoff.next_s()
        if isinstance(why, ApiError) and why.retry_after_s is not None:
            pause_s = max(pause_s, why.retry_after_s)
        self._on_retry(pause_s, why)
        try:
            async with asyncio.timeout(pause_s):
                await self._closed.wait()
        except TimeoutError:
            pass


def _decoded(data: str | bytes) -> Message:
    try:
        message: Message = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ClientError(f"the server sent what is no message: {error}") from error
    return message
