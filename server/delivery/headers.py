"""What browsers are told to refuse, with every answer: scripts of others, frames around it, guessed media types."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_YEAR_S = 365 * 24 * 3600


def csp(style: str = "'self'") -> str:
    """A Content-Security-Policy: what the server itself serves, pictures that its scripts make too, no inline scripts.

    'self' covers WebSockets to the same host.
    """
    return (
        f"default-src 'self'; script-src 'self'; style-src {style}; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


SECURITY = {
    "Content-Security-Policy": csp(),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""An answer's own headers are stronger: pages that need more, files that may be kept."""


class SecurityHeaders:
    """ASGI middleware, outside of all that answers.

    `tls`: the server speaks TLS itself, so browsers may insist on it. `shared`: pages of other origins may show
    pictures of this one (they still need a token).
    """

    def __init__(self, app: ASGIApp, *, tls: bool, shared: bool) -> None:
        self._app = app
        self._headers = dict(SECURITY)
        if tls:
            self._headers["Strict-Transport-Security"] = f"max-age={_YEAR_S}"
        if shared:
            self._headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
