"""When frames were taken, as far as tracks are concerned: seconds of one clock that never goes back.

The camera's time stamps (PTS) say best how much time lies between two frames; arrival trembles, since cameras send
their large keyframes slowly and what follows in a burst. But time stamps jump, repeat and lie about their rate, so
they are believed only as long as they stay near the time of arrival. Pure.
"""

from __future__ import annotations

import math

_BELIEVED_S = 1.0
"""So far the time by PTS may be from the time of arrival; a clock that is off by 100 ppm gets there in three hours, and
then begins anew."""
_OVERTAKEN_S = 0.5
"""A frame that is so much older than the newest was overtaken on its way; an older one is a new beginning."""
_LONGEST_STEP_S = 10.0
_UNKNOWN_STEP_S = 0.04


class FrameClock:
    """`paced`: frames come as they are taken. A file that is read as fast as it goes has its PTS alone."""

    def __init__(self, *, paced: bool = True) -> None:
        self.paced = paced
        self._pts = math.nan
        self._time: float | None = None
        self._arrived_at = 0.0

    def at(self, pts: float | None, arrived_at: float) -> float:
        """The time of a frame. One that was overtaken by a newer one is before that, by its PTS."""
        if self._time is None:
            self._keep(pts, arrived_at, arrived_at)
            return arrived_at
        step = math.nan if pts is None else pts - self._pts
        time = self._time + step
        believed = -_OVERTAKEN_S <= step <= _LONGEST_STEP_S  # False for NaN
        if self.paced:
            if not believed or abs(time - arrived_at) > _BELIEVED_S:
                time = max(arrived_at, self._time)
        elif not believed:
            time = self._time + _UNKNOWN_STEP_S
        if time >= self._time:
            self._keep(pts, arrived_at, time)
        return time

    def without_frames(self, now: float) -> float:
        """The time at `now` of the arrivals' clock, if no frame has come since the newest."""
        return now if self._time is None else self._time + max(now - self._arrived_at, 0.0)

    def _keep(self, pts: float | None, arrived_at: float, time: float) -> None:
        self._pts = math.nan if pts is None else pts
        self._time, self._arrived_at = time, arrived_at
