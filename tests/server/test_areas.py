"""Zones and lines: what counts as entering, leaving, staying and crossing, and what is only a trembling box."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.analytics.areas import Areas, Happening, Seen
from server.analytics.shapes import Line, Zone, unique_names

SQUARE = [[0.4, 0.4], [0.6, 0.4], [0.6, 0.6], [0.4, 0.6]]
ACROSS = [[0.5, 1.0], [0.5, 0.0]]
"""From bottom to top: its right is the picture's right."""


def zone(**fields: Any) -> Zone:
    return Zone.model_validate({"name": "door", "points": SQUARE, **fields})


def line(**fields: Any) -> Line:
    return Line.model_validate({"name": "gate", "points": ACROSS, **fields})


def at(x: float, y: float, track: int = 1, name: str = "person", confidence: float = 0.8) -> Seen:
    """A track whose box stands on the point."""
    return Seen(track, name, confidence, [x - 0.05, y - 0.2, x + 0.05, y])


def walk(areas: Areas, points: list[tuple[float, float]], *, step: float = 0.1, **seen: Any) -> list[Happening]:
    return [h for i, (x, y) in enumerate(points) for h in areas.observe([at(x, y, **seen)], i * step)]


def test_enters_and_leaves() -> None:
    areas = Areas([zone()])
    happened = walk(areas, [(0.1, 0.5)] * 5 + [(0.5, 0.5)] * 10 + [(0.9, 0.5)] * 5)
    assert [(h.kind, h.name, h.class_name, round(h.at, 3)) for h in happened] == [
        ("zone_enter", "door", "person", 0.5),
        ("zone_leave", "door", "person", 1.5),
    ], "dated to when it was first seen"
    assert happened[1].seconds == pytest.approx(1.0)
    assert areas.zones_of(1) == []


@pytest.mark.parametrize(("step", "frames"), [(0.05, 7), (0.1, 4), (0.2, 3), (0.4, 2), (2.0, 2)])
def test_inertia_is_in_seconds_and_in_hits(step: float, frames: int) -> None:
    """At high rates .3 s count, at low ones two frames."""
    areas = Areas([zone()])
    entered = [bool(areas.observe([at(0.5, 0.5)], i * step)) for i in range(12)]
    assert entered.index(True) == frames - 1
    assert sum(entered) == 1


def test_trembling_at_the_border_is_nothing() -> None:
    areas = Areas([zone()], [line()])
    assert walk(areas, [(0.399, 0.5), (0.401, 0.5)] * 30) == []
    assert walk(areas, [(0.499, 0.9), (0.501, 0.9)] * 30, track=2) == []


def test_without_inertia_everything_counts() -> None:
    areas = Areas([zone(inertia_s=0, inertia_hits=1)])
    kinds = [h.kind for h in walk(areas, [(0.5, 0.5), (0.1, 0.5)] * 2)]
    assert kinds == ["zone_enter", "zone_leave"] * 2


def test_hidden_inside_it_is_still_inside() -> None:
    areas = Areas([zone()])
    walk(areas, [(0.5, 0.5)] * 5)
    assert areas.observe([], 3.0) == []
    assert areas.occupancy() == {("door", "person"): 1}
    assert areas.observe([at(0.5, 0.5)], 4.0) == []


def test_who_is_lost_has_left_when_it_was_last_seen() -> None:
    areas = Areas([zone()])
    walk(areas, [(0.5, 0.5)] * 5)
    assert [(h.kind, h.at, h.seconds) for h in areas.end(1, 0.4)] == [("zone_leave", 0.4, pytest.approx(0.4))]
    assert areas.end(1, 0.4) == []
    assert areas.occupancy() == {("door", "person"): 0}, "the series goes on"


