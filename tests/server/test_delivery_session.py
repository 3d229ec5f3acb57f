"""Logins of browsers: a cookie that scripts cannot read, and that changes nothing for pages of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from asgi_client import http_client, websocket
from fake_runtime import FakeRuntime
from fastapi import FastAPI

from server.access.roles import Role
from server.access.throttle import BURST
from server.access.tokens import TokenFile
from server.delivery.app import create_app
from server.delivery.auth import COOKIE
from server.settings import ServerSettings

BASE = "http://camera.example"
OWN = {"Origin": BASE}


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path)


@pytest.fixture
def token(file: TokenFile) -> str:
    return file.add("wall", Role.OPERATOR, streams=frozenset({"door"}))


@pytest.fixture
def app(tmp_path: Path, token: str) -> FastAPI:
    runtime = FakeRuntime()
    runtime.add("door")
    return create_app(runtime, ServerSettings(data=tmp_path))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(app, BASE) as client:
        yield client


async def log_in(client: httpx.AsyncClient, token: str, **headers: str) -> httpx.Response:
    return await client.post("/session", json={"token": token}, headers=OWN | headers)


async def test_a_login_opens_what_a_page_needs(app: FastAPI, client: httpx.AsyncClient, token: str) -> None:
    assert (await client.get("/session")).status_code == 401
    answer = await log_in(client, token)
    assert answer.json() == {"name": "wall", "role": "operator", "streams": ["door"], "token_needed": True}
    assert token not in answer.text + str(answer.headers)
    assert (await client.get("/session")).json() == answer.json()
    for path in ("/streams", "/streams/door/snapshot.jpg", "/docs", "/openapi.json"):
        assert (await client.get(path)).status_code == 200, path
    cookie = {"Cookie": f"theme=dark; {COOKIE}={client.cookies[COOKIE]}", "Host": "camera.example"}
    assert (await websocket(app, "/detections", cookie | OWN)).status == 101
    changed = await client.patch("/streams/door", json={"max_fps": 5}, headers=OWN)
    assert changed.status_code == 200


@pytest.mark.parametrize(
    ("origin", "secure"), [(BASE, False), ("https://camera.example", True)], ids=["HTTP", "a proxy that speaks TLS"]
)
async def test_scripts_and_other_sites_do_not_get_the_cookie(
    client: httpx.AsyncClient, token: str, origin: str, secure: bool
) -> None:
    (cookie,) = (await log_in(client, token, Origin=origin)).headers.get_list("set-cookie")
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert ("secure" in attributes) is secure
    assert not any(attribute.startswith("domain") for attribute in attributes)


@pytest.mark.parametrize("origin", [None, "https://evil.example", "null", "http://camera.example:81"])
async def test_with_a_cookie_pages_of_others_change_nothing(
    app: FastAPI, client: httpx.AsyncClient, token: str, origin: str | None
) -> None:
    await log_in(client, token)
    headers = {} if origin is None else {"Origin": origin}
    for method, path in (("PATCH", "/streams/door"), ("DELETE", "/streams/door"), ("POST", "/streams")):
        answer = await client.request(method, path, json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    cookie = {"Cookie": f"{COOKIE}={client.cookies[COOKIE]}", "Host": "camera.example"}
    handshake = await websocket(app, "/detections", cookie | headers)
    assert (handshake.status, json.loads(handshake.body)["code"]) == (403, "origin_not_allowed")


async def test_other_sites_cannot_log_somebody_in(client: httpx.AsyncClient, token: str) -> None:
    assert (await log_in(client, token, Origin="https://evil.example")).status_code == 403
    form = await client.post("/session", content=json.dumps({"token": token}), headers={"Content-Type": "text/plain"})
    assert form.status_code == 415
    assert not client.cookies


async def test_logged_out_is_out_everywhere(client: httpx.AsyncClient, token: str) -> None:
    await log_in(client, token)
    stolen = client.cookies[COOKIE]
    assert (await client.delete("/session", headers=OWN)).status_code == 204
    assert COOKIE not in client.cookies
    answer = await client.get("/streams", headers={"Cookie": f"{COOKIE}={stolen}"})
    assert (answer.status_code, answer.json()["detail"]) == (401, "The login is over; log in again.")
    assert (await client.delete("/session")).status_code == 204  # once more does no harm


async def test_a_revoked_token_ends_its_logins(
    app: FastAPI, client: httpx.AsyncClient, token: str, file: TokenFile
) -> None:
    await log_in(client, token)
    file.revoke("wall")
    app.state.context.access.refresh()
    assert (await client.get("/session")).status_code == 401


async def test_a_login_outlives_the_server(client: httpx.AsyncClient, token: str, tmp_path: Path) -> None:
    await log_in(client, token)
    async with http_client(create_app(FakeRuntime(), ServerSettings(data=tmp_path)), BASE) as again:
        answer = await again.get("/session", headers={"Cookie": f"{COOKIE}={client.cookies[COOKIE]}"})
    assert answer.json()["name"] == "wall"


async def test_guesses_are_limited_and_good_tokens_are_not(client: httpx.AsyncClient, token: str) -> None:
    statuses = [(await log_in(client, "guess")).status_code for _ in range(BURST + 2)]
    assert statuses == [401] * BURST + [429] * 2
    # Nobody guesses a token of the file, so sharing an attacker's address does not lock its owner out.
    assert (await log_in(client, token)).status_code == 200
    assert (await client.get("/streams")).status_code == 200


@pytest.mark.parametrize(
    "cookie", ["", "x", f"{COOKIE}=", f'{COOKIE}="', f"{COOKIE}=\xe9", f"{COOKIE}={'a' * 4000}", ";;="]
)
async def test_odd_cookies_are_no_login(client: httpx.AsyncClient, cookie: str) -> None:
    answer = await client.get("/streams", headers={"Cookie": cookie.encode("latin-1")})
    assert answer.status_code == 401


@pytest.mark.parametrize("body", ['{"token": ""}', '{"token": 5}', '{"token": "x", "role": "admin"}', "[]", "{"])
async def test_odd_logins_are_refused_without_repeating_them(client: httpx.AsyncClient, body: str) -> None:
    answer = await client.post("/session", content=body, headers={"Content-Type": "application/json"} | OWN)
    assert answer.status_code == 422
    assert "admin" not in answer.text


async def test_without_tokens_there_is_nothing_to_log_in_to(tmp_path: Path) -> None:
    async with http_client(
        create_app(FakeRuntime(), ServerSettings(data=tmp_path / "none")), "http://localhost"
    ) as local:
        me = {"name": "local", "role": "admin", "token_needed": False}
        assert (await local.get("/session")).json().items() >= me.items()
        answer = await local.post("/session", json={"token": "anything"})
        assert answer.json().items() >= me.items()
        assert "set-cookie" not in answer.headers
