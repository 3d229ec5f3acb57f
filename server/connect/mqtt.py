"""Everything that MQTT is told: events at least once, newest detections at a bounded rate, states that are retained.

One task beside everything else. It reads what the server knows when the broker has taken what came before, so a slow
or dead broker holds nothing up and fills no queue; events wait in their store, behind a cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from server.addresses import split_credentials
from server.analytics.journal import Journal
from server.connect.discovery import OFFLINE, ONLINE, Retained, Shown, retained, topic
from server.ingest.backoff import Backoff
from server.store import StoreError

if TYPE_CHECKING:
    from server.settings import ServerSettings
    from server.stream import Stream

log = logging.getLogger("yolov9.mqtt")

CURSOR = "mqtt"
_TIMEOUT_S = 5.0
"""For one answer of the broker."""
_STATES_S = 1.0
_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerLost(Exception):
    """The connection failed or ended; the text holds no credentials."""


class Broker(Protocol):
    """A connection. All raise BrokerLost."""

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        """Returns when it is sent (QoS 0) or the broker has it (QoS 1)."""
        ...

    def messages(self, topic: str) -> AsyncIterator[bytes]:
        """What comes on `topic`. Raises when the connection ends, so it also watches it."""
        ...


Connect = Callable[[], contextlib.AbstractAsyncContextManager[Broker]]


class Mqtt:
    """`run` until cancelled. `streams` is read each time."""

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        streams: Callable[[], Mapping[str, Stream]],
        *,
        connect: Connect | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._streams = streams
        self._connect = connect or (lambda: connected(settings))
        self._sleep = sleep
        self._clock = clock
        self._backoff = Backoff(settings.backoff_initial_s, settings.backoff_max_s, chance)
        self._retained = Retained()
        self._told: dict[str, int] = {}
        """Stream -> number of the frame whose detections were told last."""

    async def run(self) -> None:
        lost = ""
        while True:
            since = self._clock()
            try:
                await self._hold_place()
                async with self._connect() as broker:
                    log.info("mqtt state=connected")
                    lost, since = "", self._clock()
                    await self._serve(broker)
            except* (BrokerLost, StoreError) as group:
                reason = str(_first(group))
            self._backoff.delivered(self._clock() - since)
            pause = self._backoff.next_s()
            if reason != lost:
                log.warning("mqtt state=lost retry_in_s=%.1f %s", pause, reason)
            lost = reason
            await self._sleep(pause)

    async def _hold_place(self) -> None:
        """Events that happen before the first connection are told, too."""
        if await self._journal.store.cursor(CURSOR) is None:
            await self._journal.store.move_cursor(CURSOR, self._journal.store.stored_number)

    async def _serve(self, broker: Broker) -> None:
        status = topic(self._settings.mqtt_prefix, "status")
        self._retained.forget()
        await broker.publish(status, ONLINE.encode(), qos=1, retain=True)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(broker))
                group.create_task(self._tell_events(broker))
                group.create_task(self._tell_states(broker))
                if self._settings.mqtt_detections_per_s:
                    group.create_task(self._tell_detections(broker, 1 / self._settings.mqtt_detections_per_s))
        except asyncio.CancelledError:  # an orderly end: the broker drops the last will
            with contextlib.suppress(BrokerLost):
                await broker.publish(status, OFFLINE.encode(), qos=1, retain=True)
            raise

    async def _watch(self, broker: Broker) -> None:
        """Home Assistant was started anew: it wants everything again."""
        async for payload in broker.messages(topic(self._settings.mqtt_discovery_prefix, "status")):
            if payload == ONLINE.encode():
                self._retained.forget()

    async def _tell_events(self, broker: Broker) -> None:
        async with contextlib.aclosing(self._journal.follow(CURSOR)) as messages:  # type: ignore[type-var]
            async for message in messages:
                at = topic(self._settings.mqtt_prefix, message["stream"], "events")
                await broker.publish(at, _json(message), qos=1, retain=False)

    async def _tell_states(self, broker: Broker) -> None:
        settings = self._settings
        discovery_prefix = settings.mqtt_discovery_prefix if settings.mqtt_discovery else None
        while True:
            wanted = retained(map(_shown, self._streams().values()), settings.mqtt_prefix, discovery_prefix)
            for at, payload in self._retained.changes(wanted):
                await broker.publish(at, payload, qos=1, retain=True)
                self._retained.told(at, payload)
            await self._sleep(_STATES_S)

    async def _tell_detections(self, broker: Broker, pause_s: float) -> None:
        """The newest frame of each stream, if it is another one than last time."""
        while True:
            for stream_id, stream in list(self._streams().items()):
                result = next(iter(stream.recent(1)), None)
                if result is not None and self._told.get(stream_id) != result["seq"]:
                    self._told[stream_id] = result["seq"]
                    at = topic(self._settings.mqtt_prefix, stream_id, "detections")
                    await broker.publish(at, _json(result), qos=0, retain=False)
            self._told = {stream_id: seq for stream_id, seq in self._told.items() if stream_id in self._streams()}
            await self._sleep(pause_s)


@contextlib.asynccontextmanager
async def connected(settings: ServerSettings) -> AsyncIterator[Broker]:
    """A connection to the broker of `mqtt_url`, with a last will. BrokerLost."""
    import aiomqtt  # an extra

    assert settings.mqtt_url is not None
    bare, user, password = split_credentials(settings.mqtt_url.get_secret_value())
    parts = urlsplit(bare)
    client = aiomqtt.Client(
        parts.hostname or "",
        parts.port or _PORTS[parts.scheme],
        username=user,
        password=password,
        timeout=_TIMEOUT_S,
        keepalive=15,
        tls_context=ssl.create_default_context() if parts.scheme == "mqtts" else None,
        will=aiomqtt.Will(topic(settings.mqtt_prefix, "status"), OFFLINE, qos=1, retain=True),
    )
    try:
        async with client:
            yield _Connection(client)
    except (aiomqtt.MqttError, OSError) as error:
        raise BrokerLost(str(error)) from None


class _Connection:
    """Broker by aiomqtt."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        with _translated():
            await self._client.publish(topic, payload, qos=qos, retain=retain)

    async def messages(self, topic: str) -> AsyncIterator[bytes]:
        with _translated():
            await self._client.subscribe(topic)
            async for message in self._client.messages:
                yield message.payload


@contextlib.contextmanager
def _translated() -> Any:
    import aiomqtt

    try:
        yield
    except (aiomqtt.MqttError, OSError) as error:
        raise BrokerLost(str(error)) from None


def _shown(stream: Stream) -> Shown:
    areas = stream.analyst.areas
    return Shown(stream.id, stream.state, stream.analyst.tracks, areas.occupancy(), areas.crossings)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
