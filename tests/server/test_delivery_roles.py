"""Roles and granted streams, for every route: the table decides, and what a token may not see does not exist for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from asgi_client import http_client, websocket
from fake_runtime import FakeRuntime, detection
from fastapi import FastAPI
from live_server import live_server, until
from starlette.routing import Route, WebSocketRoute

from server.access.roles import Role
from server.access.tokens import TokenFile
from server.delivery import permissions
from server.delivery.app import create_app
from server.delivery.permissions import TABLE, WEBSOCKET
from server.settings import ServerSettings

BASE = "http://camera.example"
ENDLESS = {"/detections/sse", "/streams/{stream_id}/live.mjpg"}
PRINCIPALS = ("metrics", "viewer", "operator", "admin")


@pytest.fixture
def runtime() -> FakeRuntime:
    runtime = FakeRuntime()
    for stream in ("door", "yard"):
        runtime.add(stream)
        runtime.see(stream, detection())
    return runtime


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """A token for each role, and `door-viewer`, `door-operator`, `door-metrics`, who are granted one stream."""
    file = TokenFile(tmp_path)
    made = {name: file.add(name, Role.named(name)) for name in PRINCIPALS}
    door = frozenset({"door"})
    made |= {f"door-{r}": file.add(f"door-{r}", Role.named(r), streams=door) for r in ("viewer", "operator", "metrics")}
    return made


@pytest.fixture
def app(runtime: FakeRuntime, tokens: dict[str, str], tmp_path: Path) -> FastAPI:
    return create_app(runtime, ServerSettings(data=tmp_path))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(app, BASE) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_table_names_every_route_and_no_other(app: FastAPI) -> None:
    assert set(permissions.routes_of(app.routes)) == set(TABLE)


async def test_a_route_without_a_rule_is_not_served(app: FastAPI) -> None:
    async def nothing(_: Any) -> None: ...

    app.router.routes.append(Route("/secrets", nothing))
    with pytest.raises(RuntimeError, match=r"who may call \[\('GET', '/secrets'\)\]"):
        permissions.check(app)
    app.router.routes[-1] = WebSocketRoute("/secrets", nothing)
    with pytest.raises(RuntimeError, match=r"\('WEBSOCKET', '/secrets'\)"):
        permissions.check(app)


@pytest.mark.parametrize(("method", "path"), sorted(key for key in TABLE if key[1] not in ENDLESS))
async def test_every_route_wants_its_role(
    app: FastAPI, client: httpx.AsyncClient, tokens: dict[str, str], method: str, path: str
) -> None:
    needed = TABLE[method, path].role
    address = path.replace("{stream_id}", "door").replace("{path:path}", "x").replace("{file}", "start.js")
    for name in (None, *PRINCIPALS):
        headers = {} if name is None else bearer(tokens[name])
        if method == WEBSOCKET:
            status, body = await websocket(app, address, headers)
        else:
            answer = await client.request(method, address, headers=headers)
            status, body = answer.status_code, answer.content
        if name is None and needed is not None:
            assert status == 401, address
        elif name is not None and needed is not None and Role.named(name) < needed:
            assert (status, json.loads(body)["code"]) == (403, "forbidden"), (address, name)
        else:
            assert status != 403, (address, name)
            assert path == "/session" or status != 401, (address, name)


@pytest.mark.parametrize(("method", "path"), sorted(key for key in TABLE if "{stream_id}" in key[1]))
async def test_a_stream_that_is_not_granted_looks_like_none(
    app: FastAPI, client: httpx.AsyncClient, tokens: dict[str, str], method: str, path: str
) -> None:
    answers = []
    for stream in ("yard", "none"):
        address, headers = path.replace("{stream_id}", stream), bearer(tokens["door-operator"])
        if method == WEBSOCKET:
            answers.append(tuple(await websocket(app, address, headers)))
        else:
            answer = await client.request(method, address, headers=headers)
            answers.append((answer.status_code, answer.content.replace(stream.encode(), b"yard")))
    there, missing = ((status, body.replace(b"none", b"yard")) for status, body in answers)
    assert there == missing
    assert there[0] == 404
    assert json.loads(there[1])["code"] == "stream_not_found"


async def test_the_answer_for_a_stream_that_is_not_granted_is_that_for_a_missing_one(
    client: httpx.AsyncClient, tokens: dict[str, str]
) -> None:
    hidden = await client.get("/streams/yard/ledger", headers=bearer(tokens["door-viewer"]))
    missing = await client.get("/streams/none/ledger", headers=bearer(tokens["viewer"]))
    assert hidden.text.replace("yard", "none") == missing.text


async def test_lists_show_what_is_granted(client: httpx.AsyncClient, tokens: dict[str, str]) -> None:
    async def listed(name: str) -> list[str]:
        return [stream["id"] for stream in (await client.get("/streams", headers=bearer(tokens[name]))).json()]

    assert await listed("viewer") == ["door", "yard"]
    assert await listed("door-viewer") == ["door"]


@pytest.mark.parametrize("query", ["", "?stream=yard&stream=door", "?stream=yard"])
async def test_pushes_hold_what_is_granted(
    runtime: FakeRuntime, tokens: dict[str, str], tmp_path: Path, query: str
) -> None:
    async with live_server(runtime, data=tmp_path) as server:
        url, headers = f"{server.ws}/detections{query}", bearer(tokens["door-viewer"])
        async with websockets.connect(url, additional_headers=headers) as socket:
            await until(lambda: len(runtime.hub) == 1)
            for _ in range(3):
                runtime.see("yard", detection())
                runtime.see("door", detection())
            runtime.hub.close()
            seen = [json.loads(message)["stream"] async for message in socket]
    assert seen == ([] if query == "?stream=yard" else ["door"] * 4)  # its state, then results


async def test_metrics_tell_of_all_streams(client: httpx.AsyncClient, tokens: dict[str, str]) -> None:
    statuses = {n: (await client.get("/metrics", headers=bearer(tokens[n]))).status_code for n in tokens}
    assert statuses == {
        "metrics": 200, "viewer": 200, "operator": 200, "admin": 200,
        "door-viewer": 403, "door-operator": 403, "door-metrics": 403,
    }  # fmt: skip


async def test_an_operator_of_some_streams_adds_those_only(
    client: httpx.AsyncClient, tokens: dict[str, str], runtime: FakeRuntime
) -> None:
    headers = bearer(tokens["door-operator"])
    for body in ({"url": "rtsp://x/1"}, {"url": "rtsp://x/1", "id": "yard"}, {"url": "rtsp://x/1", "id": "gate"}):
        for path in ("/streams", "/streams?dry_run=true"):
            assert (await client.post(path, json=body, headers=headers)).json()["code"] == "forbidden"
    await runtime.remove_stream("door")
    assert (await client.post("/streams", json={"url": "rtsp://x/1", "id": "door"}, headers=headers)).status_code == 201


@pytest.mark.parametrize("path", ["/detections", "/streams/door/detections"])
async def test_a_revoked_token_ends_its_websockets(
    runtime: FakeRuntime, tokens: dict[str, str], tmp_path: Path, path: str
) -> None:
    async with live_server(runtime, data=tmp_path) as server:
        connect = [
            websockets.connect(server.ws + path, additional_headers=bearer(tokens[name]))
            for name in ("viewer", "admin")
        ]
        async with connect[0] as revoked, connect[1] as kept:
            await revoked.recv()
            await kept.recv()
            TokenFile(tmp_path).revoke("viewer")
            with pytest.raises(websockets.ConnectionClosed):  # noqa: PT012 - what was on its way comes first
                while True:
                    await asyncio.wait_for(revoked.recv(), 10)
            assert (revoked.close_code, revoked.close_reason) == (1008, "the token was revoked")
            runtime.see("door", detection())
            async with asyncio.timeout(10):
                while json.loads(await kept.recv())["type"] != "result":
                    pass
            assert len(runtime.hub) == 1


@pytest.mark.parametrize("path", ["/detections/sse", "/streams/door/live.mjpg"])
async def test_a_revoked_token_ends_its_endless_answers(
    runtime: FakeRuntime, tokens: dict[str, str], tmp_path: Path, path: str
) -> None:
    async with live_server(runtime, data=tmp_path) as server, httpx.AsyncClient(base_url=server.http) as client:
        async with client.stream("GET", path, headers=bearer(tokens["viewer"])) as answer:
            parts = answer.aiter_bytes()
            await anext(parts)
            TokenFile(tmp_path).revoke("viewer")
            async with asyncio.timeout(10):
                async for _ in parts:
                    pass  # until it ends in order: a cut connection would raise
        assert (await client.get("/streams", headers=bearer(tokens["viewer"]))).status_code == 401
