"""What was seen: pushed over WebSocket and Server-Sent Events, or asked for."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response, WebSocket
from starlette.exceptions import HTTPException

from server.delivery.context import InContext, context_of
from server.delivery.documented import documented, json_response
from server.delivery.live import LiveResponse
from server.delivery.ports import InvalidField, NoCapacity, StreamNotFound
from server.delivery.problems import NoResult
from server.delivery.subscriptions import InSelection, InStreams, events, serve_websocket
from server.results import Result

router = APIRouter(tags=["detections"])

MAX_RECENT = 100


@router.get(
    "/streams/{stream_id}/detections",
    response_model=Result | list[Result],
    responses=documented(StreamNotFound, NoResult, InvalidField),
)
async def recent_detections(
    stream_id: str,
    context: InContext,
    limit: Annotated[
        int | None, Query(ge=1, le=MAX_RECENT, description="A list of so many recent results, newest first.")
    ] = None,
) -> Response:
    """The last result; with `limit` a list of recent ones, newest first (also an empty one)."""
    results = context.stream(stream_id).recent(limit or 1)
    if limit is not None:
        return json_response(msgspec.json.encode(results))
    if not results:
        raise NoResult(f"Stream {stream_id!r} has no result yet.")
    return json_response(msgspec.json.encode(results[0]))


@router.get(
    "/detections/sse",
    response_class=Response,
    responses={
        200: {
            "description": "Messages as they come, one `data:` line of JSON each: result, gap, state.",
            "content": {"text/event-stream": {}},
        },
        **documented(InvalidField, NoCapacity),
    },
)
async def server_sent_events(context: InContext, streams: InStreams, selection: InSelection) -> Response:
    """The messages of `WS /detections` as Server-Sent Events. Endless."""
    context.check_room()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return LiveResponse(events(context, streams, selection), "text/event-stream", headers, context.stopping)


@router.websocket("/streams/{stream_id}/detections")
async def stream_websocket(websocket: WebSocket, stream_id: str, selection: InSelection) -> None:
    """One stream's messages, its state first. 404 as the answer to the handshake if there is no such stream."""
    context = await context_of(websocket)
    context.stream(stream_id)
    await serve_websocket(websocket, context, frozenset((stream_id,)), selection, bound=True)


@router.websocket("/detections")
async def all_websocket(websocket: WebSocket, streams: InStreams, selection: InSelection) -> None:
    """The messages of all streams, or of those in the query; the states first."""
    await serve_websocket(websocket, await context_of(websocket), streams, selection)


@router.websocket("/{path:path}")
async def no_websocket(websocket: WebSocket, path: str) -> None:
    """An honest 404 where the router would answer 403. Stands last."""
    raise HTTPException(404)
