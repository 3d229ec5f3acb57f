"""Every frame of a stream is opened once and closed once, and the counts say so at any instant.

    received = completed + dropped{stage,reason} + in flight

`in_flight` counts the open entries; it is never worked out as a difference, so the equation is a check and not a
definition. Pure: no clock, no locks, no metrics. One ledger belongs to one stream and is used by one thread. It knows
seq numbers only, so that it outlives the camera's process, its connections and the model.

Whatever does not fit (a frame opened twice, closed twice, closed without having been opened) is a programming error:
LedgerError, and the ledger stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict


class LedgerError(Exception):
    """A frame was opened or closed against the rules. The message names the seq."""


class Snapshot(TypedDict):
    """A ledger as `GET /streams/{id}/ledger` gives it."""

    received: int
    completed: int
    in_flight: int
    dropped: dict[str, dict[str, int]]
    """stage -> reason -> frames"""


class Ledger:
    """All calls are O(1), but for `drop_all`, `open_seqs` (open entries) and `snapshot`, `balanced` (drop reasons)."""

    def __init__(self) -> None:
        self._open: dict[int, None] = {}  # an ordered set: oldest first
        self._last_seq = 0
        self.received = 0
        """Frames opened so far."""
        self.completed = 0
        """Frames that got a result."""
        self.dropped: dict[tuple[str, str], int] = {}
        """(stage, reason) -> frames closed without a result. Not to be changed from outside."""

    @property
    def in_flight(self) -> int:
        """Open entries, counted."""
        return len(self._open)

    @property
    def last_seq(self) -> int:
        """The highest seq opened so far, 0 before the first. A camera's next process starts above it."""
        return self._last_seq

    def is_open(self, seq: int) -> bool:
        return seq in self._open

    def open_seqs(self) -> list[int]:
        """The open entries, oldest first; a copy."""
        return list(self._open)

    def open(self, seq: int) -> None:
        """A frame has come in. Seqs rise strictly, gaps are allowed; they start at 1 or above."""
        if seq <= self._last_seq:
            raise LedgerError(f"seq {seq} opened after seq {self._last_seq}")
        self._last_seq = seq
        self._open[seq] = None
        self.received += 1

    def complete(self, seq: int) -> None:
        """The frame has its result."""
        self._close(seq)
        self.completed += 1

    def drop(self, seq: int, stage: str, reason: str) -> None:
        """The frame ends without a result, in room `stage` (ingest, batching, inference) because of `reason`."""
        self._close(seq)
        key = (stage, reason)
        self.dropped[key] = self.dropped.get(key, 0) + 1

    def drop_all(self, stage: str, reason: str, seqs: Iterable[int] | None = None) -> list[int]:
        """Drop the open entries `seqs`, or all that are open; returns them. LedgerError, and nothing is dropped, if one
        of them is not open or is named twice."""
        closing = self.open_seqs() if seqs is None else list(seqs)
        if len(set(closing)) != len(closing):
            raise LedgerError("a seq was named twice to be dropped")
        for seq in closing:
            if seq not in self._open:
                raise LedgerError(self._why_not_open(seq))
        for seq in closing:
            self.drop(seq, stage, reason)
        return closing

    def snapshot(self) -> Snapshot:
        """All counts of one instant; a copy."""
        dropped: dict[str, dict[str, int]] = {}
        for (stage, reason), count in self.dropped.items():
            dropped.setdefault(stage, {})[reason] = count
        return {
            "received": self.received,
            "completed": self.completed,
            "in_flight": self.in_flight,
            "dropped": dropped,
        }

    def balanced(self) -> bool:
        """Whether every frame that came in is in exactly one place. False means a bug in this module."""
        return self.received == self.completed + sum(self.dropped.values()) + self.in_flight

    def _close(self, seq: int) -> None:
        try:
            del self._open[seq]
        except KeyError:
            raise LedgerError(self._why_not_open(seq)) from None

    def _why_not_open(self, seq: int) -> str:
        return f"seq {seq} is not open ({'closed or skipped before' if seq <= self._last_seq else 'never opened'})"
