"""The REST interface against a fake runtime: answers, problems, masks, limits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import JPEG, FakeRuntime, detection

from server.delivery.app import create_app
from server.delivery.permissions import TABLE, WEBSOCKET
from server.delivery.ports import NoCapacity, ServerError, Unavailable
from server.settings import ServerSettings
from server.store import StoreError

SECRET = "s3cr3t-p@ss"


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
async def client(runtime: FakeRuntime) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(create_app(runtime, ServerSettings()), "http://127.0.0.1:8080") as http:
        yield http


def check_problem(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    return problem


async def test_stream_comes_changes_and_goes(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    added = await client.post("/streams", json={"id": "door", "url": "rtsp://cam/1", "classes": ["person"]})
    assert added.status_code == 201
    assert added.headers["location"] == "/streams/door"
    got = await client.get("/streams/door")
    assert got.json() == added.json()
    assert got.json()["classes"] == ["person"]
    assert got.json()["status"]["state"] == "running"
    assert (await client.get("/streams")).json() == [got.json()]

    changed = await client.patch("/streams/door", json={"confidence": 0.5, "classes": None})
    assert changed.status_code == 200
    assert (changed.json()["confidence"], changed.json()["classes"]) == (0.5, None)

    removed = await client.delete("/streams/door")
    assert (removed.status_code, removed.content) == (204, b"")
    check_problem(await client.get("/streams/door"), 404, "stream_not_found")
    check_problem(await client.delete("/streams/door"), 404, "stream_not_found")


async def test_made_up_id_is_answered(client: httpx.AsyncClient) -> None:
    added = await client.post("/streams", json={"url": "rtsp://cam/1"})
    assert added.headers["location"] == f"/streams/{added.json()['id']}"


async def test_existing_id_is_a_conflict(client: httpx.AsyncClient) -> None:
    body = {"id": "door", "url": "rtsp://cam/1"}
    await client.post("/streams", json=body)
    check_problem(await client.post("/streams", json=body), 409, "stream_exists")


async def test_dry_run_keeps_nothing(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    answer = await client.post("/streams?dry_run=true", json={"url": "rtsp://cam/1"})
    assert answer.status_code == 200
    assert answer.json() == {
        "ok": True, "reason": None, "detail": None, "codec": "h264", "width": 1280, "height": 720, "fps": 25.0,
        "capacity": True,
    }  # fmt: skip
    assert runtime.streams == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "rtsp://x", "confidence": 1.5}, "confidence"),
        ({"url": "rtsp://x", "confidence": "0.5"}, "confidence"),
        ({"url": "rtsp://x", "transport": "pigeon"}, "transport"),
        ({"url": "rtsp://x", "colour": "red"}, "colour"),
        ({"url": "rtsp://x", "id": "no/slash"}, "id"),
        ({"url": "rtsp://x", "class_confidence": {"person": 2}}, "class_confidence.person"),
        ({"url": "rtsp://x\r\ny"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "rtsp://x", "username": "a\r\nb"}, "username"),
        ({"url": "rtsp://x%0d:b%0a@h/"}, "url"),
        ({"url": f"rtsp://x:{SECRET}/y@word/z"}, "url"),
        ([], "body"),
    ],
)
async def test_bad_field_is_named(client: httpx.AsyncClient, body: object, field: str) -> None:
    problem = check_problem(await client.post("/streams", json=body), 422, "invalid_field")
    assert [e["field"] for e in problem["errors"]] == [field]
    assert field in problem["detail"]


async def test_all_bad_fields_are_named_at_once(client: httpx.AsyncClient) -> None:
    response = await client.post("/streams", json={"url": "", "iou": -1, "weight": 0})
    problem = check_problem(response, 422, "invalid_field")
    assert {e["field"] for e in problem["errors"]} == {"url", "iou", "weight"}


async def test_what_is_not_json(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    problem = check_problem(await client.post("/streams", content=b"{", headers=headers), 422, "invalid_field")
    assert problem["errors"] == [{"field": "body", "message": "is not JSON"}]
    check_problem(await client.post("/streams", content=b"[" * 60000, headers=headers), 400, "bad_request")
    check_problem(await client.post("/streams", content=b"\xff", headers=headers), 400, "bad_request")
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = await client.post("/streams", content=b'{"url": "x"}', headers={"content-type": content_type})
        check_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"'])
async def test_what_python_takes_for_json_but_is_not(client: httpx.AsyncClient, value: str) -> None:
    body = f'{{"url": "x", "confidence": {value}, "username": {value}}}'
    response = await client.post("/streams", content=body, headers={"content-type": "application/json"})
    fields = {error["field"] for error in check_problem(response, 422, "invalid_field")["errors"]}
    assert fields == {"confidence", "username"}


async def test_a_bad_zone_is_named_to_the_point(client: httpx.AsyncClient) -> None:
    zone = {"name": "yard", "points": [[0, 0], [0, 1.5], [1, 1]]}
    response = await client.post("/streams", json={"url": "rtsp://h", "zones": [zone]})
    problem = check_problem(response, 422, "invalid_field")
    assert [error["field"] for error in problem["errors"]] == ["zones.0.points.1.1"]
    zone["points"][1][1] = 1
    response = await client.post("/streams", json={"url": "rtsp://h", "zones": [zone, zone]})
    assert [error["field"] for error in check_problem(response, 422, "invalid_field")["errors"]] == ["zones.1.name"]


async def test_credentials_never_come_back(
    client: httpx.AsyncClient, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"id": "a", "url": f"rtsp://admin:{SECRET}@192.0.2.1:554/x?token={SECRET}", "loop": "perhaps"}
    answers = [await client.post("/streams", json=body)]
    del body["loop"]
    answers.append(await client.post("/streams", json=body))
    answers.append(await client.post("/streams", json={"id": "b", "url": "x", "username": "u", "password": SECRET}))
    answers += [await client.get(path) for path in ("/streams", "/streams/a", "/streams/b")]
    answers.append(await client.post("/streams", json={"url": "x", "password": [SECRET]}))
    answers.append(await client.post("/streams", json={"url": f"rtsp://u:{SECRET}@"}))
    assert [a.status_code for a in answers] == [422, 201, 201, 200, 200, 200, 422, 201]
    assert all(SECRET not in a.text for a in answers)
    assert SECRET not in caplog.text
    assert SECRET not in repr(runtime.streams)
    view = answers[4].json()
    assert (view["username"], view["password"]) == ("***", "***")
    assert view["url"] == "rtsp://192.0.2.1:554/x?token=***"
    assert runtime.streams["a"].definition.password.get_secret_value() == SECRET


async def test_masked_values_sent_back_change_nothing(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    await client.post("/streams", json={"id": "a", "url": f"rtsp://u:{SECRET}@192.0.2.1/x?pwd={SECRET}"})
    before = runtime.streams["a"].definition
    view = (await client.get("/streams/a")).json()
    del view["id"], view["status"]
    changed = await client.patch("/streams/a", json=view | {"max_fps": 5, "loop": False})
    assert changed.status_code == 200
    after = runtime.streams["a"].definition
    assert (after.url, after.username, after.password) == (before.url, before.username, before.password)
    assert (after.max_fps, after.loop) == (5, False)


async def test_new_address_brings_its_own_credentials(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    await client.post("/streams", json={"id": "a", "url": f"rtsp://u:{SECRET}@192.0.2.1/x"})
    await client.patch("/streams/a", json={"url": "rtsp://v:new@192.0.2.2/x"})
    definition = runtime.streams["a"].definition
    assert (definition.url, definition.username) == ("rtsp://192.0.2.2/x", "v")
    assert definition.password.get_secret_value() == "new"


async def test_a_stream_cannot_lose_its_address(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.add("a")
    problem = check_problem(await client.patch("/streams/a", json={"url": None}), 422, "invalid_field")
    assert problem["errors"] == [{"field": "url", "message": "must not be null"}]


@pytest.mark.parametrize("method", ["PUT", "TRACE", "POST"])
async def test_wrong_method_tells_the_right_ones(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, "/streams/door")
    check_problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "PATCH", "DELETE"}


async def test_unknown_path(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/nothing/here"), 404, "not_found")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (StoreError("streams.sqlite: database is locked"), 503, "storage"),
        (NoCapacity("full", retry_after_s=1.2), 503, "no_capacity"),
        (Unavailable("starting"), 503, "unavailable"),
        (ZeroDivisionError(SECRET), 500, "internal"),
        (ServerError(SECRET), 500, "internal"),
    ],
)
async def test_failures_inside(
    client: httpx.AsyncClient, runtime: FakeRuntime, failure: Exception, status: int, code: str
) -> None:
    runtime.failure = failure
    response = await client.post("/streams", json={"url": "rtsp://x"})
    problem = check_problem(response, status, code)
    if isinstance(failure, NoCapacity):
        assert response.headers["retry-after"] == "2"
    if isinstance(failure, ZeroDivisionError):
        assert SECRET not in json.dumps(problem)


async def test_bodies_are_limited(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    headers = {"content-type": "application/json"}
    large = b'{"url": "' + b"x" * (64 << 10) + b'"}'
    check_problem(await client.post("/streams", content=large, headers=headers), 413, "body_too_large")

    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"\xff\xd8\xff" + b"x" * 65533

    check_problem(await client.post("/streams", content=endless(), headers=headers), 413, "body_too_large")
    assert read <= 3
    read = 0
    check_problem(await client.post("/detect", content=endless()), 413, "body_too_large")
    assert read <= 32 * 16 + 2
    assert runtime.detected == []


async def test_recent_results(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    check_problem(await client.get("/streams/door/detections"), 404, "stream_not_found")
    runtime.add("door")
    check_problem(await client.get("/streams/door/detections"), 404, "no_result")
    assert (await client.get("/streams/door/detections?limit=5")).json() == []
    seen = [runtime.see("door", detection()) for _ in range(3)]
    assert (await client.get("/streams/door/detections")).json() == seen[2]
    assert (await client.get("/streams/door/detections?limit=2")).json() == [seen[2], seen[1]]
    for limit in ("0", "101", "x"):
        problem = check_problem(await client.get(f"/streams/door/detections?limit={limit}"), 422, "invalid_field")
        assert problem["errors"][0]["field"] == "limit"


async def test_ledger(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.add("door")
    answer = await client.get("/streams/door/ledger")
    assert answer.json() == {"received": 5, "completed": 2, "in_flight": 1, "dropped": {"ingest": {"damaged": 2}}}


async def test_snapshot(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.add("door")
    answer = await client.get("/streams/door/snapshot.jpg?annotate=true&width=320&quality=50")
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, JPEG, "image/jpeg")
    assert runtime.snapshots == [("door", True, 320, 50)]
    runtime.jpeg = None
    check_problem(await client.get("/streams/door/snapshot.jpg"), 404, "no_picture")
    check_problem(await client.get("/streams/none/snapshot.jpg"), 404, "stream_not_found")
    check_problem(await client.get("/streams/door/snapshot.jpg?width=0"), 422, "invalid_field")


async def test_equal_snapshots_at_once_are_made_once(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.add("door")
    started, gate, calls = asyncio.Event(), asyncio.Event(), []

    async def slow(stream_id: str, **_: object) -> bytes:
        calls.append(stream_id)
        started.set()
        await gate.wait()
        return JPEG

    runtime.snapshot = slow  # type: ignore[method-assign]
    asked = [asyncio.create_task(client.get("/streams/door/snapshot.jpg")) for _ in range(5)]
    await started.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    gate.set()
    assert [a.content for a in await asyncio.gather(*asked)] == [JPEG] * 5
    assert calls == ["door"]


async def test_detect(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    answer = await client.post("/detect?confidence=0.4&classes=person,car&classes=bus", content=JPEG)
    assert answer.status_code == 200
    assert answer.json()["detections"] == [detection()]
    assert (answer.json()["width"], answer.json()["height"], answer.json()["model"]) == (640, 360, "tiny")
    assert runtime.detected == [(JPEG, 0.4, None, ["person", "car", "bus"])]


@pytest.mark.parametrize("body", [b"", b"\xff\xd8", b"GIF89a and more", b"<html></html>"])
async def test_what_is_no_image(client: httpx.AsyncClient, runtime: FakeRuntime, body: bytes) -> None:
    problem = check_problem(await client.post("/detect", content=body), 422, "invalid_field")
    assert problem["errors"][0]["field"] == "image"
    assert runtime.detected == []


async def test_detect_says_how_to_send(client: httpx.AsyncClient) -> None:
    check_problem(await client.post("/detect", files={"file": JPEG}), 415, "unsupported_media_type")
    check_problem(await client.post("/detect?confidence=nan", content=JPEG), 422, "invalid_field")


async def test_health(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    assert (await client.get("/healthz")).json() == {"status": "alive"}
    ready = (await client.get("/readyz")).json()
    assert (ready["status"], ready["reason"]) == ("ready", "model loaded, inference works")
    assert [(c["name"], c["ok"], c["required"]) for c in ready["checks"]] == [
        ("inference", True, True), ("store", True, False),
    ]  # fmt: skip
    runtime.ready = (False, "the engine is starting")
    problem = check_problem(await client.get("/readyz"), 503, "not_ready")
    assert problem["detail"] == "the engine is starting"
    assert problem["errors"] == [{"field": "inference", "message": "the engine is starting"}]


async def test_metrics(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.add("door")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'yolov9_stream_frames_received_total{stream="door"} 5\n' in answer.text


async def test_openapi_documents_every_problem_as_a_problem(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    pages = {"/", "/web/{path:path}", "/docs", "/docs/{file}", "/openapi.json"}
    assert set(document["paths"]) == {path for method, path in TABLE if method != WEBSOCKET} - pages
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]["description"]
