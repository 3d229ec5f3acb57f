"""Who is let in: under which name the server was called, from which page, with which token, and for what.

The first line of every request and every WebSocket handshake, before a byte of a body is read:

1. Host. While no token is needed (`Access.open`) the server listens on loopback only, but a web page opened on this
   machine can reach it under a name that its owner makes resolve to 127.0.0.1 (DNS rebinding). So the name must be a
   loopback one, or one of `allowed_hosts`; with `allowed_hosts` set, that goes for servers with tokens, too.
2. Origin. A page of another site must not act with what the browser knows: the Origin must be the server's own, or one
   of `allowed_origins`. A cookie may change something, or open a WebSocket, only together with an Origin.
3. Token: `Authorization: Bearer`, the cookie of a login (`/session`), or `?token=` where a browser can set no header.
4. Role and granted streams, by the table in `permissions`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.registry import Access
from server.access.roles import LOCAL, Principal
from server.access.throttle import Throttle
from server.delivery import permissions
from server.delivery.lease import leased
from server.delivery.ports import ServerError, StreamNotFound
from server.delivery.problems import (
    Forbidden,
    HostNotAllowed,
    OriginNotAllowed,
    TooManyAttempts,
    Unauthorized,
    response_of,
)
from server.settings import ServerSettings, is_loopback

log = logging.getLogger("yolov9.access")

COOKIE = "yolov9_session"
PRINCIPAL = "yolov9.principal"
"""Key of the scope."""
_QUERY_TOKEN_PATHS = ("/detections/sse", "/snapshot.jpg", "/live.mjpg")
"""Where a browser cannot set a header: EventSource and images (and WebSockets). Ends of paths."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Doorkeeper:
    """Tells who shows a token. Wrong ones are counted by address.

    A token of the file is never held up: it cannot be found by trying, so whoever shares an attacker's address (behind
    a proxy, all do) is let in all the same. The `token` setting may be short, so it is looked at only within the limit.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._throttle = Throttle()

    def principal(self, token: str, address: str) -> Principal:
        """Unauthorized, TooManyAttempts."""
        if (managed := self._access.managed(token)) is not None:
            return managed
        now = time.monotonic()
        if (wait_s := self._throttle.wait_s(address, now)) > 0:
            raise TooManyAttempts("Too many wrong tokens came from this address.", retry_after_s=wait_s)
        if (setting := self._access.setting(token)) is not None:
            return setting
        if self._throttle.failed(address, now):
            log.warning("many wrong tokens from %s; others from there wait", address)
        raise Unauthorized("The token is wrong.")


class Guard:
    """ASGI middleware, outside of all that looks at a request.

    A `token` in the query is taken out of the scope before anything else sees it, loggers included. The Principal is
    left in the scope for `principal_of`. What is open when a token is revoked ends.
    """

    def __init__(self, app: ASGIApp, access: Access, doorkeeper: Doorkeeper, settings: ServerSettings) -> None:
        self._app = app
        self._access = access
        self._doorkeeper = doorkeeper
        self._settings = settings  # looked at each time: a reload may change it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        query_token = _take_token(scope)
        try:
            principal = self._admit(scope, query_token)
        except ServerError as error:
            await response_of(error)(scope, receive, send)
            return
        if principal is None:
            await self._app(scope, receive, send)
            return
        scope[PRINCIPAL] = principal
        await leased(self._app, self._access, principal, scope, receive, send)

    def _admit(self, scope: Scope, query_token: str | None) -> Principal | None:
        """None: nobody needs to be known for this. Raises what the client is answered."""
        method = scope["method"] if scope["type"] == "http" else permissions.WEBSOCKET
        if scope["path"] in permissions.PROBES:
            return None
        headers = Headers(scope=scope)
        self._check_host(headers)
        has_origin = self._check_origin(headers)
        rule, stream = permissions.find(method, scope["path"])
        if rule.role is None:
            return None
        principal = self._principal(scope, headers, query_token, trusted=has_origin or method in _SAFE)
        if principal.role < rule.role:
            raise Forbidden(f"This needs the role {rule.role.label}; {principal.name!r} is {principal.role.label}.")
        if rule.whole and principal.streams is not None:
            raise Forbidden(f"This tells of all streams; {principal.name!r} is granted some.")
        if stream is not None and not principal.may_see(stream):
            raise StreamNotFound(f"There is no stream {stream!r}.")  # as `Context.stream` says it
        return principal

    def _principal(self, scope: Scope, headers: Headers, query_token: str | None, *, trusted: bool) -> Principal:
        if self._access.open:
            return LOCAL
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._doorkeeper.principal(given.strip(), address_of(scope))
        in_query = scope["type"] == "websocket" or scope["path"].endswith(_QUERY_TOKEN_PATHS)
        if query_token is not None and in_query:
            return self._doorkeeper.principal(query_token, address_of(scope))
        session = session_of(headers)
        if session is None:
            raise Unauthorized("A token is needed: Authorization: Bearer TOKEN.")
        principal = self._access.by_session(session)
        if principal is None:
            raise Unauthorized("The login is over; log in again.")
        if not trusted:
            raise OriginNotAllowed("With a cookie alone nothing is changed: the page's Origin must come along.")
        return principal

    def _check_host(self, headers: Headers) -> None:
        hosts = self._settings.allowed_hosts
        if hosts is None and not self._access.open:
            return
        name = _host_name(headers.get("host", ""))
        if is_loopback(name) or (hosts is not None and _is_among(name, hosts)):
            return
        if self._access.open:
            raise HostNotAllowed(
                "Without a token the server answers only to localhost, 127.0.0.1 or [::1] in the address; "
                "set a token to use other names."
            )
        raise HostNotAllowed("The server does not answer under this name (allowed_hosts).")

    def _check_origin(self, headers: Headers) -> bool:
        """Whether there is one. It is not taken without a Host: what is it the same as?"""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is None:
            return False
        # Both schemes: behind a proxy that speaks TLS the page's is https, while it is http here.
        if origin.lower() not in self._settings.allowed_origins and (
            not host or origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())
        ):
            raise OriginNotAllowed("Pages of other sites are not answered (allowed_origins).")
        return True


async def principal_of(connection: HTTPConnection) -> Principal:
    """Whoever asks. A coroutine, since FastAPI would run a plain function in a thread."""
    principal: Principal = connection.scope[PRINCIPAL]
    return principal


InPrincipal = Annotated[Principal, Depends(principal_of)]


def address_of(scope: Scope) -> str:
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else "unknown"


def session_of(headers: Headers) -> str | None:
    """The id of the login that the cookie names."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_among(name: str, hosts: Sequence[str]) -> bool:
    """`*.example.com` stands for all names below example.com."""
    return any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)


def _take_token(scope: Scope) -> str | None:
    """The query's token. In place: the HTTP server logs from this very scope."""
    query: bytes = scope["query_string"]
    if b"token" not in query:
        return None
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    given = [value for name, value in pairs if name == "token"]
    if not given:
        return None
    scope["query_string"] = urlencode([(name, value) for name, value in pairs if name != "token"]).encode()
    return given[-1]
