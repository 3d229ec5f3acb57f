"""One model takes the place of another: what goes where, what is waited for, and what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from house import FakeWorker, House, until
from tiny_model import tiny_bundle

from server.ingest.wire import StateChange
from server.models import swap
from server.models.swap import MEMORY, ClassesMissing, SwapInProgress
from server.models.trial import Refused
from server.store import StoreError

OLD = ["person", "car"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A server with the model `old` (640), which knows `new` (the same size, other classes) and `large` (1280)."""
    old = tiny_bundle(tmp_path / "models" / "old", names=OLD, name="old", input_size=640)
    tiny_bundle(tmp_path / "models" / "new", names=OLD[::-1], name="new", input_size=640)
    tiny_bundle(tmp_path / "models" / "large", names=OLD, name="large", input_size=1280)
    made = House(tmp_path, old, swap_timeout_s=20)
    await made.runtime.start()
    made.worker.up()
    await until(lambda: "new" in made.runtime.registry.entries)
    yield made
    await made.runtime.stop()


async def begin(house: House, name: str, **options: Any) -> tuple[asyncio.Task[None], FakeWorker]:
    """An activation that waits for its worker."""
    known = len(house.workers)
    task = house.runtime.swapper.begin(name, **options)
    assert task is not None
    await until(lambda: len(house.workers) > known or task.done())
    return task, house.workers[-1]


async def activate(house: House, name: str, **options: Any) -> FakeWorker:
    """To the switch. From then on the worker answers when told to."""
    task, worker = await begin(house, name, **options)
    worker.obliging = True
    worker.up()
    await asyncio.wait_for(asyncio.shield(task), 10)
    worker.obliging = False
    return worker


def results(stream: Any) -> list[tuple[int, str, int]]:
    return [(r["seq"], r["model"], r["model_generation"]) for r in reversed(stream.recent(100))]


async def test_what_is_under_way_ends_where_it_is_and_what_waits_goes_to_the_new_model(house: House) -> None:
    stream = await house.add(classes=["car"])
    house.frame(stream, 1)
    old = house.worker
    task, new = await begin(house, "new")
    house.frame(stream, 2)
    assert len(old.sent) == 1, "one is in the engine, one waits"
    assert set(new.arenas) == set(old.arenas)
    new.obliging = True
    new.up()
    await asyncio.wait_for(task, 10)
    assert not old.stopped
    new.obliging = False
    assert stream.ledger().in_flight == 2
    assert results(stream) == [], "the answer to the second waits for that to the first"
    old.answer(house.now)
    await until(lambda: old.stopped)
    assert results(stream) == [(1, "old", 1), (2, "new", 2)]
    assert stream.ledger().model_dump() == {"received": 2, "completed": 2, "in_flight": 0, "dropped": {}}
    assert house.runtime.model["name"] == "new"


async def test_thresholds_and_names_are_those_of_the_model_that_computed(house: House) -> None:
    stream = await house.add(classes=["car"])
    house.frame(stream, 1)
    old = house.worker
    (frame,) = old.sent[0].frames
    assert np.frombuffer(frame.class_thresholds or b"", np.float32).tolist() == [2.0, 0.25], "person, car"
    new = await activate(house, "new")
    row = np.array([[1, 2, 3, 4, 0.9, 1]], np.float32).tobytes()
    old.found = row
    old.answer(house.now)
    house.frame(stream, 2)
    (frame,) = new.sent[0].frames
    assert np.frombuffer(frame.class_thresholds or b"", np.float32).tolist() == [0.25, 2.0], "car, person"
    new.found = np.array([[1, 2, 3, 4, 0.9, 0]], np.float32).tobytes()
    new.answer(house.now)
    assert [r["detections"][0]["class"] for r in stream.recent(2)] == ["car", "car"]


async def test_frames_of_the_old_size_go_to_the_old_model_until_every_camera_has_heard(house: House) -> None:
    stream, other = await house.add(), await house.add("yard")
    for one in (stream, other):
        house.beat(one, 640)
    old = house.worker
    new = await activate(house, "large")
    assert (stream.camera.input_size, other.camera.input_size) == (1280, 1280)
    house.frame(stream, 1, 640)
    assert [frame.arena for request in old.sent for frame in request.frames] == [stream.arena]
    old.answer(house.now)
    house.beat(stream, 1280)
    house.frame(stream, 2, 1280)
    new.answer(house.now)
    await asyncio.sleep(0.05)
    assert not old.stopped, "the other camera may still send one"
    house.frame(other, 1, 640)
    house.beat(other, 1280)
    await asyncio.sleep(0.05)
    assert not old.stopped, "one is in the engine"
    old.answer(house.now)
    await until(lambda: old.stopped)
    assert results(stream) == [(1, "old", 1), (2, "large", 2)]
    assert results(other) == [(1, "old", 1)]


