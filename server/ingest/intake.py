"""Between the thread that receives and the one that decodes: a queue that never grows without bound.

If the decoder of a live stream falls behind, the frames that wait grow older than anyone would want to see. Then all up
to the newest keyframe are given up at once, or, where none waits, all of them and those to come until one does. Single
frames can't be left out of a coded stream, and a decoder that catches up within a second or two needs no help.
Files that have to wait for the server make their reader wait instead.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace

from server.ingest.source import AccessUnit, StreamInfo

MAX_UNITS = 128
MAX_AGE_S = 2.0
MAX_BYTES = 32 << 20
FILE_UNITS = 4
"""Frames that a file is read ahead: enough to keep the decoder busy."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A connection begins. Frames behind it belong to it."""

    info: StreamInfo


@dataclass(frozen=True, slots=True)
class End:
    """A connection is over."""

    finished: bool
    """In order, at the end of a file: what is in the decoder is to be shown."""


@dataclass(frozen=True, slots=True)
class Unit:
    seq: int
    unit: AccessUnit
    after_gap: bool = False
    """Frames before it were given up."""


Item = Begin | End | Unit


class Intake:
    """One thread puts, one gets."""

    def __init__(self, max_units: int = MAX_UNITS, max_age_s: float = MAX_AGE_S, max_bytes: int = MAX_BYTES) -> None:
        self._max_units = max_units
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._items: deque[Item] = deque()
        self._units = 0
        self._bytes = 0
        self._skipping = False
        self._changed = threading.Condition()

    def put(self, item: Item, *, may_give_up: bool = True) -> list[int]:
        """Add an item; never waits. Returns the seqs of the frames that were given up for it, itself included."""
        given_up: list[int] = []
        with self._changed:
            if not isinstance(item, Unit):
                self._skipping = False
                self._items.append(item)
            elif may_give_up:
                given_up = self._put_unit(item)
            else:
                self._append(item)
            self._changed.notify_all()
        return given_up

    def wait_for_room(self, timeout_s: float) -> bool:
        """For files that lose no frame: whether fewer than `FILE_UNITS` wait, at the latest after the time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._units < FILE_UNITS, timeout_s)

    def get(self, timeout_s: float) -> Item | None:
        """The oldest item, or None if there is none within the time-out."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, timeout_s):
                return None
            item = self._items.popleft()
            if isinstance(item, Unit):
                self._units -= 1
                self._bytes -= len(item.unit.data)
                self._changed.notify_all()
            return item

    def clear(self) -> list[int]:
        """Take everything out; returns the seqs of the frames."""
        with self._changed:
            seqs = [item.seq for item in self._items if isinstance(item, Unit)]
            self._items.clear()
            self._units = self._bytes = 0
            self._changed.notify_all()
            return seqs

    def _append(self, item: Unit) -> None:
        self._items.append(item)
        self._units += 1
        self._bytes += len(item.unit.data)

    def _put_unit(self, item: Unit) -> list[int]:
        if self._skipping:
            if not _clean_start(item):
                return [item.seq]
            self._skipping = False
            item = replace(item, after_gap=True)
        self._append(item)
        now = item.unit.arrived_at
        units = [i for i in self._items if isinstance(i, Unit)] if self._is_behind(now) else []
        return self._give_up(units, now) if units else []

    def _is_behind(self, now: float) -> bool:
        if self._units > self._max_units or self._bytes > self._max_bytes:
            return True
        oldest = next(i for i in self._items if isinstance(i, Unit))
        return now - oldest.unit.arrived_at > self._max_age_s

    def _give_up(self, units: list[Unit], now: float) -> list[int]:
        """Keep what begins with the newest clean keyframe, if that brings us back within the bounds."""
        start = max((n for n, unit in enumerate(units) if _clean_start(unit)), default=len(units))
        self._units = len(units) - start
        self._bytes = sum(len(unit.unit.data) for unit in units[start:])
        if start == 0 or (self._units and self._is_late(units[start], now)):
            start, self._units, self._bytes = len(units), 0, 0
        self._skipping = start == len(units)
        gone = {unit.seq for unit in units[:start]}
        first = None if self._skipping else units[start].seq
        self._items = deque(
            replace(item, after_gap=True) if isinstance(item, Unit) and item.seq == first else item
            for item in self._items
            if not (isinstance(item, Unit) and item.seq in gone)
        )
        return sorted(gone)

    def _is_late(self, unit: Unit, now: float) -> bool:
        return now - unit.unit.arrived_at > self._max_age_s or self._bytes > self._max_bytes


def _clean_start(item: Unit) -> bool:
    return item.unit.keyframe and not item.unit.damaged
