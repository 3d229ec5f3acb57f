"""A viewer's WebSocket: detected frames as they come, the newest one for whoever is slow.

The kernel is told to take no more than a little that it cannot send yet (TCP_NOTSENT_LOWAT), and the transport to say
when even that is gone. So a viewer on a slow line waits in `Feeds`, not behind old pictures in buffers.
"""

from __future__ import annotations

import asyncio
import socket

from starlette.websockets import WebSocket, WebSocketDisconnect

from server.delivery.context import Context
from server.delivery.feeds import LivePicture, View, Viewer
from server.delivery.push import PushProtocol
from server.delivery.subscriptions import carry, protocol_of

_WIDTHS = (320, 480, 640, 960, 1280, 1920, 2560, 3840)
"""Pixels. Viewers with tiles of any size share these few encodings."""
_UNSENT_BYTES = 16 << 10


def standard_width(width: int | None) -> int | None:
    """The smallest standard width that is not below; None (the camera's own) for more, and for None."""
    return next((w for w in _WIDTHS if width is not None and w >= width), None)


async def serve_live(websocket: WebSocket, context: Context, view: View) -> None:
    """From the handshake to the end, whoever ends it. NoCapacity and StreamNotFound refuse the handshake."""
    context.check_room()
    with context.feeds.watch(view) as viewer, context.client("live"):
        await websocket.accept()
        protocol = protocol_of(websocket)
        sending = _through(websocket, viewer) if protocol is None else _past(protocol, viewer)
        await carry(websocket, protocol, sending, lambda: viewer.closing)


async def _past(protocol: PushProtocol, viewer: Viewer) -> None:
    """Past ASGI, until the feed ends: a picture is written in the feed's own call."""
    transport = protocol.transport
    transport.set_write_buffer_limits(high=0)
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    ended = asyncio.Event()

    def take(picture: LivePicture) -> None:
        if protocol.can_push:
            protocol.push(picture.frame)
        want()

    def want() -> None:
        if protocol.can_push:  # otherwise the transport calls once it is empty
            viewer.want()

    viewer.take, viewer.end, protocol.on_writable = take, ended.set, want
    want()
    if viewer.closing is None:
        await ended.wait()


async def _through(websocket: WebSocket, viewer: Viewer) -> None:
    """Through ASGI, for servers other than ours."""
    try:
        while (picture := await viewer.next()) is not None:
            await websocket.send_bytes(picture.message)
    except (WebSocketDisconnect, RuntimeError):
        return  # the client has gone
