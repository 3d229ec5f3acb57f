"""What browsers are told with every answer, and that the page of the interface needs no internet."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import FakeRuntime

from server.delivery.app import create_app
from server.delivery.headers import SECURITY
from server.settings import ServerSettings

BASE = "http://localhost:8080"


@pytest.fixture
def runtime() -> FakeRuntime:
    runtime = FakeRuntime()
    runtime.add("door")
    return runtime


@pytest.fixture
async def client(runtime: FakeRuntime) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(create_app(runtime, ServerSettings()), BASE) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/streams", "localhost", 200), ("/streams/none", "localhost", 404), ("/healthz", "x.example", 200),
        ("/streams", "x.example", 403), ("/streams/door/snapshot.jpg", "localhost", 200),
        ("/metrics", "localhost", 200), ("/streams/door/detections?limit=0", "localhost", 422),
        ("/streams/door/snapshot.jpg?width=77", "localhost", 500),
    ],
)  # fmt: skip
async def test_every_answer_carries_them(
    client: httpx.AsyncClient, runtime: FakeRuntime, path: str, host: str, status: int
) -> None:
    if status == 500:
        runtime.failure = RuntimeError("a bug")
    answer = await client.get(path, headers={"Host": host})
    assert answer.status_code == status
    for name, value in SECURITY.items():
        assert answer.headers[name] == value
    assert "strict-transport-security" not in answer.headers


def test_no_script_of_others_runs() -> None:
    policy = dict(part.strip().split(" ", 1) for part in SECURITY["Content-Security-Policy"].split(";"))
    assert policy["script-src"] == policy["default-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in SECURITY["Content-Security-Policy"]


async def test_docs_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for address in loaded:
        assert "//" not in address
        answer = await client.get(httpx.URL(f"{BASE}/docs").join(address))
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")
        assert "max-age" in answer.headers["cache-control"]
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    for path in ("/redoc", "/docs/oauth2-redirect", "/docs/..%2Fapp.py", "/docs/redoc.standalone.js"):
        assert (await client.get(path)).status_code == 404, path


async def test_pages_of_allowed_origins_may_show_pictures(runtime: FakeRuntime) -> None:
    settings = ServerSettings()
    async with http_client(create_app(runtime, settings), BASE) as client:
        assert (await client.get("/healthz")).headers["cross-origin-resource-policy"] == "same-origin"
        settings.allowed_origins = ["https://dashboard.example"]  # as a reload does
        assert (await client.get("/healthz")).headers["cross-origin-resource-policy"] == "cross-origin"
        answer = await client.get("/streams", headers={"Origin": "https://Dashboard.example"})
        assert answer.headers["access-control-allow-origin"] == "https://Dashboard.example"
