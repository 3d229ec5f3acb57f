"""Deep JSON: refused before anything recurses into it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import FakeRuntime
from hypothesis import given
from hypothesis import strategies as st

from server.delivery.app import create_app
from server.delivery.json_body import MAX_DEPTH, depth
from server.settings import ServerSettings

LEAVES = st.none() | st.booleans() | st.integers() | st.text('[]{}"\\ab')
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[{"'), inner))


def real_depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(real_depth, value.values()), default=0)
    return 1 + max(map(real_depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.booleans())
def test_depth_is_that_of_the_value(value: Any, ascii_only: bool) -> None:
    assert depth(json.dumps(value, ensure_ascii=ascii_only).encode()) == real_depth(value)


@given(st.binary() | st.text('[]{}"\\:1,').map(str.encode))
def test_what_is_not_json_has_a_depth_too(body: bytes) -> None:
    assert 0 <= depth(body) <= len(body)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    runtime = FakeRuntime()
    runtime.add("door")
    async with http_client(create_app(runtime, ServerSettings()), "http://localhost") as client:
        yield client


@pytest.mark.parametrize("levels", [MAX_DEPTH - 2, MAX_DEPTH - 1, 300, 900, 10_000, 30_000])
@pytest.mark.parametrize(("method", "path"), [("POST", "/streams"), ("PATCH", "/streams/door"), ("POST", "/session")])
async def test_depth_is_limited_and_never_a_500(client: httpx.AsyncClient, method: str, path: str, levels: int) -> None:
    """300 levels were taken once, and none of the encoders behind could write them."""
    nested = "[" * levels + "]" * levels
    for body in (f'{{"url": "rtsp://x", "zones": [{nested}]}}', f'{{"token": {nested}}}', nested):
        answer = await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        if depth(body.encode()) > MAX_DEPTH:
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        else:
            assert answer.status_code in (200, 201, 422)
    assert (await client.get("/streams")).status_code == 200
