"""`POST /detect`: one image in, its detections out, through the same batching as the cameras' frames."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response
from typing_extensions import TypedDict

from server.delivery.context import InContext
from server.delivery.documented import documented, json_response
from server.delivery.ports import InvalidField, Unavailable
from server.delivery.problems import RequestTimeout, UnsupportedMediaType
from server.results import Detection, ResultLatency
from server.streams import Confidence

router = APIRouter(tags=["detections"])

_PLACE_S = 5.0
"""A request waits so long for its turn to send its body; then 503."""
_BODY_S = 30.0
"""An image must have come within it."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_MAGIC_BYTES = 8
_BINARY = {"schema": {"type": "string", "format": "binary"}}


class DetectAnswer(TypedDict):
    """Boxes are in pixels of the image."""

    model: str
    model_generation: int
    width: int
    height: int
    latency_ms: ResultLatency
    detections: list[Detection]


@router.post(
    "/detect",
    response_model=DetectAnswer,
    responses=documented(InvalidField, Unavailable, UnsupportedMediaType, RequestTimeout, body=True),
    openapi_extra={
        "requestBody": {"required": True, "content": {"image/jpeg": _BINARY, "image/png": _BINARY}},
    },
)
async def detect(
    request: Request,
    context: InContext,
    classes: Annotated[
        list[str],
        Query(default_factory=list, max_length=256, description="Only these classes; repeatable, or joined by commas."),
    ],
    confidence: Annotated[Confidence | None, Query(description="Lowest confidence to report (default .25).")] = None,
    iou: Annotated[Confidence | None, Query(description="IoU above which NMS removes a box (default .7).")] = None,
) -> Response:
    """Detect objects in a JPEG or PNG, sent as the body itself: `curl --data-binary @photo.jpg URL`."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise UnsupportedMediaType("Send the image itself as the body (curl --data-binary), not a form.")
    try:
        async with asyncio.timeout(_PLACE_S):
            await context.detects.acquire()
    except TimeoutError:
        raise Unavailable("Too many images are being detected.", retry_after_s=1) from None
    try:
        image = await _body(request)
        names = [name for part in classes for name in part.split(",") if name] or None
        found = await context.runtime.detect(image, confidence=confidence, iou=iou, classes=names)
    finally:
        context.detects.release()
    answer = {
        "model": found.model,
        "model_generation": found.model_generation,
        "width": found.width,
        "height": found.height,
        "latency_ms": found.latency_ms,
        "detections": found.detections,
    }
    return json_response(msgspec.json.encode(answer))


async def _body(request: Request) -> bytes:
    """The image; InvalidField at its first bytes if it is none, before the rest is read."""
    chunks: list[bytes] = []
    head = b""
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                chunks.append(chunk)
                if len(head) < _MAGIC_BYTES:
                    head = (head + chunk)[:_MAGIC_BYTES]
                    if len(head) == _MAGIC_BYTES:
                        _check(head)
    except TimeoutError:
        raise RequestTimeout(f"The image did not come within {_BODY_S:.0f} s.") from None
    _check(head)
    return b"".join(chunks)


def _check(head: bytes) -> None:
    if not head.startswith(_MAGIC):
        raise InvalidField("image", "the body is neither a JPEG nor a PNG")
