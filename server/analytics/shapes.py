"""Zones and lines as their owner draws them: part of a stream's definition.

Coordinates are shares of the source picture, 0..1 from its upper left corner, so that they hold for every resolution
that a camera may switch to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Point = Annotated[list[Share], Field(min_length=2, max_length=2)]
Name = Annotated[str, Field(pattern=r"^\w[\w .-]{0,63}$")]
"""Letters, digits and a little more: names travel in topics, labels and file names."""
ClassName = Annotated[str, Field(min_length=1, max_length=256)]
Anchor = Literal["bottom", "center", "top"]
_SMALLEST = 1e-6
"""Area or squared length below which nothing can be inside or cross."""


class Shape(BaseModel):
    """What zones and lines have in common."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, strict=True, frozen=True)

    name: Name = Field(description="Unique among the stream's zones and lines.")
    classes: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=1000)] | None = (
        Field(None, description="Only objects of these classes count; null: all.")
    )
    min_confidence: Share = Field(0.0, description="An object counts once it was seen at least so surely.")
    anchor: Anchor = Field("bottom", description="The point of the box that counts: middle of bottom, center or top.")
    inertia_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = Field(
        0.3, description="A change counts once it has lasted so long ..."
    )
    inertia_hits: Annotated[int, Field(ge=1, le=100)] = Field(2, description="... and was seen so many times in a row.")


def _encloses_something(points: list[Point]) -> list[Point]:
    following = [*points[1:], points[0]]
    doubled = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, following, strict=True))
    # Two loops of an eight may cancel each other out; its bounding box tells it from a line.
    if abs(doubled) / 2 < _SMALLEST and not _is_wide(points):
        raise ValueError("the points lie on a line and enclose nothing")
    return points


def _is_wide(points: Sequence[Point]) -> bool:
    (x0, y0), (x1, y1) = points[0], max(points, key=lambda p: (p[0] - points[0][0]) ** 2 + (p[1] - points[0][1]) ** 2)
    return any(abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) > _SMALLEST for x, y in points)


def _has_length(points: list[Point]) -> list[Point]:
    (x1, y1), (x2, y2) = points
    if (x2 - x1) ** 2 + (y2 - y1) ** 2 < _SMALLEST:
        raise ValueError("the two points are the same")
    return points


class Zone(Shape):
    """A polygon. Objects enter, leave, and stay in it."""

    points: Annotated[list[Point], Field(min_length=3, max_length=64), AfterValidator(_encloses_something)] = Field(
        description="Corners [x, y] in order; the last is joined to the first."
    )
    dwell_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        None, description="Tell (`dwell`) when an object has stayed so long; null: do not."
    )


class Line(Shape):
    """A directed segment. Objects cross it `in` (from its left to its right, looking from the first point to the
    second) or `out`."""

    points: Annotated[list[Point], Field(min_length=2, max_length=2), AfterValidator(_has_length)] = Field(
        description="Start [x, y] and end [x, y]."
    )


def unique_names(zones: Sequence[Zone], lines: Sequence[Line]) -> None:
    """ValueError `FIELD: ...` for a name that stands twice."""
    seen: set[str] = set()
    for field, shapes in (("zones", zones), ("lines", lines)):
        for index, shape in enumerate(shapes):
            if shape.name in seen:
                raise ValueError(f"{field}.{index}.name: {shape.name!r} is there already")
            seen.add(shape.name)
