"""Which slots of the arena are free. The server gives them back; until then they are its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Slots:
    """Used by the thread that fills slots and the one that hears of freed ones."""

    def __init__(self, count: int, held: Iterable[tuple[int, int]] = ()) -> None:
        """`held`: (slot, seq) that the server still holds from a process before this one."""
        self._holder = dict(held)
        self._free = [slot for slot in range(count) if slot not in self._holder]
        self._changed = threading.Condition()

    def take(self, seq: int, timeout_s: float = 0.0) -> int | None:
        """A slot for this frame, or None if none comes free within the time-out."""
        with self._changed:
            if not self._free and (timeout_s <= 0 or not self._changed.wait_for(lambda: self._free, timeout_s)):
                return None
            slot = self._free.pop()
            self._holder[slot] = seq
            return slot

    def free(self, slot: int, seq: int) -> bool:
        """Give a slot back. False, and nothing changes, if this frame does not hold it."""
        with self._changed:
            if self._holder.get(slot) != seq:
                return False
            del self._holder[slot]
            self._free.append(slot)
            self._changed.notify_all()
            return True
