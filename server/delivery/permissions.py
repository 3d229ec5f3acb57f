"""Who may call what: one table. An application with a route that does not stand here is not served at all (`check`).

Streams that a token is not granted are answered like streams that do not exist; lists and subscriptions leave them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from fastapi import FastAPI
from starlette.routing import BaseRoute, Host, Mount, WebSocketRoute, compile_path

from server.access.roles import Role

WEBSOCKET = "WEBSOCKET"
PROBES = frozenset({"/healthz", "/readyz"})
"""Answered to anybody, under any name: orchestrators call them by address."""


class Rule(NamedTuple):
    role: Role | None
    """The least that is needed; None: nothing, not even a token."""
    whole: bool = False
    """It tells of all streams at once: not for tokens that are granted single ones."""


_ANYBODY = Rule(None)
_ANY_TOKEN = Rule(Role.METRICS)
_METRICS = Rule(Role.METRICS, whole=True)
_VIEWER = Rule(Role.VIEWER)
_OPERATOR = Rule(Role.OPERATOR)
_ADMIN = Rule(Role.ADMIN)

# fmt: off
TABLE: Mapping[tuple[str, str], Rule] = {
    ("GET", "/healthz"): _ANYBODY,
    ("GET", "/readyz"): _ANYBODY,
    ("GET", "/"): _ANYBODY,  # asks for the token
    ("GET", "/web/{path:path}"): _ANYBODY,
    ("POST", "/session"): _ANYBODY,
    ("DELETE", "/session"): _ANYBODY,
    ("GET", "/session"): _ANY_TOKEN,
    ("GET", "/metrics"): _METRICS,
    ("GET", "/docs"): _VIEWER,
    ("GET", "/docs/{file}"): _VIEWER,
    ("GET", "/openapi.json"): _VIEWER,
    ("GET", "/streams"): _VIEWER,
    ("POST", "/streams"): _OPERATOR,
    ("GET", "/streams/{stream_id}"): _VIEWER,
    ("PATCH", "/streams/{stream_id}"): _OPERATOR,
    ("DELETE", "/streams/{stream_id}"): _OPERATOR,
    ("GET", "/streams/{stream_id}/ledger"): _VIEWER,
    ("GET", "/streams/{stream_id}/detections"): _VIEWER,
    ("GET", "/streams/{stream_id}/snapshot.jpg"): _VIEWER,
    ("GET", "/streams/{stream_id}/live.mjpg"): _VIEWER,
    (WEBSOCKET, "/streams/{stream_id}/live"): _VIEWER,
    (WEBSOCKET, "/streams/{stream_id}/detections"): _VIEWER,
    (WEBSOCKET, "/detections"): _VIEWER,
    ("GET", "/detections/sse"): _VIEWER,
    ("POST", "/detect"): _OPERATOR,
    ("GET", "/events"): _VIEWER,
    (WEBSOCKET, "/events"): _VIEWER,
    ("GET", "/changes"): _VIEWER,
    ("GET", "/events/{event_id}"): _VIEWER,
    ("DELETE", "/events/{event_id}"): _OPERATOR,
    ("GET", "/events/{event_id}/snapshot.jpg"): _VIEWER,
    ("GET", "/models"): _VIEWER,
    ("POST", "/models"): _ADMIN,
    ("GET", "/models/{name}"): _VIEWER,
    ("DELETE", "/models/{name}"): _ADMIN,
    ("POST", "/models/{name}/activate"): _ADMIN,
    ("GET", "/settings"): _ADMIN,
    ("POST", "/settings/reload"): _ADMIN,
    (WEBSOCKET, "/{path:path}"): _ANY_TOKEN,  # an honest 404
}
# fmt: on


class Found(NamedTuple):
    rule: Rule
    stream: str | None
    """The path's stream_id."""


_FIXED = {key: rule for key, rule in TABLE.items() if "{" not in key[1]}
_PATTERNS: list[tuple[str, re.Pattern[str], Rule]] = [
    (method, compile_path(path)[0], rule) for (method, path), rule in TABLE.items() if "{" in path
]


def find(method: str, path: str) -> Found:
    """The rule of a request. What stands nowhere is for any token: it will get a 404 or a 405."""
    if method == "HEAD":
        method = "GET"
    rule = _FIXED.get((method, path))
    if rule is not None:
        return Found(rule, None)
    for allowed, pattern, rule in _PATTERNS:
        if allowed == method and (match := pattern.match(path)):
            return Found(rule, match.groupdict().get("stream_id"))
    return Found(_ANY_TOKEN, None)


def check(app: FastAPI) -> None:
    """RuntimeError if there is a route without a rule: nobody has decided who may call it."""
    missing = sorted(key for key in routes_of(app.routes) if key not in TABLE)
    if missing:
        raise RuntimeError(f"add to server/delivery/permissions.py who may call {missing}")


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(method, path) of all routes, those of included routers and mounted applications too."""
    for route in routes:
        included = getattr(route, "original_router", None)  # FastAPI keeps included routers whole
        if included is not None:
            prefix: str = route.include_context.prefix  # type: ignore[attr-defined]
            yield from ((method, prefix + path) for method, path in routes_of(included.routes))
        elif isinstance(route, Mount):
            yield "GET", f"{route.path}/{{path:path}}"
        elif isinstance(route, WebSocketRoute):
            yield WEBSOCKET, route.path
        elif isinstance(route, Host) or not hasattr(route, "path"):
            raise RuntimeError(f"who may call {route!r} cannot be told")
        else:
            methods: set[str] = getattr(route, "methods", None) or set()
            for method in methods - {"HEAD"}:
                yield method, route.path
