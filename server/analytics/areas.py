"""Who is in which zone, who crosses which line, who stays: changes that last, and not the trembling of boxes.

A change of side counts once it has lasted for the shape's `inertia_s` and was seen `inertia_hits` times in a row; what
then happens is dated back to when it was first seen. While an object is hidden nothing changes for it, and what it had
begun goes on when it is seen again under its old number.

Pure: `now` is the tracker's time in seconds. One event loop, no locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from server.analytics.shapes import Line, Point, Shape, Zone

HappeningKind = Literal["zone_enter", "zone_leave", "dwell", "line_cross"]
Direction = Literal["in", "out"]


class Seen(NamedTuple):
    """A confirmed track in the frame of now."""

    track_id: int
    class_name: str
    confidence: float
    box: Sequence[float]
    """x1, y1, x2, y2 as shares of the picture."""


class Happening(NamedTuple):
    """Something that happened to a track."""

    kind: HappeningKind
    track_id: int
    class_name: str
    name: str
    """Of the zone or line."""
    at: float
    """When it was first seen; tracker's time."""
    direction: Direction | None = None
    """Of a line."""
    seconds: float | None = None
    """How long it has stayed in the zone (zone_leave, dwell)."""


@dataclass(slots=True)
class _Side:
    """On which side of a shape a track is, with inertia. For a line: right is True."""

    value: bool
    since: float
    point: tuple[float, float]
    """Where it was last seen on this side."""
    turned_at: float = 0.0
    hits: int = 0
    """How often in a row it was seen on the other side."""
    dwelt: bool = False

    def observe(self, value: bool, point: tuple[float, float], now: float, shape: Shape) -> bool:
        """Whether the side has changed by this observation."""
        if value == self.value:
            self.hits, self.point = 0, point
            return False
        if self.hits == 0:
            self.turned_at = now
        self.hits += 1
        return self.hits >= shape.inertia_hits and now - self.turned_at >= shape.inertia_s

    def change(self, point: tuple[float, float]) -> None:
        self.value, self.since, self.point = not self.value, self.turned_at, point
        self.hits, self.dwelt = 0, False


@dataclass(slots=True)
class _Object:
    class_name: str
    surest: float = 0.0
    zones: dict[str, _Side] = field(default_factory=dict)
    lines: dict[str, _Side] = field(default_factory=dict)