async def test_a_camera_without_a_process_is_not_waited_for_and_one_that_never_answers_not_for_ever(
    house: House,
) -> None:
    gone, silent = await house.add("gone"), await house.add("silent")
    gone.camera.alive = False
    house.beat(silent, 640)
    old = house.worker
    new = await activate(house, "large")
    await asyncio.sleep(0.05)
    assert not old.stopped
    house.now += swap._DRAIN_S
    await until(lambda: old.stopped)
    house.frame(silent, 1, 640)
    assert new.asked[-1] == (384, 640), "one that comes all the same has its shape prepared"
    new.on.on_prepared(384, 640, None)
    new.answer(house.now)
    assert results(silent) == [(1, "large", 2)]


async def test_an_old_worker_that_dies_while_it_drains_is_not_waited_for(house: House) -> None:
    stream = await house.add()
    house.beat(stream, 640)
    old = house.worker
    new = await activate(house, "large")
    old.down("worker_lost: it was killed")
    house.frame(stream, 1, 640)
    new.on.on_prepared(*new.asked[-1], None)
    new.answer(house.now)
    assert results(stream) == [(1, "large", 2)]
    assert house.runtime.readiness()[0]


async def test_a_model_whose_worker_is_gone_can_be_replaced_and_what_waited_for_it_is_answered(house: House) -> None:
    stream = await house.add()
    house.beat(stream, 640)
    house.worker.down("worker_lost: it was killed")
    house.frame(stream, 1, 640)
    assert not house.runtime.readiness()[0]
    task, new = await begin(house, "large")
    new.obliging = True
    new.up()
    await asyncio.wait_for(task, 10)
    await until(lambda: results(stream) == [(1, "large", 2)])
    assert new.asked == [(384, 640)]
    assert house.runtime.readiness()[0]


async def test_every_shape_in_use_is_warm_before_the_switch_also_one_that_comes_meanwhile(house: House) -> None:
    door = await house.add()
    _see(door, 640, 384)
    task, new = await begin(house, "large")
    square = await house.add("square")
    _see(square, 480, 480)
    new.obliging = True
    new.up()
    await asyncio.wait_for(task, 10)
    assert set(new.asked) == {(1280, 1280)}, "the shape of Hello is warm"
    assert house.runtime.model["name"] == "large"


def _see(stream: Any, width: int, height: int) -> None:
    stream.on_state(StateChange(state="running", codec="h264", width=width, height=height, fps=10))


async def test_streams_that_would_lose_classes_are_named_and_with_force_they_are_ignored(house: House) -> None:
    tiny_bundle(house.runtime.registry._models / "cats", names=["cat", "car"], name="cats", input_size=640)
    await house.runtime.registry.scan()
    stream = await house.add(classes=["person", "car"])
    await house.add("yard", class_confidence={"person": 0.5})
    with pytest.raises(ClassesMissing, match=r"\(door: person; yard: person\)"):
        house.runtime.swapper.begin("cats")
    await activate(house, "cats", force=True)
    assert stream.status().missing_classes == ["person"]
    entry = house.runtime.registry.get("cats")
    assert entry.note is not None
    assert "person" in entry.note
    assert "door" not in entry.note, "who may see models need not see that stream"


async def test_what_goes_wrong_on_trial_is_a_refusal_and_the_old_one_goes_on(house: House) -> None:
    stream = await house.add()
    faults = {
        "the engine cannot be started: no such thing": lambda w: w.down("the engine cannot be started: no such thing"),
        "inference failed: NaN": lambda w: setattr(w, "error", "NaN"),
        "no numbers": lambda w: setattr(w, "found", np.full((1, 6), np.nan, np.float32).tobytes()),
        "none of its 2 classes": lambda w: setattr(w, "found", np.array([[1, 2, 3, 4, 0.9, 2]], np.float32).tobytes()),
    }
    for why, fault in faults.items():
        task, worker = await begin(house, "new")
        worker.obliging = True
        fault(worker)
        if "started" not in why:
            worker.up()
        with pytest.raises(Refused, match=why):
            await asyncio.wait_for(task, 10)
        assert worker.stopped
        entry = house.runtime.registry.get("new")
        assert (entry.state, why in (entry.reason or "")) == ("refused", True)
        assert house.runtime.engine._others == []
    house.frame(stream, 1)
    house.worker.answer(house.now)
    assert results(stream) == [(1, "old", 1)]
    assert b'yolov9_model_swaps_total{result="failed"} 4' in house.runtime.metrics.render()


