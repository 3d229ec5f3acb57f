"""How large a request's body may be. Counted while it is read, so that no client fills the memory."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.delivery.problems import problem_response

MAX_BODY_BYTES = 64 << 10
MAX_IMAGE_BYTES = 32 << 20
IMAGE_PATH = "/detect"
MODELS_PATH = "/models"
"""Bundles may be sent there as archives."""
_CLOSE = {"Connection": "close"}
"""The rest of the body is not waited for."""


class BodyLimit:
    """ASGI middleware. A body that is announced as too large is not read at all."""

    def __init__(self, app: ASGIApp, max_model_bytes: int = 1 << 30) -> None:
        self._app = app
        self._max_model_bytes = max_model_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            response = problem_response(413, "body_too_large", _too_large(limit), headers=_CLOSE)
            await response(scope, receive, send)
            return
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                if got > limit:
                    # The one kind of error that the web framework lets pass while it reads a body.
                    raise HTTPException(413, _too_large(limit), _CLOSE)
            return message

        await self._app(scope, counted, send)

    def _limit(self, scope: Scope) -> int:
        if scope["path"] == IMAGE_PATH:
            return MAX_IMAGE_BYTES
        if scope["path"] == MODELS_PATH and not Headers(scope=scope).get("content-type", "").startswith(
            "application/json"
        ):
            return self._max_model_bytes
        return MAX_BODY_BYTES


def _too_large(limit: int) -> str:
    return f"The body may have {limit} bytes at most."
