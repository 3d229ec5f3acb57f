"""Frames become events: the lives of tracks, their best frames, and which pictures are worth an encoding."""

from typing import Any

import pytest
from fake_runtime import detection, result

from server.analytics.analyst import Ended, Observation
from server.analytics.areas import Happening
from server.analytics.lives import Lives
from server.results import EventMessage

BEHIND = 1e9 - 100
"""The wall clock minus the tracker's."""


class Watch:
    """A stream's lives, and frames at times of the tracker's clock."""

    def __init__(self) -> None:
        self.made: list[float] = []
        self.numbers = iter(range(1, 10_000))
        self.lives = Lives("door", self._new_id, lambda: next(self.numbers))

    def _new_id(self, unix: float) -> str:
        self.made.append(unix)
        return f"e{len(self.made)}"

    def frame(
        self, now: float, *tracks: tuple[int, float, float], happened: Any = (), ended: Any = (), seq: int = 1
    ) -> tuple[list[EventMessage], Any]:
        """`tracks`: number, confidence, size of the box in pixels."""
        seen = [(n, detection(confidence=c) | {"box": [100.0, 100.0, 100.0 + s, 100.0 + s]}) for n, c, s in tracks]
        observation = Observation(now, seen, list(happened), list(ended))  # type: ignore[arg-type]
        return self.lives.observe(result("door", seq), now + BEHIND, observation)


def kinds(messages: list[EventMessage]) -> list[str]:
    return [message["kind"] for message in messages]


def test_begins_goes_on_and_ends() -> None:
    watch = Watch()
    (new,), _ = watch.frame(100.0, (7, 0.8, 50))
    assert (new["kind"], new["id"], new["stream"], new["at"]) == ("new", 1, "door", "2001-09-09T01:46:40.000Z")
    assert (new["event"]["id"], new["event"]["state"], new["event"]["track_id"]) == ("e1", "active", 7)
    assert watch.frame(101.0, (7, 0.9, 40))[0] == [], "nothing worth telling"
    (end,), _ = watch.frame(105.0, ended=[Ended(7, 101.0, [])])
    assert (end["kind"], end["id"], end["at"]) == ("end", 2, "2001-09-09T01:46:41.000Z")
    event = end["event"]
    assert (event["state"], event["confidence"]) == ("ended", 0.9)
    assert (event["first_seen"], event["last_seen"]) == ("2001-09-09T01:46:40.000Z", "2001-09-09T01:46:41.000Z")
    assert event["box"] == [100, 100, 150, 150], "of the better frame: larger, if less sure"


def test_zones_and_lines_are_told_and_remembered() -> None:
    watch = Watch()
    watch.frame(100.0, (1, 0.8, 50))
    happened = [
        Happening("zone_enter", 1, "person", "yard", 100.5),
        Happening("line_cross", 1, "person", "gate", 100.6, "in"),
        Happening("zone_enter", 9, "person", "yard", 100.7),
    ]
    messages, _ = watch.frame(101.0, (1, 0.8, 50), happened=happened)
    assert [(m["kind"], m["name"], m["direction"], m["at"][-5:]) for m in messages] == [
        ("zone_enter", "yard", None, ".500Z"), ("line_cross", "gate", "in", ".600Z"),
    ], "what is not followed has no event"  # fmt: skip
    leaves = Happening("zone_leave", 1, "person", "yard", 101.0, seconds=0.5)
    messages, _ = watch.frame(104.0, ended=[Ended(1, 101.0, [leaves])])
    assert [(m["kind"], m["seconds"]) for m in messages] == [("zone_leave", 0.5), ("end", None)]
    assert (messages[-1]["event"]["zones"], messages[-1]["event"]["lines"]) == (["yard"], ["gate"])
    assert messages[0]["event"]["state"] == "active"


def test_a_message_is_of_its_moment() -> None:
    watch = Watch()
    (new,), _ = watch.frame(100.0, (1, 0.8, 50))
    watch.frame(101.0, (1, 0.95, 90), happened=[Happening("zone_enter", 1, "person", "yard", 101.0)])
    assert (new["event"]["zones"], new["event"]["confidence"]) == ([], 0.8)


def test_pictures_are_asked_for_when_they_are_better_and_not_all_the_time() -> None:
    watch = Watch()
    _, first = watch.frame(100.0, (1, 0.5, 60), (2, 0.9, 60), seq=10)
    assert (first.event_id, first.seq) == ("e2", 10), "of one object, the best seen one"
    assert first.crop == (82, 82, 178, 178), "with a little around it"
    assert watch.lives.pictured(first)["kind"] == "update"  # type: ignore[index]
    assert watch.frame(100.1, (1, 0.5, 60))[1] is None, "so soon after the last"
    _, second = watch.frame(101.0, (1, 0.5, 60), (2, 0.9, 62), seq=12)
    assert second.event_id == "e1", "the other one is hardly better than its picture"
    watch.lives.pictured(second)
    assert watch.frame(102.0, (1, 0.5, 60), (2, 0.9, 62))[1] is None
    _, third = watch.frame(103.0, (2, 0.9, 90), seq=15)
    message = watch.lives.pictured(third)
    assert message is not None
    event = message["event"]
    assert (event["snapshot"], event["seq"], event["box"]) == (True, 15, [100, 100, 190, 190])


def test_the_best_frame_is_the_one_of_the_picture() -> None:
    watch = Watch()
    _, wanted = watch.frame(100.0, (1, 0.9, 60), seq=10)
    watch.lives.pictured(wanted)
    watch.frame(100.2, (1, 0.95, 63), seq=11)
    (end,), _ = watch.frame(109.0, ended=[Ended(1, 100.2, [])])
    assert (end["event"]["seq"], end["event"]["confidence"]) == (10, 0.95)


def test_a_picture_that_comes_too_late_is_left() -> None:
    watch = Watch()
    _, wanted = watch.frame(100.0, (1, 0.9, 60))
    watch.frame(109.0, ended=[Ended(1, 100.0, [])])
    assert watch.lives.pictured(wanted) is None


def test_a_crop_stays_inside_the_picture() -> None:
    watch = Watch()
    seen = [(1, detection() | {"box": [0.0, 0.0, 640.0, 360.0]})]
    _, wanted = watch.lives.observe(result("door"), 1e9, Observation(100.0, seen, [], []))  # type: ignore[arg-type]
    assert wanted is not None
    assert wanted.crop == (0, 0, 640, 360)
    assert wanted.score == pytest.approx(0.9 * (640 * 360) ** 0.5)
