"""`/models`: which models there are, more of them, and which one answers."""

from __future__ import annotations

import asyncio
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from server.delivery.context import Context, InContext
from server.delivery.documented import documented, json_response
from server.delivery.ports import InvalidField, NoCapacity
from server.delivery.problems import RequestTimeout, UnsupportedMediaType
from server.models.intake import ArchiveKind
from server.models.registry import MODEL_NAME, Entry, ModelExists, ModelInUse, UnknownModel
from server.models.swap import ClassesMissing, SwapInProgress
from server.models.trial import Refused
from server.store import StoreError


async def _scanned(context: InContext) -> None:
    """What lies on the disk is known soon after the start."""
    await context.runtime.registry.scanned()


router = APIRouter(tags=["models"], dependencies=[Depends(_scanned)])

_SILENCE_S = 30.0
"""An upload that stops for so long is given up."""
_PIECE_BYTES = 4 << 20
"""Written to the disk at once."""
_ARCHIVES: dict[str, ArchiveKind] = {
    "application/zip": "zip",
    "application/x-zip-compressed": "zip",
    "application/x-tar": "tar",
    "application/gzip": "tar",
    "application/x-gzip": "tar",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}

Name = Annotated[str, Field(pattern=MODEL_NAME)]


class FolderOfModel(BaseModel):
    """A bundle that lies on the server's machine."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, strict=True)

    path: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="Folder of the bundle, below one of `model_folders` or the server's data folder. It is copied."
    )
    name: Name | None = Field(None, description="What to call it; by default as it calls itself.")


class ModelView(BaseModel):
    """A model and what is happening to it."""

    name: str
    state: Literal["ready", "loading", "active", "refused"] = Field(
        description="refused: the last attempt to activate or to read it failed; it may be tried again."
    )
    reason: str | None = Field(description="Why it was refused.")
    note: str | None = Field(description="What people should know of its activation.")
    active: bool = Field(description="New frames go to it.")
    generation: int | None = Field(description="`model_generation` of its results; of the active model.")
    source: Literal["packaged", "registered", "given"] = Field(
        description="It came with the server, was registered here, or named at the start (--model)."
    )
    hash: str | None = Field(description="Changes with weights, names and input size. null: it cannot be read.")
    classes: list[str]
    input_size: int | None = Field(description="Long side of the input, pixels.")
    precisions: list[str] = Field(description="What it brings along; engines may convert to others.")
    bytes: int | None = Field(description="Size of its files.")
    metrics: dict[str, Any] = Field(description="What it reaches on its own validation data, as its model.json says.")
    lineage: dict[str, Any] = Field(description="Where it comes from, as its model.json says.")


def view(entry: Entry) -> ModelView:
    bundle = entry.bundle
    lineage = {} if bundle is None else bundle.lineage
    metrics = lineage.get("metrics")
    return ModelView(
        name=entry.name,
        state=entry.state,
        reason=entry.reason,
        note=entry.note,
        active=entry.state == "active",
        generation=entry.generation,
        source=entry.source,
        hash=None if bundle is None else bundle.hash,
        classes=[] if bundle is None else list(bundle.names.values()),
        input_size=None if bundle is None else bundle.input_size,
        precisions=entry.precisions,
        bytes=None if bundle is None else sum(file.bytes for file in bundle.files.values()),
        metrics=metrics if isinstance(metrics, dict) else {},
        lineage={name: value for name, value in lineage.items() if name != "metrics"},
    )


@router.get("/models", response_model=list[ModelView])
async def list_models(context: InContext) -> Response:
    """All models that this server knows, by name."""
    entries = sorted(context.runtime.registry.entries.values(), key=lambda entry: entry.name)
    return json_response(_VIEWS.dump_json([view(entry) for entry in entries]))


_VIEWS = TypeAdapter(list[ModelView])


@router.get("/models/{name}", response_model=ModelView, responses=documented(UnknownModel))
async def get_model(name: str, context: InContext) -> Response:
    """One model."""
    return _answer(context.runtime.registry.get(name))


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _known_media_type(request: Request) -> None:
    media_type = _media_type(request)
    if media_type != "application/json" and media_type not in _ARCHIVES:
        raise UnsupportedMediaType(f"The body is JSON or an archive ({', '.join(_ARCHIVES)}).")


@router.post(
    "/models",
    status_code=201,
    response_model=ModelView,
    dependencies=[Depends(_known_media_type)],
    responses={
        201: {"description": "Registered.", "headers": {"Location": {"schema": {"type": "string"}}}},
        **documented(
            ModelExists, InvalidField, StoreError, NoCapacity, UnsupportedMediaType, RequestTimeout, body=True
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": FolderOfModel.model_json_schema()},
                "application/zip": _BINARY,
                "application/x-tar": _BINARY,
                "application/gzip": _BINARY,
            },
        }
    },
)
async def register_model(
    request: Request,
    context: InContext,
    name: Annotated[
        str | None,
        Query(pattern=MODEL_NAME, description="For archives: what to call it; by default as it calls itself."),
    ] = None,
) -> Response:
    """Register a bundle: JSON that names a folder of the server's machine, or the bundle itself as zip, tar or tar.gz.

    It is checked (hashes, classes, the graph's inputs and outputs), copied into the data folder, and not run. What is
    wrong is said by file.
    """
    registry = context.runtime.registry
    kind = _ARCHIVES.get(_media_type(request))
    if kind is None:
        given = _parsed(await request.body())
        entry = await registry.register_folder(given.path, given.name or name)
    else:
        if registry.uploads.locked():
            raise NoCapacity("Another model is being uploaded.", retry_after_s=10)
        async with registry.uploads, registry.upload_file() as archive:
            await _receive(request, archive)
            entry = await registry.register_archive(archive, kind, name)
    return _answer(entry, 201, {"Location": f"/models/{entry.name}"})


def _parsed(body: bytes) -> FolderOfModel:
    try:
        return FolderOfModel.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


async def _receive(request: Request, archive: IO[bytes]) -> None:
    """The body into a file. RequestTimeout, StoreError."""
    pieces = bytearray()
    body = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                piece = await anext(body, None)
        except TimeoutError:
            raise RequestTimeout(f"Nothing of the model came for {_SILENCE_S:.0f} s.") from None
        if piece is not None:
            pieces += piece
        if pieces and (piece is None or len(pieces) >= _PIECE_BYTES):
            try:
                await asyncio.to_thread(archive.write, bytes(pieces))
            except OSError as error:
                raise StoreError(f"the upload cannot be stored: {error.strerror}") from error
            pieces.clear()
        if piece is None:
            return


@router.delete(
    "/models/{name}",
    status_code=204,
    response_class=Response,
    responses=documented(UnknownModel, ModelInUse, StoreError),
)
async def remove_model(name: str, context: InContext) -> Response:
    """Remove a registered model that is not active."""
    await context.runtime.registry.remove(name)
    return Response(status_code=204)


@router.post(
    "/models/{name}/activate",
    status_code=202,
    response_model=ModelView,
    responses={
        200: {"model": ModelView, "description": "It is active: it was so before, or has been waited for."},
        202: {
            "description": "It is being loaded and tried; `Location` tells how that goes.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
        **documented(UnknownModel, SwapInProgress, ClassesMissing, Refused),
    },
)
async def activate_model(
    name: str,
    context: InContext,
    force: Annotated[
        bool,
        Query(description="Even if streams ask for classes that it lacks (they are ignored then), and if it is slow."),
    ] = False,
    wait: Annotated[
        bool, Query(description="Answer when it is active and the one before has ended, or refused.")
    ] = False,
) -> Response:
    """Let another model answer, without losing a frame.

    It is loaded beside the active one, warmed with every shape that the cameras have, and tried; then new frames go to
    it, and the one before ends. Refused, it leaves everything as it was. The next start begins with the model that is
    active then, unless --model names another.
    """
    entry = context.runtime.registry.get(name)
    task = context.runtime.swapper.begin(name, force=force)
    if task is None:
        return _answer(entry)
    if not wait:
        return _answer(entry, 202, {"Location": f"/models/{name}"})
    await _ended(context, task)
    return _answer(entry)


async def _ended(context: Context, task: asyncio.Task[None]) -> None:
    """Wait for an activation, which goes on without the one who asked for it. Refused."""
    await asyncio.wait([task])
    if task.cancelled():
        raise Refused("the server ended")
    task.result()
    await context.runtime.swapper.drained()


def _answer(entry: Entry, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return json_response(view(entry).model_dump_json(), status, headers)
