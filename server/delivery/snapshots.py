"""Pictures of streams: one, or a live view."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Response, WebSocket

from server.delivery.context import Context, InContext, context_of
from server.delivery.documented import documented
from server.delivery.feeds import View
from server.delivery.live import LiveResponse
from server.delivery.live_socket import serve_live, standard_width
from server.delivery.pictures import Picture
from server.delivery.ports import InvalidField, NoCapacity, NoPicture, StreamNotFound, Unavailable

router = APIRouter(tags=["pictures"])

Width = Annotated[int | None, Query(ge=16, le=8192, description="Scale down to at most so many pixels.")]
Quality = Annotated[int, Query(ge=1, le=100, description="Quality of the JPEG.")]

_BOUNDARY = "frame"
_LIVE_QUALITY = 75
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/streams/{stream_id}/snapshot.jpg",
    response_class=Response,
    responses={
        200: {"description": "The picture.", "content": {"image/jpeg": _BINARY}},
        **documented(StreamNotFound, NoPicture, InvalidField, Unavailable),
    },
)
async def snapshot(
    stream_id: str,
    context: InContext,
    annotate: Annotated[bool, Query(description="The newest frame that has a result, with its boxes.")] = False,
    width: Width = None,
    quality: Quality = 85,
) -> Response:
    """The newest frame as JPEG."""
    context.stream(stream_id)
    jpeg = await context.pictures.get(Picture(stream_id, annotate, width, quality))
    return Response(jpeg, 200, {"Cache-Control": "no-store"}, "image/jpeg")


@router.get(
    "/streams/{stream_id}/live.mjpg",
    response_class=Response,
    responses={
        200: {
            "description": "JPEGs one after the other, each in the place of the one before.",
            "content": {"multipart/x-mixed-replace": _BINARY},
        },
        **documented(StreamNotFound, InvalidField, NoCapacity),
    },
)
async def live(
    stream_id: str,
    context: InContext,
    annotate: Annotated[bool, Query(description="Draw the boxes.")] = True,
    fps: Annotated[float, Query(ge=0.1, le=30, allow_inf_nan=False, description="Pictures a second at most.")] = 10.0,
    width: Width = None,
    quality: Quality = 75,
) -> Response:
    """Detected frames with their boxes, for a browser's `<img>`. Endless."""
    context.stream(stream_id)
    context.check_room()
    pictures = _pictures(context, View(stream_id, annotate, width, quality), 1 / fps)
    media_type = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
    return LiveResponse(pictures, media_type, {"Cache-Control": "no-store"}, context.stopping)


async def _pictures(context: Context, view: View, interval_s: float) -> AsyncGenerator[bytes, None]:
    """Parts of the multipart body, each with the boundary that ends it: a browser shows a picture once it sees that.

    A slow client holds this up at `yield` and then gets the newest picture: nothing queues.
    """
    clock = asyncio.get_running_loop().time
    with context.client("mjpeg"), context.feeds.watch(view) as viewer:
        yield f"--{_BOUNDARY}\r\n".encode()
        while (picture := await viewer.next()) is not None:
            due = clock() + interval_s
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n\r\n"
            yield b"%b%b\r\n--%b\r\n" % (head.encode(), picture.jpeg, _BOUNDARY.encode())
            await asyncio.sleep(due - clock())


@router.websocket("/streams/{stream_id}/live")
async def live_websocket(websocket: WebSocket, stream_id: str, width: Width = None) -> None:
    """Detected frames without boxes, one binary message each (`LivePicture.message`): for whoever draws the boxes of
    `WS /streams/{id}/detections` on the frame of the same `seq`. 404 as the answer to the handshake if there is no such
    stream."""
    context = await context_of(websocket)
    context.stream(stream_id)
    await serve_live(websocket, context, View(stream_id, False, standard_width(width), _LIVE_QUALITY))
