"""When a frame of a file is due if the file is to play like a camera. Pure: no clock, no sleeping."""

from __future__ import annotations

_LATE_S = 0.5
"""A reader that was held up for longer goes on from where it is, instead of rushing."""
_AHEAD_S = 10.0
"""A frame that is due later than this has a broken time stamp: the clock is set by it."""


class Pacer:
    def __init__(self) -> None:
        self._origin: float | None = None

    def wait_s(self, time_s: float, now: float) -> float:
        """Seconds until the frame is due. `time_s`: its decoding time by the file; `now`: any clock."""
        if self._origin is not None:
            wait = self._origin + time_s - now
            if -_LATE_S <= wait <= _AHEAD_S:
                return max(wait, 0.0)
        self._origin = now - time_s
        return 0.0
