"""The MQTT task against a broker of our own making: outages, what is told again, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.analytics.event_store import EventStore
from server.analytics.journal import Journal
from server.connect.mqtt import CURSOR, Broker, BrokerLost, Mqtt
from server.delivery.hub import Hub
from server.metrics import Metrics
from server.settings import ServerSettings, SettingsError, load_settings

pytest.importorskip("aiomqtt", reason="the extra `mqtt` is not installed")

URL = "mqtt://ha:s3cret-word@127.0.0.1:1883"


class FakeBroker:
    """Takes `room` events, then the connection is lost; `down`: takes no connection."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes, int, bool]] = []
        self.down = False
        self.room = 1_000_000
        self.connections = 0
        self.born = asyncio.Queue[bytes]()

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Broker]:
        if self.down:
            raise BrokerLost("refused")
        self.connections += 1
        yield self

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        await asyncio.sleep(0)
        if topic.endswith("/events"):
            if not self.room:
                self.down = True
                raise BrokerLost("gone")
            self.room -= 1
        self.got.append((topic, payload, qos, retain))

    async def messages(self, topic: str) -> AsyncIterator[bytes]:
        assert topic == "homeassistant/status"
        while True:
            yield await self.born.get()

    def on(self, topic: str) -> list[bytes]:
        return [payload for at, payload, _, _ in self.got if at == topic]

    def numbers(self) -> list[int]:
        return [json.loads(payload)["id"] for payload in self.on("yolov9/yard/events")]


class House:
    def __init__(self, tmp_path: Path) -> None:
        metrics = Metrics()
        store = EventStore(tmp_path / "e.sqlite", metrics=metrics, max_age_s=1e9, max_bytes=1 << 30)
        feed = Hub(10, 1 << 20, metrics=metrics, clock=lambda: 0.0)
        self.journal = Journal(store, feed, metrics)
        self.broker = FakeBroker()
        self.slept: list[float] = []
        self.result = {"type": "result", "stream": "yard", "seq": 1}
        areas = SimpleNamespace(occupancy=lambda: {("mat", "person"): 1}, crossings={})
        analyst = SimpleNamespace(areas=areas, tracks=1)
        stream = SimpleNamespace(id="yard", state="running", analyst=analyst, recent=lambda n: [self.result])
        settings = ServerSettings(mqtt_url=URL)
        streams: Any = {"yard": stream}
        self.mqtt = Mqtt(
            settings, self.journal, lambda: streams, connect=self.broker.connect, sleep=self.sleep,
            clock=lambda: 0.0, chance=lambda: 0.0,
        )  # fmt: skip

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.001)

    async def put(self, *numbers: int) -> None:
        for number in numbers:
            self.journal.store.put(message(number))
        await self.journal.store.flush()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    yield built
    await built.journal.close()


def message(number: int) -> Any:
    at = "2026-01-01T00:00:00.000Z"
    event = {
        "id": f"{number:017x}", "stream": "yard", "track_id": 1, "class": "person", "state": "active",
        "first_seen": at, "last_seen": at, "zones": [], "lines": [],
    }  # fmt: skip
    return {"type": "event", "id": number, "stream": "yard", "kind": "new", "at": at, "name": None, "event": event}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(house: House) -> AsyncIterator[None]:
    task = asyncio.ensure_future(house.mqtt.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_no_event_is_lost_while_the_broker_is_away(house: House) -> None:
    house.broker.down = True
    async with running(house):
        await until(lambda: len(house.slept) >= 3)
        assert house.slept[:3] == [1.0, 2.0, 4.0]  # seconds, by backoff_initial_s
        await house.put(1, 2, 3, 4)
        house.broker.down, house.broker.room = False, 2
        await until(lambda: house.broker.down)
        assert house.broker.numbers() == [1, 2]
        house.broker.down, house.broker.room = False, 1_000_000
        await until(lambda: house.broker.numbers() == [1, 2, 3, 4])
        await house.put(5)
        await until(lambda: house.broker.numbers() == [1, 2, 3, 4, 5])
    assert house.broker.connections == 2
    assert {(qos, retain) for at, _, qos, retain in house.broker.got if at.endswith("/events")} == {(1, False)}
    assert (await house.journal.store.cursor(CURSOR)) in (4, 5)


async def test_states_are_retained_told_once_and_again_for_a_new_home_assistant(house: House) -> None:
    occupancy = "yolov9/yard/zones/mat/person"
    async with running(house):
        await until(lambda: house.slept.count(1.0) > 6)
        assert house.broker.on(occupancy) == [b"1"]
        assert house.broker.on("yolov9/yard/detections") == [json.dumps(house.result, separators=(",", ":")).encode()]
        house.result = {**house.result, "seq": 2}
        house.broker.born.put_nowait(b"online")
        await until(
            lambda: len(house.broker.on(occupancy)) == 2 and len(house.broker.on("yolov9/yard/detections")) == 2
        )
        assert all(retain for at, _, _, retain in house.broker.got if at == occupancy)
    assert house.broker.on("yolov9/status") == [b"online", b"offline"]


@pytest.mark.parametrize(
    "url", ["http://host", "mqtt://[::1", "mqtt://", "mqtt://host:0", "mqtt://host:99999", "mqtt://u:pw@host:1/x"]
)
def test_a_useless_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="mqtt_url: must be") as caught:
        load_settings(None, {"mqtt_url": url})
    assert ":pw@" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"mqtt_url: .*yolov9-server\[mqtt\]"):
        load_settings(None, {"mqtt_url": URL})


def test_the_address_is_masked() -> None:
    assert "s3cret-word" not in repr(ServerSettings(mqtt_url=URL))
