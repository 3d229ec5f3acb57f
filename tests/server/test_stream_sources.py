"""Fields of a stream that say where it comes from: checked by name, masked, and passed on to the camera."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import FakeRuntime
from house import House

from server.access.roles import Role
from server.access.tokens import TokenFile
from server.delivery.app import create_app
from server.delivery.ports import InvalidField
from server.settings import ServerSettings
from server.streams import StreamDefinition, StreamPatch

PIPELINE = "gst: rtspsrc location=rtsp://u:s3cret@192.0.2.1/x user-pw=s3cret ! rtph264depay ! h264parse ! appsink"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path, allow_networks="192.0.2.0/24", deny_networks="192.0.2.128/25", source_schemes="rtsp,srt")
    await made.runtime.start()
    yield made
    await made.runtime.stop()


async def test_detection_runs_on_the_sub_stream(house: House) -> None:
    stream: Any = await house.add(detect_url="rtsp://h/sub", decoder="software")
    settings = stream.camera.settings
    assert (settings.url, settings.decoder) == ("rtsp://h/sub", "software")
    assert (settings.allow_networks, settings.deny_networks) == (["192.0.2.0/24"], ["192.0.2.128/25"])
    await house.runtime.update_stream("door", StreamPatch(detect_url=None, decoder=None))
    assert (stream.camera.settings.url, stream.camera.settings.decoder) == ("rtsp://h/1", "auto")


@pytest.mark.parametrize(
    ("field", "address"),
    [("url", "rtsp://192.0.2.200/x"), ("url", "rtsp://198.51.100.1/x"), ("url", "http://192.0.2.1/x"),
     ("url", "srt://192.0.2.1"), ("url", "srt://192.0.2.1:9000?mode=listener"), ("url", "udp://:1234"),
     ("url", "/dev/video0"), ("url", PIPELINE), ("detect_url", "rtsp://198.51.100.1/x"),
     ("detect_url", "file:///etc/passwd"), ("detect_url", "clip.mp4")],
)  # fmt: skip
async def test_an_address_that_is_not_served_is_refused_by_its_field(house: House, field: str, address: str) -> None:
    definition = StreamDefinition.model_validate({"url": "rtsp://192.0.2.1/x", field: address})
    for attempt in (house.runtime.add_stream, house.runtime.probe):
        with pytest.raises(InvalidField) as caught:
            await attempt(definition)
        assert caught.value.field == field
        assert "s3cret" not in str(caught.value)
    assert dict(house.runtime.streams) == {}


async def test_pipelines_run_where_they_are_allowed(tmp_path: Path) -> None:
    house = House(tmp_path, allow_gstreamer=True)
    await house.runtime.start()
    stream: Any = await house.runtime.add_stream(StreamDefinition(url=PIPELINE))
    assert stream.camera.settings.url == PIPELINE
    await house.runtime.stop()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
async def client(runtime: FakeRuntime, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    tokens = TokenFile(tmp_path)
    known = {name: tokens.add(name, Role.named(name)) for name in ("operator", "admin")}
    app = create_app(runtime, ServerSettings(data=tmp_path, allow_gstreamer=True))
    async with http_client(app, "http://127.0.0.1:8080") as http:
        http.tokens = known  # type: ignore[attr-defined]
        yield http


def bearer(client: httpx.AsyncClient, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {client.tokens[name]}"}  # type: ignore[attr-defined]


async def test_pipelines_are_for_administrators(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    operator, admin = bearer(client, "operator"), bearer(client, "admin")
    for body in ({"url": PIPELINE}, {"url": "rtsp://h/x", "detect_url": PIPELINE}):
        for path in ("/streams", "/streams?dry_run=true"):
            assert (await client.post(path, json=body, headers=operator)).status_code == 403
    assert (await client.post("/streams", json={"id": "p", "url": PIPELINE}, headers=admin)).status_code == 201
    await client.post("/streams", json={"id": "q", "url": "rtsp://h/x"}, headers=operator)
    for field in ("url", "detect_url"):
        assert (await client.patch("/streams/q", json={field: PIPELINE}, headers=operator)).status_code == 403
    assert (await client.patch("/streams/p", json={"max_fps": 5}, headers=operator)).status_code == 200
    assert runtime.streams["p"].definition.url == PIPELINE


async def test_what_is_shown_of_addresses_can_be_sent_back(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    admin = bearer(client, "admin")
    body = {"id": "p", "url": PIPELINE, "detect_url": "http://h/sub?token=s3cret"}
    answer = await client.post("/streams", json=body, headers=admin)
    assert "s3cret" not in answer.text
    view = answer.json()
    del view["id"], view["status"]
    assert (await client.patch("/streams/p", json=view | {"decoder": "cuda"}, headers=admin)).status_code == 200
    definition = runtime.streams["p"].definition
    assert (definition.url, definition.detect_url, definition.decoder) == (PIPELINE, body["detect_url"], "cuda")


@pytest.mark.parametrize(
    ("field", "value"), [("decoder", "gpu"), ("detect_url", "rtsp://u:s3cret@h/x"), ("detect_url", 1)]
)
async def test_bad_fields_are_named(client: httpx.AsyncClient, field: str, value: object) -> None:
    body = {"url": "rtsp://h/x", field: value}
    answer = await client.post("/streams", json=body, headers=bearer(client, "admin"))
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json()["errors"]} == {field}
    assert "s3cret" not in answer.text


async def test_openapi_tells_of_the_fields(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json", headers=bearer(client, "admin"))).json()
    properties = document["components"]["schemas"]["StreamDefinition"]["properties"]
    assert {"auto", "software", "cuda", "vaapi", "qsv"} == set(properties["decoder"]["anyOf"][0]["enum"])
    assert "sub-stream" in properties["detect_url"]["description"]
    status = document["components"]["schemas"]["StreamStatus"]["properties"]
    assert {"decoder", "decoder_detail", "client", "transport"} <= set(status)
