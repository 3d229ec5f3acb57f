"""Which frames a stream's `max_fps` lets through.

Pure: no clock. Time is whatever axis the caller has (presentation time, or arrival for streams without it). Frames are
due on a grid that never drifts: a frame is taken when it comes closest to its due time, and the next one is due exactly
one interval after that, not after the frame. So 30 fps capped to 10 gives every third frame, and jitter costs nothing.
"""

from __future__ import annotations

_JUMP_S = 10.0
"""A larger step of the time axis, or any step back, is a new axis (a camera's clock was set, a file began anew)."""
_WINDOW_S = 2.0
"""Longer than cameras and networks hold frames back and then send them at once."""
_SMOOTHING = 0.125
"""Weight of the newest distance between frames in their mean."""


class RateLimiter:
    """At most `max_fps` frames a second on average: never more than `max_fps` x T + 2.5 in any span of T seconds."""

    def __init__(self, max_fps: float) -> None:
        if not max_fps > 0:
            raise ValueError(f"max_fps must be above 0, not {max_fps}")
        self._interval = 1.0 / max_fps
        self._due: float | None = None
        self._last = 0.0
        self._gap: float | None = None

    def accept(self, time_s: float) -> bool:
        """Whether the frame of this time goes on. Times rise from frame to frame."""
        due = self._due
        if due is None or not 0 <= time_s - self._last <= _JUMP_S:
            self._last, self._gap = time_s, None
            self._due = time_s + self._interval
            return True
        step, self._last = time_s - self._last, time_s
        self._gap = step if self._gap is None else self._gap + _SMOOTHING * (step - self._gap)
        # The next frame would be further off: half a frame early is as good as half a frame late.
        if time_s < due - min(self._gap, self._interval) / 2:
            return False
        # After a pause there is no credit for what did not come, beyond one frame for the one that is late now.
        self._due = max(due + self._interval, time_s)
        return True


class LiveAxis:
    """The time axis of a live stream: presentation time as long as it runs like the arrivals do, else the arrivals.

    Time stamps that stand still, or run at another rate than the camera, would make a limiter drop every frame or let
    every frame through. Jumps are no matter: the limiter begins anew at them.
    """

    def __init__(self) -> None:
        self._honest = True
        self._begin: tuple[float, float] | None = None

    def time(self, pts: float | None, arrived_at: float) -> float:
        """Seconds for `RateLimiter.accept`, of the next frame."""
        if pts is None:
            return arrived_at
        if self._begin is None:
            self._begin = pts, arrived_at
        begin_pts, began_at = self._begin
        if arrived_at - began_at >= _WINDOW_S:
            self._honest = 0.5 <= (pts - begin_pts) / (arrived_at - began_at) <= 2
            self._begin = pts, arrived_at
        return pts if self._honest else arrived_at
