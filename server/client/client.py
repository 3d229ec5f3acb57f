"""The client: what `server.client` offers."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self, cast
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from server.client.errors import ClientError
from server.client.feed import Feed, OnRetry
from server.client.http import Http
from server.client.outages import Outages, Reconnected
from server.results import EventKind, EventMessage, Gap, Result, State, TrackEvent

log = logging.getLogger("yolov9.client")

_ACTIVATION_S = 600.0
"""A model may be compiled for the machine first."""
_PAGE = 500
Names = str | Sequence[str]


class Client:
    """A running server, as one token sees it. Used within `async with`.

    url: http://HOST:PORT or https://..., with a path where a proxy serves it below one.
    timeout_s: of each request, and of opening a WebSocket.
    context: for https, which certificates are trusted; by default those of the machine.
    retry_s: shortest and longest pause before a lost connection is tried again; it doubles in between, with jitter.
    on_retry: called before each of these pauses; by default they are logged.
    ValueError: the URL or the token cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        context: ssl.SSLContext | None = None,
        retry_s: tuple[float, float] = (0.5, 30.0),
        on_retry: OnRetry | None = None,
    ) -> None:
        url = _checked(url)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError("token: must be printable ASCII")
        if context is None and url.startswith("https"):
            context = ssl.create_default_context()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = Http(url, headers, timeout_s, context)
        self._feed = Feed(url.replace("http", "ws", 1), headers, timeout_s, context, retry_s, on_retry or _logged)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._feed.close()

    async def detections(
        self,
        stream: Names | None = None,
        *,
        classes: Sequence[str] = (),
        min_confidence: float = 0.0,
        zone: str | None = None,
    ) -> AsyncGenerator[Result | State | Gap | Reconnected]:
        """Results as they come, one a frame, with changes of state between them; the states that are come first.

        stream: one id (NotFound if there is none; the iterator ends when it is removed), several, or all.
        classes, min_confidence, zone: which detections are in the results. A result comes even if none is left.

        A Gap tells how many messages were dropped because this loop was too slow, a Reconnected what was missed while
        there was no connection. ApiError (Unauthorized, Forbidden, NotFound ...): the server refuses for good.
        """
        path = "/detections"
        query: dict[str, Any] = {"class": classes, "min_confidence": min_confidence or None, "zone": zone}
        if isinstance(stream, str):
            path = f"/streams/{quote(stream, '')}/detections"
        else:
            query["stream"] = stream
        outages = Outages()
        async for message in self._feed.messages(path + _query(query), outages.over):
            outage = outages.report(message)
            if outage is not None:
                yield outage
            yield cast(Result | State | Gap, message)

    async def tail(
        self,
        stream: Names | None = None,
        *,
        classes: Sequence[str] = (),
        kinds: Sequence[EventKind] = (),
        zone: str | None = None,
    ) -> AsyncGenerator[EventMessage | State | Gap]:
        """What happens to followed objects from now on. What was missed while a connection was lost is not repeated:
        ask `changes` for it, with the `id` of the last message."""
        path = "/events" + _query({"stream": _list(stream), "class": classes, "kind": kinds, "zone": zone})
        async for message in self._feed.messages(path, lambda away_s: None):
            yield cast(EventMessage | State | Gap, message)

    async def changes(
        self, after: int = 0, stream: Names | None = None, *, poll_s: float = 1.0
    ) -> AsyncGenerator[EventMessage]:
        """All that happened after the message of number `after`, and goes on happening, in order: misses nothing over
        restarts of either side if `id` of the last one is kept. Endless. ApiError; Unreachable."""
        while True:
            query = _query({"after": after, "limit": _PAGE, "stream": _list(stream)})
            page = await self._json("GET", f"/changes{query}")
            for message in page["changes"]:
                yield message
            if page["after"] == after:
                await asyncio.sleep(poll_s)
            after = page["after"]

    async def events(
        self,
        stream: Names | None = None,
        *,
        classes: Sequence[str] = (),
        kind: EventKind | None = None,
        zone: str | None = None,
        line: str | None = None,
        after: str | None = None,
        before: str | None = None,
        page: int = 50,
    ) -> AsyncGenerator[TrackEvent]:
        """Lives of followed objects, the newest first, page by page. `after`, `before`: RFC 3339 times."""
        query: dict[str, Any] = {
            "stream": _list(stream), "class": classes, "kind": kind, "zone": zone, "line": line, "after": after,
            "before": before, "limit": page,
        }  # fmt: skip
        while True:
            answer = await self._json("GET", f"/events{_query(query)}")
            for event in answer["events"]:
                yield event
            query["cursor"] = answer["next"]
            if answer["next"] is None:
                return

    async def streams(self) -> list[dict[str, Any]]:
        """All streams that the token may see: settings (credentials masked) and `status`."""
        return cast(list[dict[str, Any]], await self._json("GET", "/streams"))

    async def stream(self, stream_id: str) -> dict[str, Any]:
        """NotFound."""
        return cast(dict[str, Any], await self._json("GET", _of(stream_id)))

    async def add_stream(self, url: str, *, dry_run: bool = False, **fields: Any) -> dict[str, Any]:
        """Add a camera or file; fields as in `POST /streams`. With `dry_run` only what the source is. Conflict;
        Invalid."""
        path = f"/streams{_query({'dry_run': 'true' if dry_run else None})}"
        return cast(dict[str, Any], await self._json("POST", path, {"url": url, **fields}))

    async def change_stream(self, stream_id: str, **fields: Any) -> dict[str, Any]:
        """None goes back to the default. NotFound; Invalid."""
        return cast(dict[str, Any], await self._json("PATCH", _of(stream_id), fields))

    async def remove_stream(self, stream_id: str) -> None:
        """NotFound."""
        await self._http.request("DELETE", _of(stream_id))

    async def ledger(self, stream_id: str) -> dict[str, Any]:
        """Where every frame went: received, completed, in_flight, dropped (stage -> reason -> frames). NotFound."""
        return cast(dict[str, Any], await self._json("GET", f"{_of(stream_id)}/ledger"))

    async def snapshot(self, stream_id: str, *, annotate: bool = False, width: int | None = None) -> bytes:
        """The newest frame as JPEG. NotFound, also while there is no picture yet."""
        query = _query({"annotate": "true" if annotate else None, "width": width})
        return await self._http.request("GET", f"{_of(stream_id)}/snapshot.jpg{query}")

    async def models(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], await self._json("GET", "/models"))

    async def activate(self, name: str, *, force: bool = False) -> dict[str, Any]:
        """Let another model answer, and wait until it does. NotFound; Conflict: streams ask for classes that it lacks,
        or another activation is going on; Invalid: it was refused."""
        query = _query({"wait": "true", "force": "true" if force else None})
        path = f"/models/{quote(name, '')}/activate{query}"
        return cast(dict[str, Any], await self._json("POST", path, timeout_s=_ACTIVATION_S))

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        answer = await self._http.request(method, path, None if body is None else msgspec.json.encode(body), timeout_s)
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise ClientError(f"{path}: the answer is not JSON: {error}") from error


def _checked(url: str) -> str:
    """Without a slash at the end. ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("url: must be http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("url: must hold no user name, spaces or control characters")
    parts.port  # noqa: B018 - raises ValueError if it is none
    return url.rstrip("/")


def _of(stream_id: str) -> str:
    return f"/streams/{quote(stream_id, '')}"


def _list(names: Names | None) -> Sequence[str] | None:
    return [names] if isinstance(names, str) else names


def _query(parameters: Mapping[str, Any]) -> str:
    """None and what is empty is left out."""
    given = {name: value for name, value in parameters.items() if value is not None and value != ()}
    return f"?{urlencode(given, doseq=True)}" if given else ""


def _logged(pause_s: float, why: Exception) -> None:
    log.warning("no connection to the server, trying again in %.1f s: %s", pause_s, why)
