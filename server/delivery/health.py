"""Is it alive, is it ready, and its numbers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from server.delivery.context import InContext
from server.delivery.documented import documented
from server.delivery.problems import FieldError, NotReady
from server.metrics.metrics import CONTENT_TYPE

router = APIRouter(tags=["operation"])


class Health(TypedDict):
    status: Literal["alive"]


class CheckView(TypedDict):
    name: str
    ok: bool
    detail: str
    required: bool
    """Without it the server is not ready."""


class Ready(TypedDict):
    status: Literal["ready"]
    reason: str
    checks: list[CheckView]


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive and its event loop turns. Needs no token."""
    return {"status": "alive"}


@router.get("/readyz", responses=documented(NotReady))
async def readyz(context: InContext) -> Ready:
    """A model is loaded and inference works; 503 with the reason and the checks that fail otherwise. Needs no token.

    Cameras that are down, and a data base that cannot be written, make no server unready: it goes on detecting.
    """
    ready, reason = context.runtime.readiness()
    checks = context.runtime.checks()
    if not ready:
        raise NotReady(reason, [FieldError(field=check.name, message=check.detail) for check in checks if not check.ok])
    views = [CheckView(name=c.name, ok=c.ok, detail=c.detail, required=c.required) for c in checks]
    return {"status": "ready", "reason": reason, "checks": views}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(context: InContext) -> Response:
    """For Prometheus."""
    return Response(context.runtime.metrics.render(), 200, {"Content-Type": CONTENT_TYPE})
