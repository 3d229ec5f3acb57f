"""The client against a real server around a fake runtime: what it yields, over restarts, and what it raises."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_runtime import JPEG, FakeRuntime, detection, result
from live_server import Live, live_server, until
from test_event_store import NOW, message

from server.client import (
    ApiError,
    Client,
    Conflict,
    Invalid,
    NotFound,
    Unauthorized,
    Unreachable,
)
from server.client.errors import api_error
from server.client.http import THREAD
from server.client.outages import Outages

FAST = (0.02, 0.1)
TOKEN = "t0p-secret"


def runtime_with(*streams: str) -> FakeRuntime:
    runtime = FakeRuntime()
    for stream in streams:
        runtime.add(stream)
    return runtime


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    async with live_server(runtime_with("door", "yard")) as server:
        yield server


@pytest.fixture
async def client(live: Live) -> AsyncIterator[Client]:
    async with asyncio.timeout(20), Client(live.http + "/", retry_s=FAST) as made:
        yield made


async def after_states(messages: AsyncIterator[Any]) -> Any:
    while (got := await anext(messages))["type"] == "state":
        pass
    return got


async def test_results_are_filtered_and_typed(live: Live, client: Client) -> None:
    messages = client.detections("door", classes=["person", "car"], min_confidence=0.5)
    assert (await anext(messages))["type"] == "state"
    live.runtime.see("yard", detection())
    live.runtime.see("door", detection("person", 0.9), detection("car", 0.4), detection("dog", 0.9))
    got = await anext(messages)
    assert got["type"] == "result"
    assert got["stream"] == "door"
    assert [found["class"] for found in got["detections"]] == ["person"]


async def test_a_removed_stream_ends_its_iterator(live: Live, client: Client) -> None:
    messages = client.detections("door")
    await anext(messages)
    await client.remove_stream("door")
    assert [m["type"] == "state" and m["reason"] async for m in messages] == ["removed"]


async def test_a_restart_of_the_server_is_reported() -> None:
    runtime, again, retries = runtime_with("door", "yard"), runtime_with("door", "yard"), []
    async with asyncio.timeout(20), live_server(runtime) as before:
        port = before.port
        async with Client(before.http, retry_s=FAST, on_retry=lambda pause_s, why: retries.append(pause_s)) as client:
            messages = client.detections(["door", "yard"])
            await anext(messages), await anext(messages)
            assert [runtime.see(s)["seq"] for s in ("door", "yard")] == [1, 2]
            assert [(await anext(messages))["stream"] for _ in range(2)] == ["door", "yard"]
            before.stop.set()
            waiting = asyncio.ensure_future(after_states(messages))
            await before.task
            await until(lambda: len(retries) >= 2)
            async with live_server(again, port=port):
                await until(lambda: len(again.hub) == 1)
                again.hub.publish(result("door", 7))
                again.hub.publish(result("yard", 1))
                report = await waiting
                assert report["type"] == "reconnected"
                assert (report["stream"], report["missed"]) == ("door", 5)
                assert report["away_s"] > 0
                assert (await anext(messages))["seq"] == 7
                anew = await anext(messages)
                assert (anew["type"], anew["stream"], anew["missed"]) == ("reconnected", "yard", None)
                assert (await anext(messages))["seq"] == 1
                again.hub.publish(result("door", 8))
                assert (await anext(messages))["seq"] == 8
    assert all(FAST[0] <= pause_s <= FAST[1] for pause_s in retries)


async def test_a_gap_of_the_server_is_handed_on(live: Live, client: Client) -> None:
    messages = client.detections("door")
    await anext(messages)
    live.runtime.hub.publish({"type": "gap", "stream": "door", "missed": 3, "reason": "slow_client"})
    assert await anext(messages) == {"type": "gap", "stream": "door", "missed": 3, "reason": "slow_client"}


async def test_leaving_the_client_ends_iterators(live: Live) -> None:
    async with asyncio.timeout(10), Client(live.http, retry_s=FAST) as client:
        messages = client.detections()
        await anext(messages)
    assert [m async for m in messages if m["type"] == "result"] == []


async def test_refusals_are_final_and_typed(live: Live, client: Client) -> None:
    with pytest.raises(NotFound) as unknown:
        await anext(client.detections("none"))
    assert unknown.value.code == "stream_not_found"
    with pytest.raises(Invalid) as invalid:
        await anext(client.detections(min_confidence=2))
    assert [fault.field for fault in invalid.value.errors] == ["min_confidence"]
    async with live_server(runtime_with("door"), token=TOKEN) as locked:
        for token in (None, "wrong"):
            async with Client(locked.http, token=token, retry_s=FAST) as stranger:
                with pytest.raises(Unauthorized):
                    await anext(stranger.detections("door"))
                with pytest.raises(Unauthorized) as refused:
                    await stranger.streams()
                assert TOKEN not in str(refused.value)
        async with Client(locked.http, token=TOKEN) as friend:
            assert (await anext(friend.detections("door")))["type"] == "state"


async def test_a_full_server_is_asked_again_when_it_says_so() -> None:
    pauses: list[tuple[float, Exception]] = []
    async with (
        asyncio.timeout(20),
        live_server(runtime_with("door"), max_clients=1) as full,
        Client(full.http) as first,
        Client(full.http, on_retry=lambda *why: pauses.append(why)) as second,
    ):
        inside = first.detections()
        await anext(inside)
        outside = asyncio.ensure_future(after_states(second.detections()))
        await until(lambda: len(pauses) == 1)
    with pytest.raises(StopAsyncIteration):  # the client was left while it paused
        await outside
    (pause_s, why) = pauses[0]
    assert pause_s == 5
    assert isinstance(why, ApiError)
    assert (why.status, why.passing) == (503, True)


async def test_streams_come_change_and_go(client: Client) -> None:
    added = await client.add_stream("rtsp://192.0.2.7/a", id="gate", max_fps=5, username="u", password="p")
    assert (added["id"], added["max_fps"], added["password"]) == ("gate", 5, "***")
    assert (await client.change_stream("gate", max_fps=None))["max_fps"] is None
    assert (await client.stream("gate"))["id"] == "gate"
    with pytest.raises(Conflict):
        await client.add_stream("rtsp://192.0.2.7/a", id="gate")
    with pytest.raises(Invalid) as invalid:
        await client.add_stream("rtsp://192.0.2.7/a", max_fps=-1)
    assert [fault.field for fault in invalid.value.errors] == ["max_fps"]
    assert (await client.add_stream("rtsp://192.0.2.8/a", dry_run=True))["codec"] == "h264"
    await client.remove_stream("gate")
    assert [stream["id"] for stream in await client.streams()] == ["door", "yard"]
    with pytest.raises(NotFound):
        await client.remove_stream("../models")


async def test_pictures_ledgers_models(live: Live, client: Client) -> None:
    assert await client.snapshot("door", annotate=True, width=320) == JPEG
    assert live.runtime.snapshots == [("door", True, 320, 85)]
    assert (await client.ledger("door"))["received"] == 5
    assert [model["name"] for model in await client.models()] == ["tiny"]
    assert (await client.activate("tiny"))["name"] == "tiny"
    with pytest.raises(NotFound):
        await client.activate("none")


async def test_events_page_by_page_and_as_they_happen(live: Live, client: Client) -> None:
    journal, ids = live.runtime.journal, [f"{number:017x}" for number in range(1, 6)]
    for number, event_id in enumerate(ids, start=1):
        journal.store.put(message(number, event_id, stream="door", first=NOW + number, last=NOW + number))
    await journal.store.flush()
    assert [event["id"] async for event in client.events("door", page=2)] == ids[::-1]
    assert [event["id"] async for event in client.events("yard")] == []
    changes = client.changes(after=3, poll_s=0.02)
    assert [(await anext(changes))["id"] for _ in range(2)] == [4, 5]
    journal.store.put(message(6, ids[0], "end", stream="door"))
    await journal.store.flush()
    assert (await anext(changes))["id"] == 6
    tail = client.tail("door", kinds=["end"])
    happened = asyncio.ensure_future(anext(tail))
    await until(lambda: len(journal.feed) == 1)
    journal.feed.publish(message(7, ids[0], "update", stream="door"))
    journal.feed.publish(message(8, ids[0], "end", stream="door"))
    assert (await happened)["id"] == 8  # type: ignore[typeddict-item]
    await journal.close()


async def test_nobody_there() -> None:
    async with Client("http://127.0.0.1:9") as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            await client.streams()


def test_an_answer_that_does_not_come_holds_nobody_up() -> None:
    async def ask(port: int) -> None:
        async with Client(f"http://127.0.0.1:{port}", timeout_s=20) as client:
            await asyncio.wait_for(client.streams(), 0.05)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(TimeoutError):
            asyncio.run(ask(silent.getsockname()[1]))
        assert any(thread.name == THREAD for thread in threading.enumerate()), "the loop has waited for it"


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("ftp://x", None), ("127.0.0.1:8080", None), ("http://", None), ("http://u:p@x", None), ("http://x/?a=b", None),
        ("http://x:99999", None), ("http://x\r\nA: b", None), ("http://x", "a\r\nb"), ("http://x", "schl\xfcssel"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_at_once(url: str, token: str | None) -> None:
    with pytest.raises(ValueError, match=r"url|token|[Pp]ort"):
        Client(url, token=token)


def test_answers_of_proxies_are_errors_too() -> None:
    error = api_error(502, {"retry-after": "7"}, b"<html>Bad Gateway")
    assert type(error) is ApiError
    assert (error.status, error.code, error.passing, error.retry_after_s) == (502, "http_error", True, 7.0)
    assert not api_error(403, {}, b"[]").passing


def test_missed_results_are_told_once_over_several_outages() -> None:
    outages = Outages()
    outages.over(1.0)  # before anything was got there is nothing to miss
    assert outages.report(result("door", 5)) is None
    outages.over(1.0)
    outages.over(0.5)
    assert outages.report({"type": "state", "stream": "door", "state": "running", "reason": None}) is None
    assert outages.report(result("door", 9)) == {"type": "reconnected", "stream": "door", "missed": 3, "away_s": 1.5}
    assert outages.report(result("door", 10)) is None
    outages.over(1.0)
    outages.report({"type": "state", "stream": "door", "state": "stopped", "reason": "removed"})
    assert outages.report(result("door", 1)) is None
