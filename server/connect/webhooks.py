"""Events by HTTP POST: signed, in order, at least once, each hook at its own pace behind its own cursor.

A hook that fails is tried again, ever more slowly. An event that is refused again and again, or that is too old when an
attempt fails, is given up, counted and logged with its number: it is still in the store (`GET /changes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from server import __version__
from server.analytics.journal import Journal
from server.ingest.backoff import STABLE_S, Backoff
from server.ingest.network import Networks, connect, tls_context
from server.ingest.source import SourceError
from server.results import EventMessage
from server.store import StoreError

if TYPE_CHECKING:
    from server.settings import ServerSettings, Webhook

log = logging.getLogger("yolov9.webhooks")

_TIMEOUT_S = 10.0
"""For one attempt."""
_REFUSALS = 5
"""Attempts of an event that the hook refuses (4xx)."""
_RETRY_S = 1.0, 300.0
"""First and longest pause."""
_NOT_REFUSED = (408, 425, 429)
"""4xx that mean: later."""


class HookMetrics(Protocol):
    def webhook_event(self, result: str) -> None: ...


class NotDelivered(Exception):
    """An attempt failed; the text holds neither address nor secret. `refused`: trying again will hardly help."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


Post = Callable[[bytes, dict[str, str]], Awaitable[None]]
"""Body and headers; NotDelivered."""


class Hook:
    """`run` until cancelled."""

    def __init__(
        self,
        hook: Webhook,
        settings: ServerSettings,
        journal: Journal,
        metrics: HookMetrics,
        *,
        post: Post | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._hook = hook
        self._settings = settings
        self._journal = journal
        self._metrics = metrics
        self._post = post or Poster(hook, settings).post
        self._sleep = sleep
        self._wall_clock = wall_clock
        self._backoff = Backoff(*_RETRY_S, chance)

    async def run(self) -> None:
        while True:
            try:
                messages = self._journal.follow(f"webhook:{self._hook.name}")
                async with contextlib.aclosing(messages):  # type: ignore[type-var]
                    async for message in messages:
                        if self._wants(message):
                            await self._deliver(message)
            except StoreError as error:
                log.warning("webhook=%s %s", self._hook.name, error)
            await self._sleep(_RETRY_S[0])

    def _wants(self, message: EventMessage) -> bool:
        hook = self._hook
        return (hook.streams is None or message["stream"] in hook.streams) and (
            hook.classes is None or message["event"]["class"] in hook.classes
        )

    async def _deliver(self, message: EventMessage) -> None:
        """Returns when the hook has it, or it is given up."""
        body = json.dumps(message, separators=(",", ":")).encode()
        refusals = 0
        while True:
            now = self._wall_clock()
            headers = signed(body, self._hook.secret.get_secret_value(), int(now), message["id"])
            try:
                await self._post(body, headers)
            except NotDelivered as error:
                refusals += error.refused
                age = now - datetime.fromisoformat(message["at"]).timestamp()
                given_up = refusals >= _REFUSALS or age > self._settings.webhook_give_up_h * 3600
                self._metrics.webhook_event("given_up" if given_up else "retried")
                level = logging.ERROR if given_up else logging.WARNING
                verdict = "given_up" if given_up else "retried"
                log.log(level, "webhook=%s event=%d state=%s %s", self._hook.name, message["id"], verdict, error)
                await self._sleep(self._backoff.next_s())
                if given_up:
                    return
                continue
            self._backoff.delivered(STABLE_S)
            self._metrics.webhook_event("delivered")
            return


def signed(body: bytes, secret: str, timestamp: int, number: int) -> dict[str, str]:
    """Headers of a delivery. The receiver computes the HMAC anew, and refuses time stamps that are old."""
    mac = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "User-Agent": f"yolov9-server/{__version__}",
        "X-Yolov9-Event": str(number),
        "X-Yolov9-Timestamp": str(timestamp),
        "X-Yolov9-Signature": f"sha256={mac.hexdigest()}",
    }


class Poster:
    """POST over a connection of its own, to permitted networks only, without following redirects."""

    def __init__(self, hook: Webhook, settings: ServerSettings) -> None:
        self._url = urlsplit(hook.url.get_secret_value())
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="webhook")

    async def post(self, body: bytes, headers: dict[str, str]) -> None:
        sockets: list[socket.socket] = []
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(2 * _TIMEOUT_S):
                status = await loop.run_in_executor(self._thread, self._send, body, headers, sockets)
        except SourceError as error:
            raise NotDelivered(f"reason={error.reason.value}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NotDelivered(f"reason={type(error).__name__}") from None
        finally:
            for sock in sockets:  # the thread must not go on waiting for somebody who sends a byte now and then
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        if not 200 <= status < 300:
            raise NotDelivered(f"status={status}", refused=400 <= status < 500 and status not in _NOT_REFUSED)

    def _send(self, body: bytes, headers: dict[str, str], sockets: list[socket.socket]) -> int:
        settings, url = self._settings, self._url
        networks = Networks(
            None if settings.allow_networks is None else tuple(settings.allow_networks), tuple(settings.deny_networks)
        )
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if secure else 80)
        tls = tls_context(verify=True) if secure else None
        connection = http.client.HTTPConnection(host, port)
        with contextlib.closing(connection):
            connection.sock = connect(host, port, time.monotonic() + _TIMEOUT_S, networks, tls)
            connection.sock.settimeout(_TIMEOUT_S)
            sockets.append(connection.sock)
            connection.default_port = 443 if secure else 80  # for the Host header
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