async def test_a_shape_that_cannot_be_prepared_is_a_refusal(house: House) -> None:
    _see(await house.add(), 480, 480)
    task, worker = await begin(house, "new")
    worker.up()
    await until(lambda: worker.asked)
    worker.on.on_prepared(640, 640, "out of memory")
    with pytest.raises(Refused, match="inputs of 640x640 pixels cannot be prepared: out of memory"):
        await asyncio.wait_for(task, 10)


async def test_one_that_is_too_slow_is_refused_unless_it_is_forced(house: House) -> None:
    stream = await house.add()
    _see(stream, 640, 384)
    house.frame(stream, 1)
    house.worker.answer(house.now)
    task, worker = await begin(house, "new")
    worker.obliging, worker.seconds = True, 0.05
    worker.up()
    with pytest.raises(Refused, match=r"50\.0 ms for a picture, 5\.0 times as long .* \(10\.0 ms\); 4 times"):
        await asyncio.wait_for(task, 10)
    task, worker = await begin(house, "new", force=True)
    worker.obliging, worker.seconds = True, 0.05
    worker.up()
    await asyncio.wait_for(task, 10)
    assert house.runtime.model["name"] == "new"


async def test_one_that_is_never_ready_is_refused_in_time(house: House) -> None:
    house.runtime._settings.swap_timeout_s = 0.05
    task, worker = await begin(house, "new")
    with pytest.raises(Refused, match=r"not ready within 0\.05 s"):
        await asyncio.wait_for(task, 10)
    assert worker.stopped


async def test_one_at_a_time_and_the_active_one_needs_nothing(house: House) -> None:
    assert house.runtime.swapper.begin("old") is None
    task, worker = await begin(house, "new")
    with pytest.raises(SwapInProgress):
        house.runtime.swapper.begin("large")
    worker.down("killed")
    with pytest.raises(Refused):
        await asyncio.wait_for(task, 10)
    await activate(house, "large")
    assert house.runtime.registry.get("old").state == "ready"


async def test_the_next_swap_waits_for_the_drain_of_the_one_before(house: House) -> None:
    stream = await house.add()
    house.beat(stream, 640)
    old = house.worker
    await activate(house, "large")
    task = house.runtime.swapper.begin("old")
    assert task is not None
    await asyncio.sleep(0.05)
    assert (len(house.workers), old.stopped) == (2, False)
    house.beat(stream, 1280)
    await until(lambda: len(house.workers) == 3)
    assert old.stopped
    house.workers[-1].obliging = True
    house.workers[-1].up()
    await asyncio.wait_for(task, 10)
    assert house.runtime.model["generation"] == 3


async def test_the_end_of_the_server_ends_a_trial(house: House) -> None:
    task, worker = await begin(house, "new")
    await house.runtime.stop()
    assert task.cancelled()
    assert worker.stopped


async def test_no_model_becomes_active_while_the_server_drains(house: House) -> None:
    task, worker = await begin(house, "new")
    await house.runtime.drain()
    assert task.cancelled()
    worker.up()
    await asyncio.sleep(0.05)
    assert house.runtime.model["name"] == "old"


async def test_the_active_model_is_remembered_and_a_broken_store_is_no_reason_to_go_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await activate(house, "new")
    await house.runtime.swapper.drained()
    assert '"name": "new"' in (await house.store.recall(MEMORY) or "")

    async def full(key: str, value: str) -> None:
        raise StoreError("disk full") from sqlite3.OperationalError()

    monkeypatch.setattr(house.store, "remember", full)
    await activate(house, "old")
    await house.runtime.swapper.drained()
    assert house.runtime.model["name"] == "old"
    assert "could not be remembered" in (house.runtime.registry.get("old").note or "")


async def test_an_image_that_is_being_scaled_for_the_old_size_holds_the_old_worker(house: House) -> None:
    house.runtime.engine.desk._writing[640] += 1
    old = house.worker
    await activate(house, "large")
    await asyncio.sleep(0.05)
    assert not old.stopped
    house.runtime.engine.desk._writing[640] -= 1
    await until(lambda: old.stopped)
