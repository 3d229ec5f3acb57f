"""What one stream's results mean over time: numbers for its detections, zones they are in, what happens to its tracks.

One for each stream; outlives its camera's connections. Fills `track_id` and `zones` of a result before anybody sees
it, and changes nothing else of it. Pure, but for the detections it fills.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from server.analytics.areas import Areas, Happening, Seen
from server.analytics.clock import FrameClock
from server.analytics.tracker import NOBODY, Tracker
from server.results import Detection, Result
from server.streams import StreamDefinition

PEOPLE = frozenset({"person", "pedestrian", "people"})
"""Classes that move as people do; all others may be quicker."""


class Ended(NamedTuple):
    """A track that is no more, and what followed from that."""

    track_id: int
    seen_at: float
    """When it was seen last."""
    happened: list[Happening]


class Observation(NamedTuple):
    """A frame, or a moment without one."""

    now: float
    """Its time on the tracker's clock; the times of what happened are on the same one."""
    seen: list[tuple[int, Detection]]
    """Confirmed tracks in it."""
    happened: list[Happening]
    ended: list[Ended]


class Analyst:
    """Nothing is followed before `define`."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._clock = FrameClock()
        self._seen_at: dict[int, float] = {}
        self._newest = -np.inf
        self.areas = Areas()

    def define(self, definition: StreamDefinition) -> None:
        """Other settings from the next frame on. Tracks go on, as do shapes that are as they were."""
        zones, lines = definition.zones or [], definition.lines or []
        self._clock.paced = definition.realtime if definition.realtime is not None else not definition.every_frame
        self.areas.redefine(zones, lines)
        if definition.track is False and not self.areas:
            self._tracker = None
        elif self._tracker is None:
            self._tracker = Tracker()

    @property
    def tracks(self) -> int:
        """Confirmed ones that have not ended."""
        return 0 if self._tracker is None else len(self._tracker)

    def observe(self, result: Result, arrived_at: float) -> Observation:
        """A frame's result. `arrived_at`: monotonic seconds."""
        now = self._clock.at(result["pts"], arrived_at)
        found = result["detections"]
        width, height = max(result["width"], 1), max(result["height"], 1)
        shares = [_shares(detection["box"], width, height) for detection in found]
        if self.areas:
            for detection, box in zip(found, shares, strict=True):
                detection["zones"] = self.areas.containing(detection["class"], detection["confidence"], box)
        if self._tracker is None:
            return Observation(now, [], [], self._forget())
        ids, ended = self._tracker.update(
            np.array([d["box"] for d in found], np.float64).reshape(-1, 4),
            np.array([d["confidence"] for d in found], np.float64),
            np.array([d["class_id"] for d in found], np.int64),
            now,
            np.array([d["class"] not in PEOPLE for d in found], bool),
        )
        seen: list[tuple[int, Detection]] = []
        placed: list[Seen] = []
        for detection, box, track_id in zip(found, shares, ids.tolist(), strict=True):
            if track_id != NOBODY:
                detection["track_id"] = track_id
                seen.append((track_id, detection))
                placed.append(Seen(track_id, detection["class"], detection["confidence"], box))
        if now < self._newest:  # overtaken by a newer frame: it has its numbers, and tells nothing new
            return Observation(now, [], [], [])
        self._newest = now
        self._seen_at.update((track_id, now) for track_id, _ in seen)
        gone = [self._end(track_id) for track_id in ended]
        return Observation(now, seen, self.areas.observe(placed, now), gone)

    def idle(self, now: float) -> Observation | None:
        """Frames have stayed away until `now` (monotonic seconds): what ends by that. None if nothing does."""
        if self._tracker is None:
            return None
        time = self._clock.without_frames(now)
        ended = self._tracker.expire(time)
        return Observation(time, [], [], [self._end(track_id) for track_id in ended]) if ended else None

    def time_at(self, now: float) -> float:
        """The tracker's time at `now` (monotonic seconds), without a frame."""
        return self._clock.without_frames(now)

    def close(self) -> list[Ended]:
        """The stream goes: all tracks end."""
        return self._forget()

    def _forget(self) -> list[Ended]:
        return [self._end(track_id) for track_id in list(self._seen_at)]

    def _end(self, track_id: int) -> Ended:
        seen_at = self._seen_at.pop(track_id, 0.0)
        return Ended(track_id, seen_at, self.areas.end(track_id, seen_at))


def _shares(box: list[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1 / width, y1 / height, x2 / width, y2 / height]
