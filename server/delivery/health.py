"""Is it alive, is it ready, and its numbers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from server.delivery.context import InContext
from server.delivery.documented import documented
from server.delivery.problems import NotReady
from server.metrics.metrics import CONTENT_TYPE

router = APIRouter(tags=["operation"])


class Health(TypedDict):
    status: Literal["alive"]


class Ready(TypedDict):
    status: Literal["ready"]
    reason: str


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive and its event loop turns. Needs no token."""
    return {"status": "alive"}


@router.get("/readyz", responses=documented(NotReady))
async def readyz(context: InContext) -> Ready:
    """A model is loaded and inference works; 503 with the reason otherwise. Needs no token."""
    ready, reason = context.runtime.readiness()
    if not ready:
        raise NotReady(reason)
    return {"status": "ready", "reason": reason}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(context: InContext) -> Response:
    """For Prometheus."""
    return Response(context.runtime.metrics.render(), 200, {"Content-Type": CONTENT_TYPE})
