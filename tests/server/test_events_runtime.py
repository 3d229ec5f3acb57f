"""Tracking and events in the running server, with cameras and a worker of our own making."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from house import House

from server.analytics.event_store import EventFilter
from server.delivery.ports import InvalidField
from server.ingest.wire import EncodeRequest, Event, EventKind
from server.streams import StreamPatch

ZONE = {"name": "mat", "points": [[0, 0], [1, 0], [1, 1], [0, 1]], "inertia_s": 0}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)

    async def encode(camera: Any, request: EncodeRequest) -> bytes:
        return b"jpeg %d" % (request.seq or 0)

    made.cameras.encode = encode  # type: ignore[attr-defined]
    await made.runtime.start()
    made.worker.up()
    made.worker.obliging = True
    made.worker.found = np.array([[10, 10, 60, 110, 0.9, 0]], np.float32).tobytes()
    yield made
    await made.runtime.stop()


async def see(house: House, stream: Any, *seqs: int) -> None:
    for seq in seqs:
        house.now += 0.1
        times = {"arrived_at": house.now, "received_unix": 1e9 + house.now}
        stream.on_events(
            [
                Event(EventKind.OPEN, seq, **times),
                Event(EventKind.READY, seq, source_width=640, source_height=384, input_width=640, input_height=384,
                      pts=seq / 10, ready_at=house.now, **times),
            ]
        )  # fmt: skip
        assert await stream.emptied(10)


async def events(house: House) -> list[tuple[str, str, list[str], bool]]:
    store = house.runtime.journal.store
    await store.flush()
    return [(e["stream"], e["state"], e["zones"], e["snapshot"]) for e in await store.events(EventFilter(), 10)]


async def test_a_stream_that_is_removed_ends_its_events(house: House) -> None:
    stream = await house.add(zones=[ZONE])
    await see(house, stream, *range(1, 6))
    assert stream.recent(1)[0]["detections"][0]["track_id"] == 1
    assert await events(house) == [("door", "active", ["mat"], True)]
    assert stream.counters().zone_objects == {("mat", "person"): 1}
    await house.runtime.remove_stream("door")
    assert await events(house) == [("door", "ended", ["mat"], True)]
    again = await house.add()
    await see(house, again, 1, 2)
    assert [state for _, state, *_ in await events(house)] == ["active", "ended"]


async def test_who_is_seen_no_more_has_ended_though_no_frame_says_so(house: House) -> None:
    stream = await house.add()
    await see(house, stream, 1, 2, 3)
    house.now += 60
    house.runtime.roster.tick()
    ((_, state, *_),) = await events(house)
    assert state == "ended"
    (event,) = await house.runtime.journal.store.events(EventFilter(), 10)
    assert event["last_seen"] == event["first_seen"][:-4] + event["last_seen"][-4:], "when it was seen, not now"


async def test_classes_of_shapes_are_the_models(house: House) -> None:
    with pytest.raises(InvalidField, match="no class 'zebra'") as caught:
        await house.add(zones=[ZONE | {"classes": ["person", "zebra"]}])
    assert caught.value.field == "zones.0.classes"
    await house.add(zones=[ZONE])
    line = {"name": "mat", "points": [[0, 0], [1, 1]]}
    with pytest.raises(InvalidField, match="is there already") as caught:
        await house.runtime.update_stream("door", StreamPatch.model_validate({"lines": [line]}))
    assert caught.value.field == "lines.0.name"
    patch = {"lines": [line | {"name": "gate", "classes": ["zebra"]}]}
    with pytest.raises(InvalidField) as caught:
        await house.runtime.update_stream("door", StreamPatch.model_validate(patch))
    assert caught.value.field == "lines.0.classes"


async def test_zones_change_while_the_stream_runs(house: House) -> None:
    stream = await house.add()
    await see(house, stream, 1, 2, 3)
    await house.runtime.update_stream("door", StreamPatch.model_validate({"zones": [ZONE]}))
    await see(house, stream, 4, 5, 6)
    found = stream.recent(1)[0]["detections"][0]
    assert (found["track_id"], found["zones"]) == (1, ["mat"])
    assert [zones for _, _, zones, _ in await events(house)] == [["mat"]]
