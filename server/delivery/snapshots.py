"""Pictures of streams: one, or a live view."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Response

from server.delivery.context import Context, InContext
from server.delivery.documented import documented
from server.delivery.live import LiveResponse
from server.delivery.pictures import Picture
from server.delivery.ports import InvalidField, NoCapacity, NoPicture, StreamNotFound, Unavailable

router = APIRouter(tags=["pictures"])

Width = Annotated[int | None, Query(ge=16, le=8192, description="Scale down to at most so many pixels.")]
Quality = Annotated[int, Query(ge=1, le=100, description="Quality of the JPEG.")]

_BOUNDARY = "frame"
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
    fps: Annotated[float, Query(ge=0.1, le=30, allow_inf_nan=False, description="Pictures a second at most.")] = 10.0,
    width: Width = None,
    quality: Quality = 75,
) -> Response:
    """Detected frames with their boxes, for a browser's `<img>`. Endless."""
    context.stream(stream_id)
    context.check_room()
    pictures = _pictures(context, Picture(stream_id, True, width, quality), 1 / fps)
    media_type = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
    return LiveResponse(pictures, media_type, {"Cache-Control": "no-store"}, context.stopping)


async def _pictures(context: Context, picture: Picture, interval_s: float) -> AsyncGenerator[bytes, None]:
    """Parts of the multipart body, each with the boundary that ends it: a browser shows a picture once it sees that.

    A slow client holds this up at `yield` and then gets the newest picture: nothing queues.
    """
    loop = asyncio.get_running_loop()
    shown: int | None = None
    with context.client("mjpeg"):
        yield f"--{_BOUNDARY}\r\n".encode()
        while not context.stopping.is_set():
            due = loop.time() + interval_s
            handle = context.runtime.streams.get(picture.stream)
            if handle is None:
                return
            newest = handle.recent(1)
            if newest and newest[0]["seq"] != shown:
                try:
                    jpeg = await context.pictures.get(picture)
                except (NoPicture, Unavailable, StreamNotFound):
                    pass  # the next one may do: the stream may be connecting again
                else:
                    shown = newest[0]["seq"]
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    yield b"%b%b\r\n--%b\r\n" % (head.encode(), jpeg, _BOUNDARY.encode())
            try:
                async with asyncio.timeout_at(due):
                    await context.stopping.wait()
            except TimeoutError:
                continue
