"""Events over REST and WebSocket, against a fake runtime with a real journal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import JPEG, FakeRuntime
from live_server import live_server
from test_delivery_rest import check_problem
from test_event_store import NOW, message
from websockets.asyncio.client import connect

from server.access.registry import TokenFile
from server.access.roles import Role
from server.delivery.app import create_app
from server.outcome import timestamp
from server.settings import ServerSettings

IDS = [f"{number:017x}" for number in range(1, 8)]
"""Of events, in the order in which they began."""


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    made = FakeRuntime()
    made.add("door")
    made.add("yard")
    store = made.journal.store
    for number, event_id in enumerate(IDS, start=1):
        stream, name = ("yard", "car") if number % 3 == 0 else ("door", "person")
        store.put(message(number, event_id, stream=stream, first=NOW + number, last=NOW + number, **{"class": name}))
    store.put(message(8, IDS[0], "zone_enter", name="mat", last=NOW + 8))
    store.put_snapshot(IDS[0], JPEG)
    await store.flush()
    yield made
    await made.journal.close()


@pytest.fixture
async def client(runtime: FakeRuntime) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(create_app(runtime, ServerSettings()), "http://127.0.0.1:8080") as http:  # type: ignore[arg-type]
        yield http


async def ids(client: httpx.AsyncClient, **query: object) -> list[str]:
    response = await client.get("/events", params=query)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return [event["id"] for event in response.json()["events"]]


async def test_the_newest_first_page_by_page(client: httpx.AsyncClient) -> None:
    seen, cursor = [], None
    while True:
        page = (await client.get("/events", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))).json()
        seen.append([event["id"] for event in page["events"]])
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [IDS[:3:-1], IDS[3:0:-1], IDS[:1]]


async def test_filters(client: httpx.AsyncClient) -> None:
    assert await ids(client, stream="yard") == [IDS[5], IDS[2]]
    assert await ids(client, stream=["yard", "none"], **{"class": "person"}) == []
    assert await ids(client, **{"class": ["car", "bus"]}) == [IDS[5], IDS[2]]
    assert await ids(client, zone="mat") == await ids(client, kind="zone_enter") == [IDS[0]]
    assert await ids(client, line="mat") == []
    assert await ids(client, after=timestamp(NOW + 6.5), before=timestamp(NOW + 100)) == [IDS[6], IDS[0]]
    assert await ids(client, before=timestamp(NOW + 2.5)) == IDS[1::-1]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"), ({"limit": 501}, "limit"), ({"cursor": "x"}, "cursor"), ({"kind": "birth"}, "kind"),
        ({"after": "yesterday"}, "after"), ({"before": "2026-01-01T00:00:00"}, "before"),
    ],
)  # fmt: skip
async def test_bad_questions_name_the_parameter(client: httpx.AsyncClient, query: dict, field: str) -> None:
    problem = check_problem(await client.get("/events", params=query), 422, "invalid_field")
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_one_event_with_all_that_happened(client: httpx.AsyncClient) -> None:
    answer = (await client.get(f"/events/{IDS[0]}")).json()
    assert answer["event"]["id"] == IDS[0]
    assert [(change["id"], change["kind"], change["name"]) for change in answer["changes"]] == [
        (1, "new", None), (8, "zone_enter", "mat"),
    ]  # fmt: skip
    check_problem(await client.get(f"/events/{'f' * 17}"), 404, "event_not_found")
    check_problem(await client.get("/events/nonsense"), 422, "invalid_field")


async def test_the_picture(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/events/{IDS[0]}/snapshot.jpg")
    assert (response.content, response.headers["content-type"]) == (JPEG, "image/jpeg")
    check_problem(await client.get(f"/events/{IDS[1]}/snapshot.jpg"), 404, "no_picture")


async def test_forgotten_is_gone(client: httpx.AsyncClient) -> None:
    assert (await client.delete(f"/events/{IDS[0]}")).status_code == 204
    for path in ("", "/snapshot.jpg"):
        check_problem(await client.get(f"/events/{IDS[0]}{path}"), 404, "event_not_found")
    check_problem(await client.delete(f"/events/{IDS[0]}"), 404, "event_not_found")


async def test_changes_are_read_from_where_one_stopped(client: httpx.AsyncClient) -> None:
    first = (await client.get("/changes", params={"limit": 5})).json()
    assert [change["id"] for change in first["changes"]] == [1, 2, 3, 4, 5]
    rest = (await client.get("/changes", params={"after": first["after"]})).json()
    assert [change["id"] for change in rest["changes"]] == [6, 7, 8]
    assert (await client.get("/changes", params={"after": 8})).json() == {"changes": [], "after": 8}
    some = (await client.get("/changes", params={"stream": "yard"})).json()
    assert ([change["id"] for change in some["changes"]], some["after"]) == ([3, 6], 8), "what is not wanted is passed"


async def test_a_token_sees_the_events_of_its_streams_only(runtime: FakeRuntime, tmp_path: Path) -> None:
    token = TokenFile(tmp_path).add("yard", Role.OPERATOR, streams=frozenset({"yard"}))
    app = create_app(runtime, ServerSettings(data=tmp_path))  # type: ignore[arg-type]
    async with http_client(app, "http://camera.example") as client:
        client.headers["Authorization"] = f"Bearer {token}"
        assert await ids(client) == [IDS[5], IDS[2]]
        assert await ids(client, stream="door") == []
        assert (await client.get(f"/events/{IDS[2]}")).status_code == 200
        for method, path in (("GET", ""), ("GET", "/snapshot.jpg"), ("DELETE", "")):
            response = await client.request(method, f"/events/{IDS[0]}{path}")
            check_problem(response, 404, "event_not_found")
        changes = (await client.get("/changes")).json()["changes"]
        assert {change["stream"] for change in changes} == {"yard"}


@pytest.mark.system
async def test_pushed_as_it_happens_and_selected(runtime: FakeRuntime) -> None:
    async with live_server(runtime) as live, connect(f"{live.ws}/events") as everything:
        query = "?stream=door&class=person&kind=end&kind=zone_enter"
        async with connect(f"{live.ws}/events{query}") as chosen:
            sent = [
                message(20, IDS[0], "new"), message(21, IDS[0], "end", stream="yard"),
                message(22, IDS[0], "end", **{"class": "car"}), message(23, IDS[0], "end"),
            ]  # fmt: skip
            for one in sent:
                runtime.journal.feed.publish(one)
            assert json.loads(await chosen.recv()) == sent[3]
            assert [json.loads(await everything.recv()) for _ in sent] == sent
