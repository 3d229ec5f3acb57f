"""`/streams`: cameras and files come, change and go at run time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer

from server.access.roles import Principal, Role
from server.addresses import MASK, is_pipeline, masked_url
from server.delivery.auth import InPrincipal
from server.delivery.context import Context, InContext
from server.delivery.documented import documented, json_response
from server.delivery.json_body import require_json
from server.delivery.ports import InvalidField, NoCapacity, StreamExists, StreamHandle, StreamNotFound, Unavailable
from server.delivery.problems import Forbidden, UnsupportedMediaType
from server.store import StoreError
from server.streams import (
    LedgerView,
    StreamDefinition,
    StreamFields,
    StreamPatch,
    StreamStatus,
    reveal,
)

router = APIRouter(tags=["streams"])

_YIELD_EVERY = 16
"""Streams looked at before others get their turn on the event loop."""

_EXAMPLES: Mapping[str, object] = {
    "camera": {
        "summary": "An RTSP camera",
        "value": {"id": "door", "url": "rtsp://192.0.2.10/stream1", "username": "viewer", "password": "secret"},
    },
    "some classes": {
        "summary": "People and cars, five times a second",
        "value": {"url": "rtsp://192.0.2.11:554/h264", "classes": ["person", "car"], "max_fps": 5, "confidence": 0.4},
    },
}


class StreamView(StreamFields):
    """A stream's settings with its credentials masked, and what it is doing now."""

    id: str
    url: str = Field(description="Without user information; what looks like a secret is masked.")
    status: StreamStatus

    @field_serializer("username", "password")
    def _mask(self, value: str | SecretStr | None) -> str | None:
        return None if value is None else MASK


class ProbeView(BaseModel):
    """What a dry run found."""

    model_config = ConfigDict(from_attributes=True)

    ok: bool = Field(description="The source opens and has video that can be decoded.")
    reason: str | None = Field(None, description="Why not: auth, not_found, refused, timeout, codec, ...")
    detail: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    capacity: bool = Field(description="Whether the engine has room for another stream at this rate.")


def view(handle: StreamHandle) -> StreamView:
    definition = handle.definition
    settings = {name: getattr(definition, name) for name in StreamDefinition.model_fields}
    return StreamView.model_construct(**settings | _masked_addresses(definition), status=handle.status())


def _masked_addresses(definition: StreamDefinition) -> dict[str, str | None]:
    sub_stream = definition.detect_url
    return {"url": masked_url(definition.url), "detect_url": None if sub_stream is None else masked_url(sub_stream)}


@router.post(
    "/streams",
    status_code=201,
    response_model=StreamView,
    dependencies=[Depends(require_json)],
    responses={
        200: {"model": ProbeView, "description": "What a dry run found."},
        201: {
            "description": "Added; `Location` is its address.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
        **documented(StreamExists, InvalidField, NoCapacity, StoreError, UnsupportedMediaType, body=True),
    },
)
async def add_stream(
    definition: Annotated[StreamDefinition, Body(openapi_examples=_EXAMPLES)],
    context: InContext,
    principal: InPrincipal,
    dry_run: Annotated[bool, Query(description="Open the source, say what it is, keep nothing.")] = False,
) -> Response:
    """Add a camera or a file. Answers before it has connected: follow its `state`."""
    if not principal.may_see(definition.id):
        raise Forbidden(f"{principal.name!r} is granted some streams only, and none of this id.")
    _demand_pipeline_rights(principal, definition.url, definition.detect_url)
    if dry_run:
        return json_response((await _probe(context, definition)).model_dump_json())
    handle = await context.runtime.add_stream(definition)
    return json_response(view(handle).model_dump_json(), 201, {"Location": f"/streams/{handle.definition.id}"})


async def _probe(context: Context, definition: StreamDefinition) -> ProbeView:
    if context.dry_runs.locked():
        raise Unavailable("Other dry runs are under way.", retry_after_s=2)
    async with context.dry_runs:
        return ProbeView.model_validate(await context.runtime.probe(definition))


@router.get("/streams", response_model=list[StreamView])
async def list_streams(context: InContext, principal: InPrincipal) -> Response:
    """All streams that the caller may see: settings and status."""
    parts = []
    visible = [handle for stream_id, handle in context.runtime.streams.items() if principal.may_see(stream_id)]
    for number, handle in enumerate(visible, start=1):
        parts.append(view(handle).model_dump_json())
        if number % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
    return json_response(f"[{','.join(parts)}]")


@router.get("/streams/{stream_id}", response_model=StreamView, responses=documented(StreamNotFound))
async def get_stream(stream_id: str, context: InContext) -> Response:
    """One stream: settings and status."""
    return json_response(view(context.stream(stream_id)).model_dump_json())


@router.patch(
    "/streams/{stream_id}",
    response_model=StreamView | ProbeView,
    dependencies=[Depends(require_json)],
    responses=documented(StreamNotFound, InvalidField, StoreError, UnsupportedMediaType, body=True),
)
async def change_stream(
    stream_id: str,
    patch: StreamPatch,
    context: InContext,
    principal: InPrincipal,
    dry_run: Annotated[bool, Query(description="Open the changed source, say what it is, change nothing.")] = False,
) -> Response:
    """Change settings while it runs; `null` goes back to the default. Masked values, sent back as they were got, leave
    the credentials as they are."""
    definition = context.stream(stream_id).definition
    changes = without_masks(patch, definition)
    _demand_pipeline_rights(principal, changes.url, changes.detect_url)
    if dry_run:
        return json_response((await _probe(context, _patched(definition, changes))).model_dump_json())
    handle = await context.runtime.update_stream(stream_id, changes)
    return json_response(view(handle).model_dump_json())


def _patched(definition: StreamDefinition, changes: StreamPatch) -> StreamDefinition:
    try:
        return definition.patched(changes)
    except ValidationError as error:  # fields that fit alone and not together
        faults = error.errors(include_input=False, include_url=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


def _demand_pipeline_rights(principal: Principal, *urls: str | None) -> None:
    """A pipeline reads and writes what the server can: for administrators, and not for whoever may add cameras."""
    if principal.role < Role.ADMIN and any(url is not None and is_pipeline(url) for url in urls):
        raise Forbidden("GStreamer pipelines are for administrators.")


def without_masks(patch: StreamPatch, definition: StreamDefinition) -> StreamPatch:
    """The patch without what `view` had masked: a form gives back all that it was shown."""
    changes = reveal(patch, exclude_unset=True)
    masks = {"username": MASK, "password": MASK} | _masked_addresses(definition)
    return StreamPatch.model_validate({name: v for name, v in changes.items() if name not in masks or v != masks[name]})


@router.delete(
    "/streams/{stream_id}", status_code=204, response_class=Response, responses=documented(StreamNotFound, StoreError)
)
async def remove_stream(stream_id: str, context: InContext) -> Response:
    """Remove a stream. Its subscribers get a last state message."""
    context.stream(stream_id)
    await context.runtime.remove_stream(stream_id)
    return Response(status_code=204)


@router.get("/streams/{stream_id}/ledger", response_model=LedgerView, responses=documented(StreamNotFound))
async def get_ledger(stream_id: str, context: InContext) -> Response:
    """Where every frame went: received = completed + in_flight + all dropped, at every read."""
    return json_response(context.stream(stream_id).ledger().model_dump_json())
