"""`/session`: a browser logs in with a token and gets a cookie, so that pictures and WebSockets need no token in their
addresses. Scripts cannot read it, and it is sent along by the server's own pages only.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from server.access.roles import LOCAL, Principal
from server.access.sessions import LIFETIME_S
from server.delivery.auth import COOKIE, Doorkeeper, InPrincipal, address_of, session_of
from server.delivery.context import InContext
from server.delivery.documented import documented
from server.delivery.json_body import require_json
from server.delivery.ports import InvalidField
from server.delivery.problems import TooManyAttempts, Unauthorized, UnsupportedMediaType

router = APIRouter(tags=["access"])


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    token: SecretStr = Field(min_length=1, max_length=1024)


class SessionView(BaseModel):
    """Who the server takes the caller for."""

    name: str
    role: Literal["metrics", "viewer", "operator", "admin"]
    streams: list[str] | None = Field(None, description="The streams that it may see; null: all.")
    token_needed: bool = Field(description="Whether this server needs a token at all.")


def view(principal: Principal) -> SessionView:
    streams = None if principal.streams is None else sorted(principal.streams)
    return SessionView.model_validate(
        {
            "name": principal.name,
            "role": principal.role.label,
            "streams": streams,
            "token_needed": principal is not LOCAL,
        }
    )


@router.post(
    "/session",
    response_model=SessionView,
    dependencies=[Depends(require_json)],
    responses=documented(InvalidField, Unauthorized, TooManyAttempts, UnsupportedMediaType, body=True),
)
async def log_in(
    request: Request, response: Response, login: Annotated[Login, Body()], context: InContext
) -> SessionView:
    """Show a token, get a cookie. Without a token to be shown (loopback) there is nothing to log in to."""
    if context.access.open:
        return view(LOCAL)
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    principal = doorkeeper.principal(login.token.get_secret_value(), address_of(request.scope))
    session = context.access.begin_session(principal)
    await asyncio.to_thread(context.access.sessions.save)
    response.set_cookie(
        COOKIE, session, max_age=LIFETIME_S, secure=_over_tls(request), httponly=True, samesite="strict"
    )
    return view(principal)


@router.get("/session", response_model=SessionView)
async def who_am_i(principal: InPrincipal) -> SessionView:
    """Whom the server takes the caller for; 401 if a token is needed."""
    return view(principal)


@router.delete("/session", status_code=204, response_class=Response)
async def log_out(request: Request, context: InContext) -> Response:
    """The cookie is worth nothing from now on."""
    response = Response(status_code=204)
    session = session_of(request.headers)
    if session is not None and context.access.sessions.end(session):
        await asyncio.to_thread(context.access.sessions.save)
    response.delete_cookie(COOKIE, secure=_over_tls(request), httponly=True, samesite="strict")
    return response


def _over_tls(request: Request) -> bool:
    """Here, or at a proxy in front: then the page's origin says so."""
    return request.url.scheme == "https" or request.headers.get("origin", "").lower().startswith("https://")
