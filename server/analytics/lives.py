"""The lives of one stream's tracks, as events tell them: new, update, end, and what happens in between.

An event's best frame is the one in which its object is seen large and surely. A picture of it is asked for when it is
clearly better than the one that there is, of one object at a time and not all the time: pictures cost the camera's
process an encoding each. Pure: wall-clock times come in with the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from server.analytics.analyst import Ended, Observation
from server.analytics.areas import Happening
from server.outcome import timestamp
from server.results import Detection, EventKind, EventMessage, Result, TrackEvent

_BETTER = 1.15
"""A new picture must be so many times as good."""
_PAUSE_S = 0.7
"""Between two requests for pictures of one stream."""
_MARGIN = 0.3
"""Of the box's size, around it on each side."""


class Wanted(NamedTuple):
    """A picture of an event's best frame."""

    event_id: str
    track_id: int
    seq: int
    crop: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the source."""
    score: float
    box: list[float]


@dataclass(slots=True)
class _Life:
    event: TrackEvent
    score: float = 0.0
    """Of the frame that `event` calls its best."""
    pictured: float = 0.0
    """Score of the picture that there is."""


class Lives:
    """`new_event_id(unix)` and `next_number()` are shared by all streams."""

    def __init__(self, stream: str, new_event_id: Callable[[float], str], next_number: Callable[[], int]) -> None:
        self._stream = stream
        self._new_event_id = new_event_id
        self._next_number = next_number
        self._lives: dict[int, _Life] = {}
        self._asked_at = float("-inf")

    def observe(
        self, result: Result, unix: float, observation: Observation
    ) -> tuple[list[EventMessage], Wanted | None]:
        """A frame that was received at `unix`: what it tells, and the picture that is wanted of it."""
        messages = []
        for track_id, detection in observation.seen:
            life = self._lives.get(track_id)
            if life is None:
                life = self._lives[track_id] = self._begin(track_id, detection, result, unix)
                messages.append(self._message("new", life.event, unix))
            self._see(life, detection, result, unix)
        behind = unix - observation.now
        messages += self._tell(observation.happened, behind)
        messages += self.end(observation.ended, behind)
        return messages, self._wanted(result, observation)

    def end(self, ended: Iterable[Ended], behind: float) -> list[EventMessage]:
        """`behind`: wall clock minus the tracker's clock, seconds."""
        messages = []
        for track_id, seen_at, happened in ended:
            messages += self._tell(happened, behind)
            life = self._lives.pop(track_id, None)
            if life is not None:
                life.event["state"] = "ended"
                messages.append(self._message("end", life.event, seen_at + behind))
        return messages

    def pictured(self, wanted: Wanted) -> EventMessage | None:
        """The picture is there. None if the event has ended without it."""
        life = self._lives.get(wanted.track_id)
        if life is None or life.event["id"] != wanted.event_id:
            return None
        life.score = life.pictured = wanted.score
        life.event["box"], life.event["seq"], life.event["snapshot"] = wanted.box, wanted.seq, True
        return self._message("update", life.event, None)

    def _begin(self, track_id: int, detection: Detection, result: Result, unix: float) -> _Life:
        seen = timestamp(unix)
        event: TrackEvent = {
            "id": self._new_event_id(unix),
            "stream": self._stream,
            "track_id": track_id,
            "class": detection["class"],
            "state": "active",
            "first_seen": seen,
            "last_seen": seen,
            "confidence": detection["confidence"],
            "box": detection["box"],
            "seq": result["seq"],
            "width": result["width"],
            "height": result["height"],
            "zones": [],
            "lines": [],
            "snapshot": False,
        }
        return _Life(event)

    def _see(self, life: _Life, detection: Detection, result: Result, unix: float) -> None:
        event = life.event
        event["last_seen"] = timestamp(unix)
        event["width"], event["height"] = result["width"], result["height"]
        event["confidence"] = max(event["confidence"], detection["confidence"])
        score = _score(detection)
        if not event["snapshot"] and score > life.score:
            life.score = score
            event["box"], event["seq"] = detection["box"], result["seq"]

    def _tell(self, happened: Iterable[Happening], behind: float) -> list[EventMessage]:
        messages = []
        for one in happened:
            life = self._lives.get(one.track_id)
            if life is None:
                continue
            places = life.event["lines"] if one.kind == "line_cross" else life.event["zones"]
            if one.name not in places:
                places.append(one.name)
            messages.append(self._message(one.kind, life.event, one.at + behind, one))
        return messages

    def _message(
        self, kind: EventKind, event: TrackEvent, unix: float | None, happening: Happening | None = None
    ) -> EventMessage:
        seconds = None if happening is None else happening.seconds
        return {
            "type": "event",
            "id": self._next_number(),
            "stream": self._stream,
            "kind": kind,
            "at": event["last_seen"] if unix is None else timestamp(unix),
            "name": None if happening is None else happening.name,
            "direction": None if happening is None else happening.direction,
            "seconds": None if seconds is None else round(seconds, 3),
            "event": {**event, "zones": [*event["zones"]], "lines": [*event["lines"]]},
        }

    def _wanted(self, result: Result, observation: Observation) -> Wanted | None:
        """Of the object that gains most by it."""
        if observation.now - self._asked_at < _PAUSE_S:
            return None
        gains = [
            (_score(detection) / max(self._lives[track_id].pictured * _BETTER, 1e-9), track_id, detection)
            for track_id, detection in observation.seen
            if track_id in self._lives
        ]
        gain, track_id, detection = max(gains, key=lambda g: g[0], default=(0.0, 0, None))
        if detection is None or gain <= 1:
            return None
        self._asked_at = observation.now
        x1, y1, x2, y2 = detection["box"]
        dx, dy = (x2 - x1) * _MARGIN, (y2 - y1) * _MARGIN
        crop = (max(x1 - dx, 0), max(y1 - dy, 0), min(x2 + dx, result["width"]), min(y2 + dy, result["height"]))
        return Wanted(
            self._lives[track_id].event["id"], track_id, result["seq"], crop, _score(detection), detection["box"]
        )


def _score(detection: Detection) -> float:
    x1, y1, x2, y2 = detection["box"]
    return float(detection["confidence"] * max((x2 - x1) * (y2 - y1), 1.0) ** 0.5)