class Areas:
    """Zones and lines of one stream, and where its tracks stand to them."""

    def __init__(self, zones: Sequence[Zone] = (), lines: Sequence[Line] = ()) -> None:
        self._zones, self._lines = {z.name: z for z in zones}, {line.name: line for line in lines}
        self._objects: dict[int, _Object] = {}
        self._visited: set[tuple[str, str]] = set()  # (zone, class) that have been occupied
        self.crossings: dict[tuple[str, str, str], int] = {}
        """(line, direction, class) -> times, since the line is there."""

    def __bool__(self) -> bool:
        return bool(self._zones or self._lines)

    def redefine(self, zones: Sequence[Zone], lines: Sequence[Line]) -> None:
        """Other shapes from now on. What is unchanged keeps its state and its counts."""
        before: dict[str, Shape] = {**self._zones, **self._lines}
        self._zones, self._lines = {z.name: z for z in zones}, {line.name: line for line in lines}
        kept = {name for name, shape in {**self._zones, **self._lines}.items() if before.get(name) == shape}
        for known in self._objects.values():
            known.zones = {name: side for name, side in known.zones.items() if name in kept}
            known.lines = {name: side for name, side in known.lines.items() if name in kept}
        self.crossings = {key: count for key, count in self.crossings.items() if key[0] in self._lines}

    def containing(self, class_name: str, confidence: float, box: Sequence[float]) -> list[str]:
        """Zones in which a detection is, in the frame at hand, inertia apart."""
        return [
            zone.name
            for zone in self._zones.values()
            if confidence >= zone.min_confidence and _wanted(zone, class_name) and _inside(_anchor(box, zone), zone)
        ]

    def observe(self, seen: Iterable[Seen], now: float) -> list[Happening]:
        """A frame's confirmed tracks. Times must not fall."""
        happened: list[Happening] = []
        for one in seen:
            known = self._objects.get(one.track_id)
            if known is None:
                known = self._objects[one.track_id] = _Object(one.class_name)
            known.surest = max(known.surest, one.confidence)
            for zone in self._zones.values():
                if known.surest >= zone.min_confidence and _wanted(zone, one.class_name):
                    self._observe_zone(zone, one, known, now, happened)
            for line in self._lines.values():
                if known.surest >= line.min_confidence and _wanted(line, one.class_name):
                    self._observe_line(line, one, known, now, happened)
        self._tell_dwellers(now, happened)
        return happened

    def end(self, track_id: int, at: float) -> list[Happening]:
        """The track is lost; it was last seen at `at`. It leaves the zones that it was in."""
        known = self._objects.pop(track_id, None)
        if known is None:
            return []
        return [
            Happening("zone_leave", track_id, known.class_name, name, at, seconds=max(at - side.since, 0.0))
            for name, side in known.zones.items()
            if side.value
        ]

    def zones_of(self, track_id: int) -> list[str]:
        """Zones in which a track is, inertia counted."""
        known = self._objects.get(track_id)
        return [] if known is None else [name for name, side in known.zones.items() if side.value]

    def occupancy(self) -> dict[tuple[str, str], int]:
        """(zone, class) -> tracks in it now, with 0 for each zone and class that is expected or has been there."""
        counts = {(zone.name, name): 0 for zone in self._zones.values() for name in zone.classes or ()}
        counts.update({key: 0 for key in self._visited if key[0] in self._zones})
        for known in self._objects.values():
            for name, side in known.zones.items():
                if side.value:
                    counts[name, known.class_name] += 1
        return counts

    def _observe_zone(self, zone: Zone, one: Seen, known: _Object, now: float, happened: list[Happening]) -> None:
        point = _anchor(one.box, zone)
        inside = _inside(point, zone)
        side = known.zones.get(zone.name)
        if side is None:
            side = known.zones[zone.name] = _Side(False, now, point)
        stayed_since = side.since
        if side.observe(inside, point, now, zone):
            side.change(point)
            if inside:
                self._visited.add((zone.name, known.class_name))
                happened.append(Happening("zone_enter", one.track_id, known.class_name, zone.name, side.since))
            else:
                seconds = side.since - stayed_since
                happened.append(
                    Happening("zone_leave", one.track_id, known.class_name, zone.name, side.since, seconds=seconds)
                )

    def _observe_line(self, line: Line, one: Seen, known: _Object, now: float, happened: list[Happening]) -> None:
        point = _anchor(one.box, line)
        right = _right_of(point, line.points)
        side = known.lines.get(line.name)
        if side is None:
            known.lines[line.name] = _Side(right, now, point)
            return
        from_point = side.point
        if side.observe(right, point, now, line):
            side.change(point)
            if _crosses(from_point, point, line.points):
                direction: Direction = "in" if right else "out"
                key = (line.name, direction, known.class_name)
                self.crossings[key] = self.crossings.get(key, 0) + 1
                happened.append(
                    Happening("line_cross", one.track_id, known.class_name, line.name, side.since, direction)
                )

    def _tell_dwellers(self, now: float, happened: list[Happening]) -> None:
        limits = {name: zone.dwell_s for name, zone in self._zones.items() if zone.dwell_s is not None}
        if not limits:
            return
        for track_id, known in self._objects.items():
            for name, side in known.zones.items():
                limit = limits.get(name)
                if limit is not None and side.value and not side.dwelt and now - side.since >= limit:
                    side.dwelt = True
                    happened.append(
                        Happening("dwell", track_id, known.class_name, name, side.since + limit, seconds=limit)
                    )


def _wanted(shape: Shape, class_name: str) -> bool:
    return shape.classes is None or class_name in shape.classes


def _anchor(box: Sequence[float], shape: Shape) -> tuple[float, float]:
    x1, y1, x2, y2 = box
    y = {"bottom": y2, "center": (y1 + y2) / 2, "top": y1}[shape.anchor]
    # A box that reaches the picture's edge is still inside a zone that does; rounding must not put it outside.
    return min(max((x1 + x2) / 2, 0.0), 1.0), min(max(y, 0.0), 1.0)


def _inside(point: tuple[float, float], zone: Zone) -> bool:
    """Even-odd rule; points on the border are inside."""
    x, y = point
    inside = False
    x1, y1 = zone.points[-1]
    for x2, y2 in zone.points:
        across = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        if across == 0 and min(x1, x2) <= x <= max(x1, x2) and min(y1, y2) <= y <= max(y1, y2):
            return True
        if (y1 > y) != (y2 > y) and (across > 0) == (y2 > y1):
            inside = not inside
        x1, y1 = x2, y2
    return inside


def _right_of(point: Sequence[float], line: Sequence[Point]) -> bool:
    """Right, looking from the first point to the second; y grows downwards. On the line itself: right."""
    (x1, y1), (x2, y2) = line
    return (x2 - x1) * (point[1] - y1) - (y2 - y1) * (point[0] - x1) >= 0


def _crosses(start: tuple[float, float], end: tuple[float, float], line: Sequence[Point]) -> bool:
    """Whether the way from `start` to `end`, on different sides of the line, meets the segment and not only its
    prolongation."""
    way = (start, end)
    (ax, ay), (bx, by) = way
    sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in line]
    return min(sides) <= 0 <= max(sides)
