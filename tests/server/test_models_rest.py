"""`/models` over HTTP: what is registered, removed and activated, and how each refusal reads."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_client import http_client
from house import House, until
from tiny_model import tiny_bundle

from server.delivery.app import create_app

ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    old = tiny_bundle(tmp_path / "runs" / "old", name="old", input_size=640, lineage={"metrics": {"map": 0.5}, "by": 1})
    made = House(tmp_path / "data", old, model_folders=[tmp_path / "runs"], model_max_mb=1)
    await made.runtime.start()
    made.worker.up()
    await until(lambda: "street-t" in made.runtime.registry.entries)
    yield made
    await made.runtime.stop()


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(create_app(house.runtime, house.runtime._settings), "http://127.0.0.1:8080") as http:
        yield http


def problem(answer: httpx.Response, status: int, code: str, *fields: str) -> str:
    body = answer.json()
    assert (answer.status_code, body.get("code")) == (status, code), answer.text
    assert [error["field"] for error in body.get("errors", [])] == list(fields)
    detail: str = body["detail"]
    return detail


def zipped(bundle: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in bundle.iterdir():
            archive.write(path, path.name)
    return out.getvalue()


async def test_models_and_what_is_known_of_them(client: httpx.AsyncClient, house: House) -> None:
    old, packaged = (await client.get("/models")).json()
    assert (old["name"], old["source"], old["state"], old["active"], old["generation"]) == (
        "old", "given", "active", True, 1,
    )  # fmt: skip
    assert (old["classes"], old["input_size"], old["precisions"]) == (["red", "blue"], 640, ["fp32"])
    assert (old["metrics"], old["lineage"], old["hash"]) == ({"map": 0.5}, {"by": 1}, house.runtime.model["hash"])
    assert (packaged["name"], packaged["source"], packaged["state"]) == ("street-t", "packaged", "ready")
    assert packaged["bytes"] > 1 << 20
    assert (await client.get("/models/street-t")).json() == packaged
    problem(await client.get("/models/none"), 404, "model_not_found")


async def test_a_folder_is_registered_once_and_removed(client: httpx.AsyncClient, house: House, tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "runs" / "new").path
    added = await client.post("/models", json={"path": str(path)})
    assert (added.status_code, added.headers["location"]) == (201, "/models/tiny")
    assert (added.json()["source"], added.json()["state"]) == ("registered", "ready")
    assert (tmp_path / "data" / "models" / "tiny" / "model.json").is_file()
    problem(await client.post("/models", json={"path": str(path)}), 409, "model_exists")
    problem(await client.post("/models", json={"path": str(path), "name": "street-t"}), 409, "model_exists")
    assert (await client.post("/models", json={"path": str(path), "name": "again"})).status_code == 201
    assert (await client.delete("/models/tiny")).status_code == 204
    assert os.listdir(tmp_path / "data" / "models") == ["again"]
    problem(await client.get("/models/tiny"), 404, "model_not_found")
    for name, code in {"old": "model_in_use", "street-t": "model_in_use", "none": "model_not_found"}.items():
        problem(await client.delete(f"/models/{name}"), 404 if name == "none" else 409, code)


async def test_what_is_not_below_a_folder_of_models_is_not_looked_at(client: httpx.AsyncClient, tmp_path: Path) -> None:
    elsewhere = tiny_bundle(tmp_path / "elsewhere" / "secret").path
    (tmp_path / "runs" / "link").symlink_to(elsewhere)
    for path in (elsewhere, tmp_path / "runs" / "link", tmp_path / "runs" / ".." / "elsewhere" / "secret", "/", "\0"):
        detail = problem(await client.post("/models", json={"path": str(path)}), 422, "invalid_field", "path")
        assert detail == "path: is not below a folder of models (model_folders, or the server's data folder)"
    detail = problem(
        await client.post("/models", json={"path": str(tmp_path / "runs" / "none")}), 422, "invalid_field", "path"
    )
    assert "no such folder" in detail


async def test_bad_input_is_named(client: httpx.AsyncClient, tmp_path: Path) -> None:
    problem(await client.post("/models", json={"url": "x"}), 422, "invalid_field", "path", "url")
    problem(await client.post("/models", json={"path": "x", "name": "../x"}), 422, "invalid_field", "name")
    problem(await client.post("/models", content=b"{", headers={"Content-Type": "application/json"}), 422,
            "invalid_field", "body")  # fmt: skip
    problem(await client.post("/models", content=b"x"), 415, "unsupported_media_type")
    problem(await client.post("/models?name=a/b", content=b"x", headers=ZIP), 422, "invalid_field", "name")


async def test_an_archive_is_registered_under_a_name(client: httpx.AsyncClient, tmp_path: Path) -> None:
    data = zipped(tiny_bundle(tmp_path / "elsewhere").path)
    added = await client.post("/models?name=mine", content=data, headers=ZIP)
    assert (added.status_code, added.json()["name"]) == (201, "mine"), added.text
    problem(await client.post("/models?name=mine", content=data, headers=ZIP), 409, "model_exists")
    assert os.listdir(tmp_path / "data" / "models") == ["mine"], "the upload is gone"


async def test_a_broken_archive_says_which_file_and_one_that_is_too_large_is_not_read(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path / "elsewhere").path
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx").write_bytes(data)
    detail = problem(await client.post("/models", content=zipped(bundle), headers=ZIP), 422, "invalid_field", "body")
    assert detail.startswith("body: model.onnx: SHA-256 is ")
    detail = problem(await client.post("/models", content=b"PK", headers=ZIP), 422, "invalid_field", "body")
    assert "cannot be read" in detail
    problem(await client.post("/models", content=bytes(2 << 20), headers=ZIP), 413, "body_too_large")
    assert os.listdir(tmp_path / "data" / "models") == []


async def test_who_asks_before_all_models_have_been_read_waits_for_it(
    client: httpx.AsyncClient, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, go_on = house.runtime.registry, threading.Event()
    found = registry._found
    monkeypatch.setattr(registry, "_found", lambda: go_on.wait(10) and found())
    tiny_bundle(tmp_path / "data" / "models" / "late")
    scan = asyncio.ensure_future(registry.scan())
    await asyncio.sleep(0)
    asked = asyncio.ensure_future(client.get("/models/late"))
    await asyncio.sleep(0.02)
    assert not asked.done()
    go_on.set()
    assert (await asked).status_code == 200
    await scan


async def test_one_upload_at_a_time(client: httpx.AsyncClient, house: House) -> None:
    async with house.runtime.registry.uploads:
        problem(await client.post("/models", content=b"PK", headers=ZIP), 503, "no_capacity")


async def test_an_activation_is_followed_or_waited_for(client: httpx.AsyncClient, house: House, tmp_path: Path) -> None:
    for name in ("first", "second"):
        await client.post("/models", json={"path": str(tiny_bundle(tmp_path / "runs" / name, name=name).path)})
    started = await client.post("/models/first/activate")
    assert (started.status_code, started.headers["location"], started.json()["state"]) == (
        202, "/models/first", "loading",
    )  # fmt: skip
    problem(await client.post("/models/second/activate"), 409, "swap_in_progress")
    problem(await client.delete("/models/first"), 409, "model_in_use")
    await _oblige(house, 2)
    await until(lambda: house.runtime.model["name"] == "first")
    assert (await client.get("/models/first")).json()["generation"] == 2
    waiting = asyncio.ensure_future(client.post("/models/second/activate?wait=true"))
    await _oblige(house, 3)
    answer = await waiting
    assert (answer.status_code, answer.json()["state"], answer.json()["generation"]) == (200, "active", 3)
    assert [worker.stopped for worker in house.workers] == [True, True, False]
    again = await client.post("/models/second/activate")
    assert (again.status_code, again.json()["generation"]) == (200, 3)


async def test_refusals_of_an_activation(client: httpx.AsyncClient, house: House, tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "runs" / "new", names=["rot", "blau"], name="new", input_size=640).path
    await client.post("/models", json={"path": str(path)})
    problem(await client.post("/models/none/activate"), 404, "model_not_found")
    await house.add(classes=["red"])
    detail = problem(await client.post("/models/new/activate"), 409, "classes_missing")
    assert "door: red" in detail
    waiting = asyncio.ensure_future(client.post("/models/new/activate?wait=true&force=true"))
    await until(lambda: len(house.workers) == 2)
    house.workers[-1].down("worker_lost: killed")
    assert problem(await waiting, 422, "model_refused") == "worker_lost: killed"
    refused = (await client.get("/models/new")).json()
    assert (refused["state"], refused["reason"], refused["active"]) == ("refused", "worker_lost: killed", False)


async def _oblige(house: House, count: int) -> None:
    await until(lambda: len(house.workers) == count)
    worker: Any = house.workers[-1]
    worker.obliging = True
    worker.up()
