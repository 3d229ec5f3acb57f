"""What outlives the server, in SQLite: streams, one row for each, as JSON, and which model is active.

The file holds the cameras' passwords and is readable by its owner alone. Every call is one short transaction in a
thread of the store's own, so that a slow disk never holds up the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from server.delivery.ports import ServerError
from server.streams import StreamDefinition, reveal

log = logging.getLogger("yolov9.store")

T = TypeVar("T")

SCHEMA_VERSION = 2
_BUSY_S = 2.0
"""How long a lock of another process (a backup, an sqlite3 shell) is waited for."""
_LEAST_FREE_BYTES = 1 << 20
"""Less free space than this is none."""
_SCHEMA = (
    "CREATE TABLE streams (id TEXT PRIMARY KEY, definition TEXT NOT NULL)",
    "CREATE TABLE memory (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
"""What each version added to the one before."""


class StoreError(ServerError):
    """The data base cannot be used: locked, read-only, full, damaged. Names the file, never its content."""

    status, code = 503, "storage"


class Store:
    """Opens or creates `path` and its folder; StoreError if that fails. Everything else is asynchronous.

    Calls are carried out in the order in which they are made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A connection belongs to the thread that made it: one thread, one connection.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            self._connection = self._thread.submit(self._translated, self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def load(self) -> list[StreamDefinition]:
        """All streams, in the order of their ids. A row that cannot be read is logged by its id and left out."""
        rows = await self._run(lambda c: c.execute("SELECT id, definition FROM streams ORDER BY id").fetchall())
        definitions = []
        for stream_id, definition in rows:
            try:
                loaded = StreamDefinition.model_validate(json.loads(definition))
                if loaded.id != stream_id:
                    raise ValueError(f"its definition is of stream {loaded.id!r}")
            except ValidationError as error:
                fields = ", ".join(".".join(map(str, e["loc"])) or "definition" for e in error.errors())
                log.error("stream=%s not loaded: bad %s", stream_id, fields, extra={"stream": stream_id})
            except ValueError as error:
                log.error("stream=%s not loaded: %s", stream_id, error, extra={"stream": stream_id})
            else:
                definitions.append(loaded)
        return definitions

    async def put(self, definition: StreamDefinition) -> None:
        """Insert or replace; on disk when this returns."""
        row = (definition.id, json.dumps(reveal(definition, exclude_none=True)))
        await self._run(lambda c: c.execute("INSERT OR REPLACE INTO streams VALUES (?, ?)", row))

    async def delete(self, stream_id: str) -> None:
        """Nothing happens if there is no such stream."""
        await self._run(lambda c: c.execute("DELETE FROM streams WHERE id = ?", (stream_id,)))

    async def recall(self, key: str) -> str | None:
        """What was remembered under this name."""
        rows = await self._run(lambda c: c.execute("SELECT value FROM memory WHERE key = ?", (key,)).fetchall())
        return rows[0][0] if rows else None

    async def remember(self, key: str, value: str) -> None:
        """On disk when this returns."""
        await self._run(lambda c: c.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (key, value)))

    async def check(self) -> None:
        """StoreError if nothing could be written now: locked for long, read-only, or the disk is full."""
        await self._run(self._try_to_write)

    async def close(self) -> None:
        """After the calls made so far. May be called again."""
        try:
            await self._run(lambda c: c.close())
        except RuntimeError:  # the thread is gone: closed before
            return
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._translated, lambda: work(self._connection))

    def _try_to_write(self, connection: sqlite3.Connection) -> None:
        """Takes the lock of a writer and gives it back: nothing is written, so that nothing wears out."""
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        place = os.statvfs(self._path.parent)
        if place.f_bavail * place.f_frsize < _LEAST_FREE_BYTES:
            raise StoreError(f"{self._path}: the disk is full")

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite gives its -wal and -shm files the permissions of the data base.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        os.chmod(self._path, 0o600)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a stream that was answered with 201 survives a power cut
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(f"{self._path}: was written by a newer release (schema {version}, known {SCHEMA_VERSION})")
        for step in _SCHEMA[version:]:
            connection.execute(step)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
