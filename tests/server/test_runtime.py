"""The runtime with a worker and cameras of our own making: streams that come, change and go at the same time."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from house import House
from PIL import Image

from server import detect as detect_module
from server.delivery.ports import NoCapacity, StreamExists, StreamNotFound
from server.streams import StreamPatch


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.runtime.start()
    made.worker.up()
    yield made
    await made.runtime.stop()


async def test_a_stream_removed_twice_at_once_is_removed_once(house: House) -> None:
    await house.add()
    answers = await asyncio.gather(*(house.runtime.remove_stream("door") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), StreamNotFound, StreamNotFound]
    assert dict(house.runtime.streams) == {}
    assert await house.store.load() == []


async def test_changes_at_the_same_time_are_all_kept(house: House) -> None:
    stream = await house.add()
    patches = [StreamPatch(confidence=0.5), StreamPatch(iou=0.4), StreamPatch(max_fps=7.0)]
    await asyncio.gather(*(house.runtime.update_stream("door", patch) for patch in patches))
    (stored,) = await house.store.load()
    for definition in (stream.definition, stored):
        assert (definition.confidence, definition.iou, definition.max_fps) == (0.5, 0.4, 7.0)


async def test_a_change_during_the_removal_does_not_bring_the_stream_back(house: House) -> None:
    await house.add()
    removal = asyncio.ensure_future(house.runtime.remove_stream("door"))
    await asyncio.sleep(0.005)
    with pytest.raises(StreamNotFound):
        await house.runtime.update_stream("door", StreamPatch(iou=0.4))
    await removal
    assert await house.store.load() == []


async def test_a_name_is_free_again_once_its_stream_is_gone(house: House) -> None:
    await house.add()
    with pytest.raises(StreamExists):
        await house.add()
    await house.runtime.remove_stream("door")
    await house.add()
    assert list(house.runtime.streams) == ["door"]


async def test_streams_added_at_the_same_time_do_not_pass_the_limit(house: House) -> None:
    answers = await asyncio.gather(*(house.add(f"s{n}") for n in range(6)), return_exceptions=True)
    assert sum(isinstance(a, NoCapacity) for a in answers) == 3
    assert len(house.runtime.streams) == len(await house.store.load()) == 3


async def test_a_stream_that_cannot_be_opened_leaves_nothing_behind(house: House) -> None:
    house.cameras.fails = True
    with pytest.raises(NoCapacity, match="Too many open files"):
        await house.add()
    assert await house.store.load() == []
    assert dict(house.runtime.streams) == {}
    assert "door" not in house.runtime.engine.dispatcher._scheduler._streams
    house.cameras.fails = False
    await house.add()
    assert list(house.runtime.streams) == ["door"]


async def test_readiness_stays_green_for_the_first_frame_after_an_idle_time(house: House) -> None:
    stream = await house.add()
    house.frame(stream, 1)
    house.worker.answer(house.now)
    house.now += 3600
    assert house.runtime.readiness()[0]
    house.frame(stream, 2)
    assert house.runtime.readiness()[0], "it has waited for no time at all"
    house.now += 11
    ready, why = house.runtime.readiness()
    assert not ready
    assert "11.0 s" in why
    house.worker.answer(house.now)
    assert house.runtime.readiness()[0]


async def test_a_slot_is_not_given_on_while_a_thread_still_writes_to_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, began = threading.Event(), threading.Event()
    read = detect_module.read_image

    def slow(image: bytes, **options: Any) -> Any:
        began.set()
        assert go_on.wait(10)
        return read(image, **options)

    monkeypatch.setattr(detect_module, "read_image", slow)
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "PNG")
    desk = house.runtime.engine.desk
    free = desk._free.qsize()
    request = asyncio.ensure_future(house.runtime.detect(picture.getvalue()))
    await asyncio.to_thread(began.wait, 10)
    request.cancel()
    await asyncio.wait([request])
    assert desk._free.qsize() == free - 1, "the thread still has it"
    go_on.set()
    slots = {await asyncio.wait_for(desk._free.get(), 10) for _ in range(free)}
    assert len(slots) == free, "each slot came back once"
