"""From a real camera to events: what stands still is followed and has its picture, who goes away has ended."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle

from server.testing.camera import Camera, Mount
from server.testing.synthetic import coded, draw

pytestmark = pytest.mark.system

WIDTH, HEIGHT, FPS = 320, 192, 10
SECONDS, RED_SECONDS = 7, 2
"""The clip plays again and again; the red square is there at its beginning only, away for longer than a track waits."""
CELL = 32
"""The tiny model reports cells of so many pixels."""
BLUE, RED = (128, 128), (224, 96)
"""Left and top."""
MAT = {
    "name": "mat",
    "points": [[0.35, 0.6], [0.55, 0.6], [0.55, 1.0], [0.35, 1.0]],
    "dwell_s": 1.0,
}


def pictures() -> Iterator[Any]:
    for number in range(SECONDS * FPS):
        picture = draw(WIDTH, HEIGHT, number)
        picture[HEIGHT // 5 :] = 96
        picture[BLUE[1] : BLUE[1] + CELL, BLUE[0] : BLUE[0] + CELL] = (20, 20, 230)
        if number < RED_SECONDS * FPS:
            picture[RED[1] : RED[1] + CELL, RED[0] : RED[0] + CELL] = (230, 20, 20)
        yield picture


def test_objects_live_have_pictures_and_end(tmp_path: Path) -> None:
    clip = coded("events-1", pictures(), width=WIDTH, height=HEIGHT, fps=FPS, gop=10, quality=18)
    model = tiny_bundle(tmp_path / "tiny", input_size=WIDTH).path
    with Camera({"/yard": Mount(clip)}) as camera, ServerProcess(model, tmp_path / "data") as server:
        server.add(id="yard", url=camera.url("/yard"), zones=[MAT])
        changes = until_end(server)
        by_kind = {kind: [c for c in changes if c["kind"] == kind] for kind in {c["kind"] for c in changes}}
        (entered,) = by_kind["zone_enter"]
        (dwelt,) = by_kind["dwell"]
        assert entered["event"]["id"] == dwelt["event"]["id"]
        assert (entered["name"], dwelt["name"], dwelt["seconds"]) == ("mat", "mat", 1.0)
        ended = by_kind["end"][0]["event"]
        assert ended["box"] == pytest.approx([RED[0], RED[1], RED[0] + CELL, RED[1] + CELL], abs=2)
        numbers = [change["id"] for change in changes]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

        listed = server.http.get("/events").json()["events"]
        assert {e["state"] for e in listed if e["id"] in (ended["id"], entered["event"]["id"])} == {"active", "ended"}
        for event, colour in ((entered["event"], 2), (ended, 0)):
            assert middle_of(server, event["id"]).argmax() == colour, "the picture shows the very object"

        (result,) = server.http.get("/streams/yard/detections", params={"limit": 1}).json()
        standing = [d for d in result["detections"] if d["zones"] == ["mat"]]
        assert [d["track_id"] for d in standing] == [entered["event"]["track_id"]]
        metrics = server.http.get("/metrics").text
        assert f'yolov9_zone_objects{{stream="yard",zone="mat",class="{entered["event"]["class"]}"}} 1' in metrics
        assert "yolov9_events_lost_total 0" in metrics

        server.terminate()
    with ServerProcess(model, tmp_path / "data") as again:
        event = again.http.get(f"/events/{entered['event']['id']}").json()
        assert event["event"]["state"] == "ended", "it ended with the server"
        assert event["changes"][-1]["kind"] == "end"
        assert middle_of(again, entered["event"]["id"]).argmax() == 2


def until_end(server: ServerProcess) -> list[dict[str, Any]]:
    """What is pushed, until an object that has a picture has ended and another one has dwelt."""
    changes: list[dict[str, Any]] = []
    for message in server.messages("/events", timeout=30):
        assert message["type"] == "event"
        changes.append(message)
        kinds = {change["kind"] for change in changes}
        if {"dwell", "end"} <= kinds:
            return changes
    raise AssertionError("the server ended the subscription")


def middle_of(server: ServerProcess, event_id: str) -> Any:
    """The colour in the middle of an event's picture, which is the object's."""
    answer = wait_for(lambda: _picture(server, event_id), 10, "the picture is stored")
    picture = np.asarray(Image.open(io.BytesIO(answer)).convert("RGB")).astype(int)
    height, width = picture.shape[:2]
    assert width == pytest.approx(CELL * 1.6, abs=3), "the object and a little around it"
    return picture[height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3].mean((0, 1))


def _picture(server: ServerProcess, event_id: str) -> bytes | None:
    response = server.http.get(f"/events/{event_id}/snapshot.jpg")
    return response.content if response.status_code == 200 else None
