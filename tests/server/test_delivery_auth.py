"""Who is let in: tokens, Host and Origin, for every path of the interface."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from asgi_client import http_client, websocket
from fake_runtime import FakeRuntime
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from server.access.throttle import BURST, REFILL_S
from server.delivery.app import create_app
from server.delivery.permissions import PROBES, TABLE
from server.settings import ServerSettings

TOKEN = "t0p-secret"
LOCAL = "http://localhost:8080"
PATHS = [
    "/streams", "/streams/door", "/streams/door/ledger", "/streams/door/detections", "/streams/door/snapshot.jpg",
    "/streams/door/live.mjpg", "/detections/sse", "/metrics", "/docs", "/openapi.json", "/session", "/nothing",
]  # fmt: skip
WITH_QUERY_TOKEN = {"/streams/door/snapshot.jpg"}
"""Of those that take ?token=, the one whose answer ends."""


@pytest.fixture
def runtime() -> FakeRuntime:
    runtime = FakeRuntime()
    runtime.add("door")
    return runtime


@pytest.fixture
def app(runtime: FakeRuntime) -> FastAPI:
    """With a token."""
    return create_app(runtime, ServerSettings(token=TOKEN))


@pytest.fixture
def local_app(runtime: FakeRuntime) -> FastAPI:
    """Without one."""
    return create_app(runtime, ServerSettings())


@pytest.fixture
async def guarded(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(app, "http://camera.example") as client:
        yield client


@pytest.fixture
async def local(local_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(local_app, LOCAL) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer t0p-s\xe9cret"]
)
async def test_every_path_wants_the_token(guarded: httpx.AsyncClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = await guarded.get(path, headers=headers)
    assert response.status_code == 401
    assert response.json()["code"] == "unauthorized"
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", sorted(set(PATHS) - {"/detections/sse", "/streams/door/live.mjpg"}))
async def test_the_token_opens(guarded: httpx.AsyncClient, path: str) -> None:
    for scheme in ("Bearer", "bearer"):
        response = await guarded.get(path, headers={"Authorization": f"{scheme} {TOKEN}"})
        assert response.status_code in (200, 307, 404)
        assert response.status_code == 404 or path != "/nothing"


@pytest.mark.parametrize("path", sorted(set(PATHS) - {"/detections/sse", "/streams/door/live.mjpg"}))
async def test_the_query_opens_pictures_only(guarded: httpx.AsyncClient, path: str) -> None:
    response = await guarded.get(f"{path}?token={TOKEN}")
    assert response.status_code == (200 if path in WITH_QUERY_TOKEN else 401)
    assert (await guarded.get(f"{path}?token=wrong")).status_code == 401


async def test_health_and_the_page_need_no_token(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/healthz")).status_code == 200
    assert (await guarded.get("/readyz")).status_code == 200
    assert (await guarded.get("/")).status_code in (200, 307)


@pytest.mark.parametrize("path", ["/detections", "/streams/door/detections"])
async def test_websocket_token(app: FastAPI, path: str) -> None:
    for query, headers in ((f"?class=a&token={TOKEN}", {}), ("", {"Authorization": f"Bearer {TOKEN}"})):
        status, message = await websocket(app, path + query, headers)
        assert status == 101
        assert json.loads(message)["type"] == "state"
    for query in ("", "?token=wrong", "?token="):
        status, problem = await websocket(app, path + query, {})
        assert status == 401
        assert json.loads(problem)["code"] == "unauthorized"


async def test_the_token_is_taken_out_of_the_query(
    app: FastAPI, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="yolov9")
    queries = []

    async def spy(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        queries.append(scope["query_string"])  # what a server's access log would print

    async with http_client(spy, "http://camera.example") as client:
        await client.get(f"/streams/door/snapshot.jpg?width=64&token={TOKEN}&quality=9&annotate=true")
        await client.get(f"/streams?token={TOKEN}")
    assert queries == [b"width=64&quality=9&annotate=true", b""]
    assert runtime.snapshots == [("door", True, 64, 9)]
    ours = [record.getMessage() for record in caplog.records if record.name != "httpx"]  # the client's own log may
    assert not any(TOKEN in message for message in ours)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("localhost:8080", True), ("LOCALHOST", True), ("127.0.0.1:1", True), ("127.9.9.9", True),
        ("[::1]:8080", True), ("[::1]", True), ("evil.example", False), ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8080", False), ("192.168.1.2:8080", False), ("0.0.0.0:8080", False), ("", False),
        ("user@localhost", True), ("localhost@evil.example", False), ("[::1", False),
    ],
)  # fmt: skip
async def test_without_a_token_only_loopback_names_are_answered(
    local: httpx.AsyncClient, host: str, allowed: bool
) -> None:
    response = await local.get("/streams", headers={"Host": host})
    assert response.status_code == (200 if allowed else 403)
    if not allowed:
        assert response.json()["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True), ("http://localhost:8080", True), ("https://localhost:8080", True), ("http://localhost", False),
        ("http://127.0.0.1:8080", False), ("http://evil.example", False), ("null", False), ("", False),
        ("http://localhost:8080.evil.example", False),
    ],
)  # fmt: skip
async def test_without_a_token_other_sites_are_refused(
    local: httpx.AsyncClient, local_app: FastAPI, origin: str | None, allowed: bool
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    response = await local.post("/streams", json={"url": "rtsp://x"}, headers=headers)
    status, body = await websocket(local_app, "/detections", {"Host": "localhost:8080"} | headers)
    assert (response.status_code, status) == ((201, 101) if allowed else (403, 403))
    if not allowed:
        assert response.json()["code"] == json.loads(body)["code"] == "origin_not_allowed"


async def test_with_a_token_hosts_are_free_and_origins_are_not(guarded: httpx.AsyncClient, app: FastAPI) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "any.example"}
    assert (await guarded.get("/streams", headers=headers)).status_code == 200
    assert (await guarded.get("/streams", headers=headers | {"Origin": "https://any.example"})).status_code == 200
    headers["Origin"] = "http://elsewhere.example"
    assert (await guarded.get("/streams", headers=headers)).json()["code"] == "origin_not_allowed"
    assert (await websocket(app, "/detections", headers)).status == 403


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("cam.example", True), ("CAM.example:8080", True), ("a.lan.example", True), ("a.b.lan.example", True),
        ("localhost", True), ("lan.example", False), ("evil.example", False), ("cam.example.evil.example", False),
    ],
)  # fmt: skip
async def test_names_may_be_limited(runtime: FakeRuntime, host: str, allowed: bool) -> None:
    app = create_app(runtime, ServerSettings(token=TOKEN, allowed_hosts=["Cam.example", "*.lan.example"]))
    async with http_client(app, "http://x") as client:
        headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/streams", headers=headers)).status_code == (200 if allowed else 403)
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_names_of_a_server_without_tokens_may_be_extended(runtime: FakeRuntime) -> None:
    app = create_app(runtime, ServerSettings(allowed_hosts=["proxy.example"]))
    async with http_client(app, "http://proxy.example") as client:
        assert (await client.get("/streams")).status_code == 200
        assert (await client.get("/streams", headers={"Host": "other.example"})).status_code == 403


async def test_pages_of_allowed_origins_may_read(runtime: FakeRuntime) -> None:
    dashboard = "https://dashboard.example"
    app = create_app(runtime, ServerSettings(token=TOKEN, allowed_origins=[dashboard]))
    asked = {"Origin": dashboard, "Access-Control-Request-Method": "PATCH"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type"
    async with http_client(app, "http://camera.example") as client:
        preflight = await client.options("/streams/door", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == dashboard
        assert "access-control-allow-credentials" not in preflight.headers
        headers = {"Authorization": f"Bearer {TOKEN}", "Origin": dashboard}
        answer = await client.get("/streams", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, dashboard)
        assert (await client.options("/streams", headers=asked | {"Origin": "https://evil.example"})).status_code == 400
    assert (await websocket(app, "/detections", headers)).status == 101


async def test_wrong_tokens_from_one_address_are_limited(app: FastAPI) -> None:
    wrong, right = {"Authorization": "Bearer guess"}, {"Authorization": f"Bearer {TOKEN}"}
    async with http_client(app, "http://camera.example") as client:
        statuses = [(await client.get("/streams", headers=wrong)).status_code for _ in range(BURST + 3)]
        assert statuses == [401] * BURST + [429] * 3
        refused = await client.get("/streams", headers=right)  # else the limit would not hold up whoever guesses
        assert refused.json()["code"] == "too_many_attempts"
        assert 0 < int(refused.headers["retry-after"]) <= REFILL_S + 1
    async with http_client(app, "http://camera.example", client=("192.0.2.7", 1)) as client:
        assert (await client.get("/streams", headers=right)).status_code == 200


async def test_openapi_says_who_is_let_in(app: FastAPI, local_app: FastAPI) -> None:
    with_token, without = app.openapi(), local_app.openapi()
    assert with_token["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    assert "securitySchemes" not in without["components"]
    for path, operations in with_token["paths"].items():
        for method, operation in operations.items():
            public = TABLE[method.upper(), path].role is None
            assert ("security" in operation) is not public
            assert ("x-role" in operation) is not public
            assert ("403" in operation["responses"]) is (path not in PROBES)
            if not public:
                assert {"401", "429"} <= set(operation["responses"])