def test_dwells_once_for_each_stay() -> None:
    areas = Areas([zone(dwell_s=1.0)])
    stay = [(0.5, 0.5)] * 20
    happened = walk(areas, [*stay, *[(0.1, 0.5)] * 5, *stay])
    assert [h.kind for h in happened] == ["zone_enter", "dwell", "zone_leave", "zone_enter", "dwell"]
    assert [round(h.at, 3) for h in happened if h.kind == "dwell"] == [1.0, 3.5]
    assert {h.seconds for h in happened if h.kind == "dwell"} == {1.0}


def test_dwells_also_while_hidden() -> None:
    areas = Areas([zone(dwell_s=2.0)])
    walk(areas, [(0.5, 0.5)] * 5)
    assert [h.kind for h in areas.observe([], 2.5)] == ["dwell"]


@pytest.mark.parametrize(("points", "direction"), [([0.2, 0.8], "in"), ([0.8, 0.2], "out")])
def test_crosses_a_line_in_a_direction(points: list[float], direction: str) -> None:
    areas = Areas(lines=[line()])
    happened = walk(areas, [(points[0], 0.5)] * 4 + [(points[1], 0.5)] * 5)
    assert [(h.kind, h.name, h.direction) for h in happened] == [("line_cross", "gate", direction)]
    assert areas.crossings == {("gate", direction, "person"): 1}


def test_passing_beyond_the_end_of_a_line_is_no_crossing() -> None:
    areas = Areas(lines=[line(points=[[0.5, 0.5], [0.5, 0.0]])])
    assert walk(areas, [(0.2, 0.9)] * 4 + [(0.8, 0.9)] * 5) == []
    assert [h.direction for h in walk(areas, [(0.8, 0.3)] * 4 + [(0.2, 0.3)] * 5)] == ["out"], "the side is known"


def test_there_and_back_is_two_crossings() -> None:
    areas = Areas(lines=[line()])
    walk(areas, [(0.2, 0.5)] * 4 + [(0.8, 0.5)] * 5 + [(0.2, 0.5)] * 5)
    assert areas.crossings == {("gate", "in", "person"): 1, ("gate", "out", "person"): 1}


def test_classes_and_confidence_of_a_shape() -> None:
    areas = Areas([zone(classes=["car"], min_confidence=0.5)])
    assert areas.occupancy() == {("door", "car"): 0}, "an expected class is told as 0"
    assert walk(areas, [(0.5, 0.5)] * 5) == []
    assert walk(areas, [(0.5, 0.5)] * 5, track=2, name="car", confidence=0.4) == []
    assert walk(areas, [(0.5, 0.5)] * 5, track=3, name="car", confidence=0.6) != []
    for name, confidence, expected in (("car", 0.5, ["door"]), ("car", 0.4, []), ("person", 0.9, [])):
        assert areas.containing(name, confidence, at(0.5, 0.5).box) == expected


def test_once_surely_seen_is_enough() -> None:
    areas = Areas([zone(min_confidence=0.5)])
    areas.observe([at(0.1, 0.5, confidence=0.7)], 0.0)
    happened = [h for i in range(1, 6) for h in areas.observe([at(0.5, 0.5, confidence=0.3)], i * 0.2)]
    assert [h.kind for h in happened] == ["zone_enter"]


@pytest.mark.parametrize(("anchor", "inside"), [("bottom", 0.5), ("center", 0.6), ("top", 0.7)])
def test_the_anchor_is_the_point_that_counts(anchor: str, inside: float) -> None:
    areas = Areas([zone(anchor=anchor, points=[[0.4, 0.45], [0.6, 0.45], [0.6, 0.55], [0.4, 0.55]])])
    found = [y for y in (0.5, 0.6, 0.7) if areas.containing("person", 1.0, at(0.5, y).box)]
    assert found == [inside]


