"""Streams on disk: kept, private, and errors that are told apart from answers."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from server import store as store_module
from server.analytics.shapes import Zone
from server.store import Store, StoreError
from server.streams import StreamDefinition

SECRET = "s3cr3t"


def definition(stream_id: str, **fields: object) -> StreamDefinition:
    return StreamDefinition.model_validate({"id": stream_id, "url": "rtsp://h.example/x"} | fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "streams.sqlite"


async def test_kept_over_a_restart(path: Path) -> None:
    store = Store(path)
    first = definition(
        "b", password=SECRET, zones=[Zone(name="ö", points=[[1, 0.5], [0, 1], [0, 0]])], classes=["person"]
    )
    await store.put(first)
    await store.put(definition("a"))
    await store.put(definition("c"))
    await store.put(definition("a", max_fps=5.0))
    await store.delete("c")
    await store.delete("never there")
    await store.close()
    await store.close()
    again = Store(path)
    assert await again.load() == [definition("a", max_fps=5.0), first]
    assert (await again.load())[1].password == SecretStr(SECRET)
    await again.close()


async def test_survives_without_being_closed(path: Path) -> None:
    """As after kill -9: what was acknowledged is there."""
    store = Store(path)
    await store.put(definition("a"))
    reader = Store(path)
    assert [d.id for d in await reader.load()] == ["a"]
    await reader.close()
    await store.close()


async def test_readable_by_the_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(path)
        await store.put(definition("a", password=SECRET))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = list(path.parent.iterdir())
    assert {f.name for f in files} == {"streams.sqlite", "streams.sqlite-wal", "streams.sqlite-shm"}
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    await store.close()


async def test_a_broken_row_names_itself_and_stops_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(path)
    await store.put(definition("good"))
    broken = {
        "not-json": "{",
        "not-a-definition": "[]",
        "bad-field": f'{{"id": "bad-field", "url": "x", "iou": 7, "password": "{SECRET}"}}',
        "other": '{"id": "another", "url": "x"}',
    }
    with sqlite3.connect(path) as connection:
        connection.executemany("INSERT INTO streams VALUES (?, ?)", broken.items())
    connection.close()
    with caplog.at_level(logging.ERROR, logger="yolov9.store"):
        assert [d.id for d in await store.load()] == ["good"]
    assert [r.stream for r in caplog.records] == sorted(broken)  # type: ignore[attr-defined]
    assert "bad iou" in caplog.text
    assert SECRET not in caplog.text
    await store.close()


async def test_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BUSY_S", 0.05)
    store = Store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked") as caught:
        await store.put(definition("a"))
    assert (caught.value.status, caught.value.code) == (503, "storage")
    other.execute("ROLLBACK")
    other.close()
    await store.put(definition("a"))
    assert [d.id for d in await store.load()] == ["a"]
    await store.close()


async def test_the_event_loop_goes_on_while_a_lock_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BUSY_S", 10.0)
    store = Store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    putting = asyncio.create_task(store.put(definition("a")))
    turns = 0
    async with asyncio.timeout(5):
        while turns < 100:
            await asyncio.sleep(0)
            turns += 1
    assert not putting.done()
    other.execute("ROLLBACK")
    other.close()
    await putting
    await store.close()


async def test_read_only_and_full(path: Path) -> None:
    store = Store(path)
    await store.put(definition("a"))
    await store._run(lambda c: c.execute("PRAGMA query_only = ON"))
    with pytest.raises(StoreError, match="readonly"):
        await store.delete("a")
    await store._run(lambda c: c.execute("PRAGMA query_only = OFF"))
    await store._run(lambda c: c.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(StoreError, match="full"):
        await store.put(definition("large", classes=["x" * 200] * 1000))
    assert "a" in [d.id for d in await store.load()]
    await store.close()


def test_damaged_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a data base at all, but a text of some length" * 100)
    with pytest.raises(StoreError, match=r"streams\.sqlite: file is not a database"):
        Store(path)


async def test_a_file_of_the_first_release_keeps_its_streams_and_learns_to_remember(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE streams (id TEXT PRIMARY KEY, definition TEXT NOT NULL)")
    connection.execute('INSERT INTO streams VALUES (\'door\', \'{"id": "door", "url": "rtsp://h/1"}\')')
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = Store(path)
    assert [definition.id for definition in await store.load()] == ["door"]
    assert await store.recall("model") is None
    await store.remember("model", "a")
    await store.remember("model", "b")
    assert await store.recall("model") == "b"
    await store.close()


def test_a_newer_release_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        Store(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        Store(tmp_path / "file" / "streams.sqlite")
