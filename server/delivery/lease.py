"""The end of what is open, when the token that opened it is revoked, changed or has expired.

Only what looks on is cut: WebSockets and answers to GET. A change that is under way is finished.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.registry import Access
from server.access.roles import Principal
from server.delivery.problems import Unauthorized, response_of
from server.delivery.push import EXTENSION, PushProtocol

_POLICY_VIOLATION = 1008
_CLOSE_S = 1.0
"""A client that does not read is not waited for longer."""


async def leased(
    app: ASGIApp, access: Access, principal: Principal, scope: Scope, receive: Receive, send: Send
) -> None:
    """Call `app`, as long as `principal` may."""
    if scope["type"] == "http" and scope["method"] != "GET":
        await app(scope, receive, send)
        return
    last: Message | None = None

    async def watched(message: Message) -> None:
        nonlocal last
        last = message
        await send(message)

    with access.lease(principal) as lease:
        try:
            async with lease:
                await app(scope, receive, watched)
        except TimeoutError:
            if not lease.expired():
                raise
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await _end(scope, receive, send, last)
            except TimeoutError:
                protocol: PushProtocol | None = scope.get("extensions", {}).get(EXTENSION)
                if protocol is not None:
                    protocol.abort()


async def _end(scope: Scope, receive: Receive, send: Send, last: Message | None) -> None:
    """`last`: what the application has sent last."""
    if last is None:
        await response_of(Unauthorized("The token was revoked."))(scope, receive, send)
    elif last["type"] in ("websocket.accept", "websocket.send"):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "the token was revoked"})
    elif last["type"].startswith("http.response.") and last.get("more_body", True):
        await send({"type": "http.response.body", "body": b"", "more_body": False})
