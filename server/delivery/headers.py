"""What browsers are told to refuse, with every answer: scripts of others, frames around it, guessed media types."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.settings import ServerSettings

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

    Where pages of other origins are allowed they may show pictures of this one, too (they still need a token). Where
    the server speaks TLS itself, browsers may insist on it.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                if self._settings.tls_certificate is not None:
                    headers.setdefault("Strict-Transport-Security", f"max-age={_YEAR_S}")
                if self._settings.allowed_origins:
                    headers.setdefault("Cross-Origin-Resource-Policy", "cross-origin")
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class Cors(CORSMiddleware):
    """Pages of `allowed_origins` may read what they ask for. No cookies across sites: they show a token themselves."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(
            app,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Location", "Retry-After"],
        )
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._settings.allowed_origins:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        return origin.lower() in self._settings.allowed_origins