def test_a_zone_to_the_edge_holds_what_is_at_the_edge() -> None:
    areas = Areas([zone(points=[[0, 0], [1, 0], [1, 1], [0, 1]])])
    for x, y in ((0.0, 0.2), (1.0, 1.0), (0.5, 1.004)):
        assert areas.containing("person", 1.0, at(x, y).box) == ["door"]


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.integers(3, 12), st.floats(0, 6.28))
def test_inside_agrees_with_geometry(x: float, y: float, corners: int, turn: float) -> None:
    """A regular polygon: inside its inner circle is inside, outside its outer one is outside."""
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    areas = Areas([zone(points=[[0.5 + 0.3 * math.cos(a), 0.5 + 0.3 * math.sin(a)] for a in angles])])
    distance = math.hypot(x - 0.5, y - 0.5)
    found = bool(areas.containing("person", 1.0, at(x, y).box))
    if distance < 0.3 * math.cos(math.pi / corners) - 1e-9:
        assert found
    if distance > 0.3 + 1e-9:
        assert not found


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40))
def test_whoever_walks_enters_as_often_as_it_leaves(points: list[tuple[float, float]]) -> None:
    areas = Areas([zone()], [line()])
    happened = [*walk(areas, points), *areas.end(1, len(points) * 0.1)]
    inout = [h.kind for h in happened if h.kind != "line_cross"]
    assert inout == ["zone_enter", "zone_leave"] * (len(inout) // 2)
    crossed = [h.direction for h in happened if h.kind == "line_cross"]
    assert all(a != b for a, b in pairwise(crossed)), "a line is as long as the picture is high"


def test_changed_shapes_begin_anew_and_others_go_on() -> None:
    areas = Areas([zone(), zone(name="yard")], [line()])
    walk(areas, [(0.2, 0.5)] * 4 + [(0.55, 0.5)] * 5)
    areas.redefine([zone(), zone(name="yard", points=[[0, 0], [0.1, 0], [0.1, 0.1]])], [])
    assert areas.zones_of(1) == ["door"]
    assert areas.crossings == {}
    assert bool(areas)
    assert not Areas()


@pytest.mark.parametrize(
    ("shape", "fields", "where"),
    [
        (Zone, {"points": SQUARE[:2]}, "points"),
        (Zone, {"points": [[0, 0], [0.5, 0.5], [1, 1]]}, "points"),
        (Zone, {"points": [[0.5, 0.5]] * 4}, "points"),
        (Zone, {"points": [[0, 0], [0, 1.5], [1, 1]]}, "points.1.1"),
        (Zone, {"points": [[0, 0], [0, float("nan")], [1, 1]]}, "points.1.1"),
        (Zone, {"points": [[0, 0, 0], [0, 1], [1, 1]]}, "points.0"),
        (Zone, {"points": SQUARE, "name": "a/b"}, "name"),
        (Zone, {"points": SQUARE, "name": ""}, "name"),
        (Zone, {"points": SQUARE, "classes": []}, "classes"),
        (Zone, {"points": SQUARE, "min_confidence": 1.1}, "min_confidence"),
        (Zone, {"points": SQUARE, "anchor": "left"}, "anchor"),
        (Zone, {"points": SQUARE, "dwell_s": 0}, "dwell_s"),
        (Zone, {"points": SQUARE, "inertia_hits": 0}, "inertia_hits"),
        (Zone, {"points": SQUARE, "colour": "red"}, "colour"),
        (Zone, {}, "points"),
        (Line, {"points": SQUARE}, "points"),
        (Line, {"points": [[0.5, 0.5], [0.5, 0.5]]}, "points"),
    ],
)
def test_bad_shapes_name_the_field(shape: type[Zone | Line], fields: dict, where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        shape.model_validate({"name": "x", **fields})
    assert [".".join(map(str, e["loc"])) for e in caught.value.errors()] == [where]


def test_an_eight_is_a_zone() -> None:
    eight = zone(points=[[0.2, 0.2], [0.8, 0.8], [0.8, 0.2], [0.2, 0.8]])
    assert Areas([eight]).containing("person", 1.0, at(0.75, 0.5).box) == ["door"]


def test_names_are_unique_among_zones_and_lines() -> None:
    unique_names([zone()], [line()])
    with pytest.raises(ValueError, match=r"lines\.0\.name: 'door' is there already"):
        unique_names([zone()], [line(name="door")])
