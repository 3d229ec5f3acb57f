"""A client's subscription over WebSocket or SSE: what it asks for, and how messages get from queue to socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Query
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.delivery.auth import InPrincipal
from server.delivery.context import Context
from server.delivery.hub import EVERYTHING, Closing, Encoded, Hub, Selection, Subscriber
from server.delivery.push import EXTENSION, PushProtocol
from server.results import Message
from server.streams import Confidence

_CLOSE_S = 1.0
"""A client whose subscription ends has so long to take what is still queued, and the close frame."""
_IDLE_S = 15.0
"""A comment goes over an idle SSE connection so often: proxies cut silent ones."""
_CHUNK_BYTES = 64 << 10
_WINDOW_S = 10.0
_MAX_INCOMING = 200
"""Messages that a client may send within _WINDOW_S. All are ignored; more than that is abuse."""
_POLICY_VIOLATION = 1008


async def selection_of(
    class_: Annotated[
        list[str],
        Query(alias="class", default_factory=list, max_length=256, description="Only these classes; repeatable."),
    ],
    min_confidence: Annotated[Confidence, Query(description="Only detections at least so sure.")] = 0.0,
    zone: Annotated[str | None, Query(max_length=256, description="Only detections inside this zone.")] = None,
) -> Selection:
    """Every frame has its message all the same; detections that are not wanted are left out of it."""
    if not class_ and not min_confidence and zone is None:
        return EVERYTHING
    return Selection(frozenset(class_) if class_ else None, min_confidence, zone)


async def streams_of(
    principal: InPrincipal,
    stream: Annotated[
        list[str],
        Query(default_factory=list, max_length=4096, description="Only these streams; repeatable. Default: all."),
    ],
) -> frozenset[str] | None:
    """None: all, those to come too. Streams that the caller may not see are left out, like those that do not exist."""
    if not stream:
        return principal.streams
    return frozenset(stream) if principal.streams is None else principal.streams & frozenset(stream)


InSelection = Annotated[Selection, Depends(selection_of)]
InStreams = Annotated[frozenset[str] | None, Depends(streams_of)]


async def serve_websocket(
    websocket: WebSocket,
    context: Context,
    streams: frozenset[str] | None,
    selection: Selection = EVERYTHING,
    *,
    bound: bool = False,
    hub: Hub | None = None,
    accepts: Callable[[Message], bool] | None = None,
) -> None:
    """From the handshake to the end, whoever ends it. NoCapacity refuses the handshake. `hub`: of results, unless."""
    context.check_room()
    hub = context.runtime.hub if hub is None else hub  # an empty one is false
    # Before the handshake ends: a stream that is removed meanwhile ends its subscription all the same.
    subscriber = hub.subscribe(streams=streams, selection=selection, bound=bound)
    subscriber.accepts = accepts
    try:
        with context.client("websocket"):
            await websocket.accept()
            await _run(websocket, context, subscriber)
    finally:
        hub.unsubscribe(subscriber)


async def _run(websocket: WebSocket, context: Context, subscriber: Subscriber) -> None:
    protocol = protocol_of(websocket)
    sender = _Through(context, subscriber, websocket) if protocol is None else _Past(context, subscriber, protocol)
    await carry(websocket, protocol, sender.run(), lambda: subscriber.closing)


def protocol_of(websocket: WebSocket) -> PushProtocol | None:
    """The way past ASGI, if there is one."""
    protocol: PushProtocol | None = websocket.scope.get("extensions", {}).get(EXTENSION)
    return protocol


async def carry(
    websocket: WebSocket,
    protocol: PushProtocol | None,
    sending: Coroutine[Any, Any, None],
    closing: Callable[[], Closing | None],
) -> None:
    """An accepted socket until its client goes or `sending` ends; in the latter case `closing` says with what close."""
    incoming = asyncio.create_task(ignore_incoming(websocket))
    outgoing = asyncio.create_task(sending)
    try:
        await asyncio.wait((incoming, outgoing), return_when=asyncio.FIRST_COMPLETED)
        reason = incoming.result() if incoming.done() else closing()
        if reason is not None:
            await close_websocket(websocket, protocol, reason)
    finally:
        if protocol is not None:
            protocol.on_writable = None
        incoming.cancel()
        outgoing.cancel()
        results = await asyncio.gather(incoming, outgoing, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def events(context: Context, streams: frozenset[str] | None, selection: Selection) -> AsyncGenerator[bytes, None]:
    """The same messages as Server-Sent Events, in chunks ready to be sent."""
    hub, metrics = context.runtime.hub, context.runtime.metrics
    with context.client("sse"):
        subscriber = hub.subscribe(streams=streams, selection=selection)
        woken = asyncio.Event()
        subscriber.wake = woken.set
        woken.set()
        try:
            yield b"retry: 2000\n\n"
            while not (subscriber.closing and not len(subscriber)):
                try:
                    async with asyncio.timeout(_IDLE_S):
                        await woken.wait()
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                woken.clear()
                while batch := _take(subscriber):
                    yield b"".join(b"data: %b\n\n" % encoded.json for encoded in batch)
                    now = hub.clock()
                    for encoded in batch:
                        metrics.observe_delivery(now - encoded.published_at)
        finally:
            hub.unsubscribe(subscriber)


def _take(subscriber: Subscriber) -> list[Encoded]:
    batch: list[Encoded] = []
    size = 0
    while size < _CHUNK_BYTES and (encoded := subscriber.pop()) is not None:
        batch.append(encoded)
        size += len(encoded.json)
    return batch


class _Past:
    """Past ASGI: messages are written in the hub's own call, as far as the transport takes them."""

    def __init__(self, context: Context, subscriber: Subscriber, protocol: PushProtocol) -> None:
        self._subscriber = subscriber
        self._protocol = protocol
        self._clock = context.runtime.hub.clock
        self._observe = context.runtime.metrics.observe_delivery
        self._ended = asyncio.Event()
        self._drained = asyncio.Event()
        subscriber.wake = self._flush
        protocol.on_writable = self._flush
        self._flush()

    async def run(self) -> None:
        """Until the hub ends the subscription and the client has taken the rest, or its time for that is over."""
        await self._ended.wait()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._drained.wait()
        except TimeoutError:
            pass  # the rest is lost with the connection

    def _flush(self) -> None:
        subscriber, protocol = self._subscriber, self._protocol
        while protocol.can_push:
            encoded = subscriber.pop()
            if encoded is None:
                break
            protocol.push(encoded.frame)
            self._observe(self._clock() - encoded.published_at)
        if subscriber.closing is not None:
            self._ended.set()
            if not len(subscriber):
                self._drained.set()


