"""The journal: pictures at a bounded cost, and followers who miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fake_runtime import FakeRuntime, detection, result
from live_server import until
from test_event_store import NOW, message

from server.analytics.analyst import Analyst, Observation
from server.analytics.event_store import EventFilter
from server.analytics.journal import Journal
from server.ingest.wire import EncodeRequest
from server.streams import StreamDefinition


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    made = FakeRuntime().journal
    yield made
    await made.close()


def seen(now: float, *tracks: int) -> Observation:
    return Observation(now, [(n, detection() | {"box": [0.0, 0.0, 50.0, 90.0]}) for n in tracks], [], [])  # type: ignore[arg-type, misc]


class Camera:
    """Answers encode requests when it is told to."""

    def __init__(self) -> None:
        self.asked: list[EncodeRequest] = []
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def encode(self, request: EncodeRequest) -> bytes:
        self.asked.append(request)
        return await self.answer


async def test_an_event_gets_its_picture(journal: Journal) -> None:
    camera = Camera()
    camera.answer.set_result(b"jpeg")
    journal.observe("door", result("door", 5), NOW, seen(100.0, 1), camera.encode)
    await until(lambda: journal.store.stored_number == 2)
    (event,) = await journal.store.events(EventFilter(), 10)
    assert (event["snapshot"], event["seq"]) == (True, 5)
    assert await journal.store.snapshot(event["id"]) == b"jpeg"
    (request,) = camera.asked
    assert (request.seq, request.crop) == (5, (0, 0, 65, 117))


@pytest.mark.parametrize("failure", [b"", TimeoutError(), ConnectionError()])
async def test_without_a_picture_the_event_is_there_all_the_same(journal: Journal, failure: object) -> None:
    camera = Camera()
    if isinstance(failure, bytes):
        camera.answer.set_result(failure)
    else:
        camera.answer.set_exception(failure)  # type: ignore[arg-type]
    journal.observe("door", result("door"), NOW, seen(100.0, 1), camera.encode)
    await until(lambda: bool(camera.asked) and journal.store.stored_number == 1)
    (event,) = await journal.store.events(EventFilter(), 10)
    assert not event["snapshot"]


async def test_cameras_that_do_not_answer_are_asked_eight_times_at_most(journal: Journal) -> None:
    camera = Camera()
    for number in range(30):
        journal.observe(f"s{number}", result("s"), NOW, seen(100.0, 1), camera.encode)
    await until(lambda: journal.store.stored_number == 30)
    assert len(camera.asked) == 8
    assert len({request.id for request in camera.asked}) == 8


async def test_a_stream_that_goes_ends_its_events(journal: Journal) -> None:
    analyst = Analyst()
    analyst.define(StreamDefinition(id="door", url="rtsp://h"))
    camera = Camera()
    for index in range(3):
        frame = result("door", index) | {"detections": [detection()], "pts": index / 10}
        observation = analyst.observe(frame, 100 + index / 10)  # type: ignore[arg-type]
        journal.observe("door", frame, NOW + index / 10, observation, camera.encode)  # type: ignore[arg-type]
    journal.close_stream("door", analyst, 105.0, NOW + 5)
    await journal.store.flush()
    (event,) = await journal.store.events(EventFilter(), 10)
    assert (event["state"], event["last_seen"][-5:]) == ("ended", ".200Z")
    journal.close_stream("door", analyst, 105.0, NOW + 5)  # nothing more to end


async def test_followers_get_everything_from_where_they_stopped(journal: Journal) -> None:
    store = journal.store
    store.put(message(1))
    await store.flush()
    got: list[int] = []

    async def follow(count: int) -> None:
        async for one in journal.follow("mqtt"):
            got.append(one["id"])
            if len(got) == count:
                return

    first = asyncio.create_task(follow(2))
    await asyncio.sleep(0)  # the task has asked for its cursor, and the store answers in order
    await store.cursor("mqtt")
    await store.cursor("mqtt")
    for number in range(2, 7):
        store.put(message(number))
    async with asyncio.timeout(10):
        await first
        assert got == [2, 3], "from now on"
        await follow(6)
    assert got == [2, 3, 3, 4, 5, 6], "what it may not have finished comes again: at least once"


async def test_followers_get_past_what_was_removed(journal: Journal) -> None:
    store = journal.store
    await store.move_cursor("mqtt", 0)
    store.put(message(1, "a"))
    store.put(message(2, "b"))
    await store.flush()
    await store.delete("a")
    await store.delete("b")
    following = aiter(journal.follow("mqtt"))
    waiting = asyncio.ensure_future(anext(following))
    store.put(message(3, "c"))
    async with asyncio.timeout(10):
        assert (await waiting)["id"] == 3
    await following.aclose()  # type: ignore[attr-defined]
