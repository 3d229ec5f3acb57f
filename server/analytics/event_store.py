"""Events in SQLite: what happened, in order, and the lives that it adds up to, with their pictures.

A data base of its own, beside the one of the streams: it grows, is written all the time, and may be lost without a
camera being lost. Everything is put into a bounded queue and written by one thread, many at a time; while the disk
fails the queue waits and is tried again, and what does not fit any more is lost from its old end, and counted. So
frames never wait for a disk.

Every message has a number that rises over restarts. Whoever must miss none (webhooks, MQTT) reads `changes` after the
number it has done with, and keeps that number here under its name: at least once, however long it was away, as far as
events are kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from server.results import EventMessage, TrackEvent
from server.store import StoreError

log = logging.getLogger("yolov9.events")

T = TypeVar("T")

_BUSY_S = 2.0
_WAITING = 10_000
"""Messages and pictures that wait for the disk, at most ..."""
_WAITING_BYTES = 64 << 20
"""... and so many bytes of pictures."""
_RETRY_S = 1.0
_TIDY_S = 60.0
"""Between two looks at what is too old or too much."""
_TIDY_STEP = 200
"""Events that are removed in one go while the data base is too large."""
_SCHEMA = (
    """
    CREATE TABLE events (
        id TEXT PRIMARY KEY, stream TEXT NOT NULL, class TEXT NOT NULL, active INTEGER NOT NULL,
        first_unix REAL NOT NULL, last_unix REAL NOT NULL, record TEXT NOT NULL
    );
    CREATE INDEX events_by_stream ON events (stream, id);
    CREATE TABLE changes (
        number INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL REFERENCES events ON DELETE CASCADE,
        kind TEXT NOT NULL, name TEXT, message TEXT NOT NULL
    );
    CREATE INDEX changes_by_event ON changes (event, kind, name);
    CREATE TABLE snapshots (event TEXT PRIMARY KEY REFERENCES events ON DELETE CASCADE, jpeg BLOB NOT NULL);
    CREATE TABLE cursors (name TEXT PRIMARY KEY, number INTEGER NOT NULL);
    """,
)
"""What each version added to the one before."""


class StoreMetrics(Protocol):
    def event_store_error(self) -> None: ...
    def events_lost(self, count: int) -> None: ...


class EventFilter(NamedTuple):
    """Which events are asked for; None: all."""

    streams: frozenset[str] | None = None
    classes: frozenset[str] | None = None
    zone: str | None = None
    """Those that have been in this zone."""
    line: str | None = None
    kind: str | None = None
    """Those to which this happened."""
    after: float | None = None
    """Unix seconds: last seen then or later."""
    before: float | None = None
    """First seen then or earlier."""
    older_than: str | None = None
    """Id of an event: the page after it."""


class _Snapshot(NamedTuple):
    event_id: str
    jpeg: bytes


class EventStore:
    """Opens or creates `path`, None for a data base in memory; StoreError if that fails.

    Belongs to one event loop: `put` is called there, everything else is awaited there.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        metrics: StoreMetrics,
        max_age_s: float,
        max_bytes: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._metrics = metrics
        self.limit(max_age_s, max_bytes)
        self._wall_clock = wall_clock
        self._waiting: deque[EventMessage | _Snapshot] = deque()
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._stored = asyncio.Event()
        self._tidied_at = float("-inf")
        self._failing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        try:
            self._connection = self._thread.submit(self._translated, self._open).result()
            self.last_number: int = self._thread.submit(self._translated, self._finish_lives).result()
        except BaseException:
            self._thread.shutdown()
            raise
        self.stored_number = self.last_number
        """Number of the newest message that is on disk."""

    def limit(self, max_age_s: float, max_bytes: int) -> None:
        """How long events are kept and how large the data base may be, from the next look at it on."""
        self._max_age_s, self._max_bytes = max_age_s, max_bytes

    # Writing.

    def put(self, message: EventMessage) -> None:
        """To be written soon. Never waits, never fails."""
        self._put(message)

    def put_snapshot(self, event_id: str, jpeg: bytes) -> None:
        """The event's picture, in place of the one before."""
        self._put(_Snapshot(event_id, jpeg))

    async def flush(self) -> None:
        """Until what has been put so far is on disk, or the disk has failed once."""
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=_BUSY_S + _RETRY_S)

    async def close(self) -> None:
        """What waits is written, if the disk takes it."""
        await self.flush()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        try:
            await self._run(lambda c: c.close())
        except RuntimeError:  # closed before
            return
        self._thread.shutdown(wait=False)

    def _put(self, item: EventMessage | _Snapshot) -> None:
        self._waiting.append(item)
        self._waiting_bytes += _size(item)
        lost = 0
        while len(self._waiting) > _WAITING or self._waiting_bytes > _WAITING_BYTES:
            self._waiting_bytes -= _size(self._waiting.popleft())
            lost += 1
        if lost:
            self._metrics.events_lost(lost)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._waiting:
            batch = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            try:
                await self._run(lambda c, batch=batch: self._write(c, batch))  # type: ignore[misc]
            except (StoreError, RuntimeError) as error:
                self._metrics.event_store_error()
                if not self._failing:
                    log.error("events are not stored: %s", error)
                self._failing = True
                self._waiting.extendleft(reversed(batch))
                self._waiting_bytes += sum(map(_size, batch))
                await asyncio.sleep(_RETRY_S)
                continue
            if self._failing:
                log.info("events are stored again")
            self._failing = False
            numbers = [item["id"] for item in batch if not isinstance(item, _Snapshot)]
            self.stored_number = max([self.stored_number, *numbers])
            self._stored.set()
            self._stored = asyncio.Event()

    # Following.

    async def beyond(self, number: int) -> None:
        """Until a message with a higher number is on disk."""
        while self.stored_number <= number:
            await self._stored.wait()

    async def changes(self, after: int, limit: int = 100) -> list[EventMessage]:
        """Messages with higher numbers than `after`, in order."""
        query = "SELECT message FROM changes WHERE number > ? ORDER BY number LIMIT ?"
        return await self._messages(query, (after, limit))

    async def history(self, event_id: str) -> list[EventMessage]:
        """All that happened to one event, in order."""
        return await self._messages("SELECT message FROM changes WHERE event = ? ORDER BY number", (event_id,))

    async def cursor(self, name: str) -> int | None:
        """The number that `name` has done with; None if it never said."""
        row = await self._run(lambda c: c.execute("SELECT number FROM cursors WHERE name = ?", (name,)).fetchone())
        return None if row is None else int(row[0])

    async def move_cursor(self, name: str, number: int) -> None:
        """On disk when this returns."""
        await self._run(lambda c: c.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (name, number)))

    # Asking.

    async def events(self, wanted: EventFilter, limit: int) -> list[TrackEvent]:
        """The newest first."""
        where, values = _conditions(wanted)
        query = f"SELECT record FROM events WHERE {where} ORDER BY id DESC LIMIT ?"
        rows = await self._run(lambda c: c.execute(query, (*values, limit)).fetchall())
        return [json.loads(record) for (record,) in rows]

    async def event(self, event_id: str) -> TrackEvent | None:
        query = "SELECT record FROM events WHERE id = ?"
        row = await self._run(lambda c: c.execute(query, (event_id,)).fetchone())
        return None if row is None else json.loads(row[0])

    async def snapshot(self, event_id: str) -> bytes | None:
        query = "SELECT jpeg FROM snapshots WHERE event = ?"
        row = await self._run(lambda c: c.execute(query, (event_id,)).fetchone())
        return None if row is None else row[0]

    async def delete(self, event_id: str) -> bool:
        """With its picture and its messages. False if there is no such event."""
        count = await self._run(lambda c: c.execute("DELETE FROM events WHERE id = ?", (event_id,)).rowcount)
        return bool(count)

    async def _messages(self, query: str, values: Sequence[object]) -> list[EventMessage]:
        rows = await self._run(lambda c: c.execute(query, values).fetchall())
        return [json.loads(message) for (message,) in rows]

    # In the store's thread.

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._translated, lambda: work(self._connection))

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path or ":memory:", timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table; the file can shrink
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last events, never the file
            connection.execute("PRAGMA foreign_keys = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(_SCHEMA):
                raise StoreError(f"{self._path}: was written by a newer release (schema {version})")
            for number, step in enumerate(_SCHEMA[version:], start=version + 1):
                connection.executescript(f"BEGIN IMMEDIATE; {step}; PRAGMA user_version = {number}; COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _finish_lives(self) -> int:
        """Events that were alive when the server ended have ended with it. Returns the newest message's number."""
        connection = self._connection
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
        number = 0 if row is None else int(row[0])
        ended: list[EventMessage | _Snapshot] = []
        for (record,) in connection.execute("SELECT record FROM events WHERE active ORDER BY id").fetchall():
            event: TrackEvent = json.loads(record)
            event["state"] = "ended"
            number += 1
            ended.append(
                {
                    "type": "event", "id": number, "stream": event["stream"], "kind": "end", "at": event["last_seen"],
                    "name": None, "direction": None, "seconds": None, "event": event,
                }
            )  # fmt: skip
        self._write(connection, ended)
        return number

    def _write(self, connection: sqlite3.Connection, batch: Sequence[EventMessage | _Snapshot]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for item in batch:
                if isinstance(item, _Snapshot):
                    connection.execute(
                        "INSERT OR REPLACE INTO snapshots SELECT ?, ? WHERE EXISTS (SELECT 1 FROM events WHERE id = ?)",
                        (item.event_id, item.jpeg, item.event_id),
                    )
                else:
                    _write_message(connection, item)
            removed = self._tidy(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if removed:
            log.info("%d events removed, by age or size", removed)
            connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page only

    def _tidy(self, connection: sqlite3.Connection) -> int:
        """Remove what is too old, and the oldest while the data base is too large. Returns how many events."""
        now = self._wall_clock()
        if now - self._tidied_at < _TIDY_S:
            return 0
        self._tidied_at = now
        removed = connection.execute("DELETE FROM events WHERE last_unix < ?", (now - self._max_age_s,)).rowcount
        oldest = f"SELECT id FROM events WHERE NOT active ORDER BY id LIMIT {_TIDY_STEP}"
        while _used_bytes(connection) > self._max_bytes:
            count = connection.execute(f"DELETE FROM events WHERE id IN ({oldest})").rowcount
            if not count:
                break
            removed += count
        return removed


def _write_message(connection: sqlite3.Connection, message: EventMessage) -> None:
    event = message["event"]
    last = _unix(event["last_seen"])
    connection.execute(
        """
        INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
            active = excluded.active, last_unix = excluded.last_unix, record = excluded.record
        """,
        (
            event["id"], event["stream"], event["class"], event["state"] == "active", _unix(event["first_seen"]), last,
            json.dumps(event),
        ),
    )  # fmt: skip
    connection.execute(
        "INSERT INTO changes VALUES (?, ?, ?, ?, ?)",
        (message["id"], event["id"], message["kind"], message["name"], json.dumps(message)),
    )


def _conditions(wanted: EventFilter) -> tuple[str, list[object]]:
    """SQL and its values."""
    parts, values = ["1"], list[object]()

    def add(condition: str, *given: object) -> None:
        parts.append(condition)
        values.extend(given)

    for column, chosen in (("stream", wanted.streams), ("class", wanted.classes)):
        if chosen is not None:
            add(f"{column} IN (SELECT value FROM json_each(?))", json.dumps(sorted(chosen)))
    happened = "EXISTS (SELECT 1 FROM changes WHERE changes.event = events.id AND changes.kind = ?"
    if wanted.zone is not None:
        add(f"{happened} AND changes.name = ?)", "zone_enter", wanted.zone)
    if wanted.line is not None:
        add(f"{happened} AND changes.name = ?)", "line_cross", wanted.line)
    if wanted.kind is not None:
        add(f"{happened})", wanted.kind)
    if wanted.after is not None:
        add("last_unix >= ?", wanted.after)
    if wanted.before is not None:
        add("first_unix <= ?", wanted.before)
    if wanted.older_than is not None:
        add("id < ?", wanted.older_than)
    return " AND ".join(parts), values


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _size(item: EventMessage | _Snapshot) -> int:
    return len(item.jpeg) if isinstance(item, _Snapshot) else 0


def _unix(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339).timestamp()
