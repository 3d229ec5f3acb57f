"""Who may talk to the server: whoever shows the token; without one, whoever sits at this machine.

Without a token the server listens on loopback only (`settings`), but a web page opened on this machine can reach it
too: under a name that its owner makes resolve to 127.0.0.1 (DNS rebinding), or across sites. So the Host header must be
a loopback name, and an Origin must be the server's own.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.delivery.ports import ServerError
from server.delivery.problems import HostNotAllowed, OriginNotAllowed, Unauthorized, response_of
from server.settings import is_loopback

PUBLIC = frozenset({"/healthz", "/readyz"})
_QUERY_TOKEN_PATHS = ("/detections/sse", "/snapshot.jpg", "/live.mjpg")
"""Where a browser cannot set a header: EventSource and images (and WebSockets). Ends of paths."""


class Guard:
    """ASGI middleware, outermost. `token` None: only loopback names and same-origin pages are answered.

    A `token` in the query is taken out of the scope before anything else sees it, loggers included.
    """

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        self._app = app
        self._token = None if token is None else token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        query_token = _take_token(scope)
        if scope["path"] not in PUBLIC:
            try:
                self._check(scope, query_token)
            except ServerError as error:
                await response_of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, query_token: bytes | None) -> None:
        headers = Headers(scope=scope)
        if self._token is not None:
            _check_token(scope, headers, query_token, self._token)
        else:
            _check_local(headers)


def _check_token(scope: Scope, headers: Headers, query_token: bytes | None, token: bytes) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown: bytes | None = given.strip().encode("latin-1")
    elif scope["type"] == "websocket" or scope["path"].endswith(_QUERY_TOKEN_PATHS):
        shown = query_token
    else:
        shown = None
    if shown is None:
        raise Unauthorized("A token is needed: Authorization: Bearer TOKEN.")
    if not hmac.compare_digest(shown, token):
        raise Unauthorized("The token is wrong.")


def _check_local(headers: Headers) -> None:
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        raise HostNotAllowed(
            "Without a token the server answers only to localhost, 127.0.0.1 or [::1] in the address; "
            "set a token to use other names."
        )
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        raise OriginNotAllowed("Without a token pages of other sites are not answered.")


def _take_token(scope: Scope) -> bytes | None:
    """The query's token. In place: the HTTP server logs from this very scope."""
    query: bytes = scope["query_string"]
    if b"token" not in query:
        return None
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    given = [value for name, value in pairs if name == "token"]
    if not given:
        return None
    scope["query_string"] = urlencode([(name, value) for name, value in pairs if name != "token"]).encode()
    return given[-1].encode()