class _Through:
    """Through ASGI, for servers other than ours: a task for each client."""

    def __init__(self, context: Context, subscriber: Subscriber, websocket: WebSocket) -> None:
        self._context = context
        self._subscriber = subscriber
        self._websocket = websocket
        self._woken = asyncio.Event()
        self._limit = asyncio.timeout(None)

    async def run(self) -> None:
        """Until the hub ends the subscription and the client has taken the rest, or its time for that is over."""
        try:
            async with self._limit:
                self._subscriber.wake = self._wake
                self._wake()
                await self._send_all()
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            return  # the client has gone or is too slow, or `ignore_incoming` is closing

    def _wake(self) -> None:
        self._woken.set()
        if self._subscriber.closing is not None and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + _CLOSE_S)

    async def _send_all(self) -> None:
        hub, metrics, subscriber = self._context.runtime.hub, self._context.runtime.metrics, self._subscriber
        while not (subscriber.closing and not len(subscriber)):
            await self._woken.wait()
            self._woken.clear()
            while (encoded := subscriber.pop()) is not None:
                await self._websocket.send_text(encoded.json.decode())
                metrics.observe_delivery(hub.clock() - encoded.published_at)


async def ignore_incoming(websocket: WebSocket) -> Closing | None:
    """Clients have nothing to say. Until they go (None) or say too much."""
    began, count = time.monotonic(), 0
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        now = time.monotonic()
        if now - began > _WINDOW_S:
            began, count = now, 0
        count += 1
        if count > _MAX_INCOMING:
            return Closing(_POLICY_VIOLATION, "this is a one-way connection")


async def close_websocket(websocket: WebSocket, protocol: PushProtocol | None, closing: Closing) -> None:
    """The close frame waits for room in the transport; a client that does not read is cut off."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await websocket.close(closing.code, closing.reason)
    except TimeoutError:
        if protocol is not None:
            protocol.abort()
    except (WebSocketDisconnect, RuntimeError):
        pass  # gone in the meantime
