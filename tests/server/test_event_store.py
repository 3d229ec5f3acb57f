"""Events on disk: in order, found again, bounded, and never in anybody's way."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from server.analytics import event_store as module
from server.analytics.event_store import EventFilter, EventStore
from server.outcome import timestamp
from server.results import EventMessage
from server.store import StoreError

NOW = 1_800_000_000.0


class Counts:
    def __init__(self) -> None:
        self.errors = self.lost = 0
        self.twice = asyncio.Event()
        """Two errors have happened."""

    def event_store_error(self) -> None:
        self.errors += 1
        if self.errors == 2:
            self.twice.set()

    def events_lost(self, count: int) -> None:
        self.lost += count


def message(number: int, event: str = "a", kind: str = "new", **more: Any) -> EventMessage:
    """About event `event`, which is made up of what is given."""
    fields = {"stream": "door", "class": "person", "state": "active", "first": NOW, "last": NOW} | more
    return {
        "type": "event", "id": number, "stream": fields["stream"], "kind": kind, "at": timestamp(fields["last"]),
        "name": fields.get("name"), "direction": None, "seconds": None,
        "event": {
            "id": event, "stream": fields["stream"], "track_id": 1, "class": fields["class"], "state": fields["state"],
            "first_seen": timestamp(fields["first"]), "last_seen": timestamp(fields["last"]), "confidence": 0.5,
            "box": [1.0, 2.0, 3.0, 4.0], "seq": 1, "width": 640, "height": 360, "zones": [], "lines": [],
            "snapshot": False,
        },
    }  # type: ignore[typeddict-item]  # fmt: skip


def open_store(path: Path | None, counts: Counts | None = None, **more: Any) -> EventStore:
    options = {"max_age_s": 1e6, "max_bytes": 1 << 30, "wall_clock": lambda: NOW} | more
    return EventStore(path, metrics=counts or Counts(), **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "events.sqlite"


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[EventStore]:
    made = open_store(path)
    yield made
    await made.close()


async def put(store: EventStore, *messages: EventMessage) -> None:
    for one in messages:
        store.put(one)
    await store.flush()


async def test_what_happened_is_found_in_order(store: EventStore) -> None:
    await put(store, message(1), message(2, "b"), message(3, kind="end", state="ended"))
    assert [m["id"] for m in await store.changes(0)] == [1, 2, 3]
    assert [m["id"] for m in await store.changes(1, limit=1)] == [2]
    assert [m["kind"] for m in await store.history("a")] == ["new", "end"]
    event = await store.event("a")
    assert event is not None
    assert event["state"] == "ended"
    assert await store.event("z") is None
    assert store.stored_number == 3


async def test_only_the_owner_can_read_it(store: EventStore, path: Path) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_filters_and_pages(store: EventStore) -> None:
    await put(
        store,
        message(1, "01"), message(2, "02", stream="yard"), message(3, "03", **{"class": "car"}),
        message(4, "04", first=NOW + 100, last=NOW + 200), message(5, "01", "zone_enter", name="door"),
        message(6, "03", "line_cross", name="gate", **{"class": "car"}),
        message(7, "02", "zone_leave", name="door", stream="yard"),
    )  # fmt: skip

    async def found(limit: int = 10, **wanted: Any) -> list[str]:
        return [event["id"] for event in await store.events(EventFilter(**wanted), limit)]

    assert await found() == ["04", "03", "02", "01"]
    assert await found(2) == ["04", "03"]
    assert await found(2, older_than="03") == ["02", "01"]
    assert await found(streams=frozenset({"yard"})) == ["02"]
    assert await found(streams=frozenset()) == []
    assert await found(classes=frozenset({"car"})) == ["03"]
    assert await found(zone="door") == ["01"]
    assert await found(line="gate") == ["03"]
    assert await found(kind="zone_leave") == ["02"]
    assert await found(after=NOW + 150) == ["04"]
    assert await found(before=NOW + 50) == ["03", "02", "01"]
    assert await found(zone="door", kind="line_cross") == []


async def test_pictures_are_replaced_and_go_with_their_event(store: EventStore) -> None:
    await put(store, message(1))
    store.put_snapshot("a", b"first")
    store.put_snapshot("a", b"second")
    store.put_snapshot("nobody", b"x")
    await store.flush()
    assert await store.snapshot("a") == b"second"
    assert await store.snapshot("nobody") is None
    assert await store.delete("a")
    assert not await store.delete("a")
    assert await store.snapshot("a") is None
    assert await store.changes(0) == []


async def test_a_restart_ends_what_was_alive_and_numbers_go_on(path: Path) -> None:
    store = open_store(path)
    await put(store, message(1), message(2, "b", last=NOW + 5), message(3, kind="end", state="ended"))
    await store.move_cursor("mqtt", 2)
    await store.close()
    again = open_store(path)
    assert again.last_number == again.stored_number == 4
    (end,) = await again.changes(3)
    assert (end["kind"], end["event"]["id"], end["at"]) == ("end", "b", timestamp(NOW + 5))
    assert (await again.cursor("mqtt"), await again.cursor("webhooks")) == (2, None)
    await again.delete("b")
    await again.close()
    third = open_store(path)
    assert third.last_number == 4, "a number is not used again, even if its event is gone"
    await third.close()


async def test_who_waits_is_woken_when_it_is_on_disk(store: EventStore) -> None:
    waiting = asyncio.create_task(store.beyond(1))
    await put(store, message(1))
    assert not waiting.done()
    await put(store, message(2))
    await asyncio.wait_for(waiting, 10)


async def test_a_locked_data_base_costs_time_and_no_event(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_S", 0.05)
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    counts = Counts()
    store = open_store(path, counts)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store.put(message(1))
    async with asyncio.timeout(10):
        await counts.twice.wait()
    store.put(message(2))
    assert await store.changes(0) == [], "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait_for(store.beyond(1), 10)
    assert [m["id"] for m in await store.changes(0)] == [1, 2]
    assert counts.lost == 0
    await store.close()


async def test_what_cannot_be_stored_for_too_long_is_lost_from_the_old_end_and_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITING", 3)
    counts = Counts()
    store = open_store(path, counts)
    for number in range(1, 6):
        store.put(message(number))  # the writer has not had its turn yet
    assert counts.lost == 2
    await store.flush()
    assert [m["id"] for m in await store.changes(0)] == [3, 4, 5]
    monkeypatch.setattr(module, "_WAITING_BYTES", 10)
    store.put_snapshot("a", b"12345678")
    store.put_snapshot("a", b"12345678")
    assert counts.lost == 3
    await store.close()


async def test_too_old_is_removed(path: Path) -> None:
    now = NOW
    store = open_store(path, max_age_s=100, wall_clock=lambda: now)
    await put(store, message(1, "01", last=NOW - 90), message(2, "02", last=NOW))
    now = NOW + 61
    await put(store, message(3, "03", last=NOW))
    assert [event["id"] for event in await store.events(EventFilter(), 10)] == ["03", "02"]
    await store.close()


async def test_too_much_is_removed_from_the_old_end_and_the_file_shrinks(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_TIDY_STEP", 5)
    now = NOW
    store = open_store(path, max_bytes=400_000, wall_clock=lambda: now)
    for number in range(1, 41):
        store.put(message(number, f"{number:02}", kind="end", state="ended"))
        store.put_snapshot(f"{number:02}", bytes(20_000))
    store.put(message(41, "00", state="active"))
    await store.flush()
    now = NOW + 61
    await put(store, message(42, "99", kind="end", state="ended"))
    left = [event["id"] for event in await store.events(EventFilter(), 100)]
    assert left[0] == "99"
    assert left[-1] == "00", "what is still going on stays"
    assert 10 < len(left) < 25
    await store.close()
    assert os.stat(path).st_size < 500_000


def test_damaged_and_newer_files_are_refused_by_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a data base" * 100)
    with pytest.raises(StoreError, match=str(path)):
        open_store(path)
    path.unlink()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StoreError, match="newer release"):
        open_store(path)


async def test_closing_twice_is_closing_once(path: Path) -> None:
    store = open_store(path)
    await put(store, message(1))
    await store.close()
    await store.close()
