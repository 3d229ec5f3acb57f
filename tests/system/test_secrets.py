"""Canaries: secrets that go in by every way there is must come out by none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle
from websockets.sync.client import connect

from server.access.roles import Role
from server.access.tokens import TokenFile
from server.testing.camera import Camera, Mount
from server.testing.synthetic import make_clip

pytestmark = pytest.mark.system

SETTING, WRONG, ARGUMENT, FIELD, IN_URL, IN_QUERY, REFUSED = (
    f"canary-{name}-3f9a1c" for name in ("setting", "wrong", "argument", "field", "in-url", "in-query", "refused")
)
"""`REFUSED` goes in where it is not accepted."""


class Witness:
    """A client that keeps all that it is answered."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.seen: list[str] = []
        self.http = httpx.Client(base_url=server.address, timeout=10)

    def __call__(self, method: str, path: str, token: str | None = SETTING, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        answer = self.http.request(method, path, headers=headers, **options)
        self.seen.append(f"{method} {path.partition('?')[0]}: {answer.status_code} {answer.headers} {answer.text}")
        return answer


@pytest.fixture(scope="module")
def clip() -> Path:
    return make_clip(width=320, height=192, fps=10, frames=30, gop=10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def managed(data: Path) -> str:
    return TokenFile(data).add("wall", Role.VIEWER)


@pytest.fixture
def server(data: Path, managed: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    monkeypatch.setenv("YOLOV9_TOKEN", SETTING)
    model = tiny_bundle(data.parent / "tiny").path
    address = f"rtsp://admin:{ARGUMENT}@127.0.0.1:9/live?token={IN_QUERY}"
    with ServerProcess(model, data, "--log-level", "debug", "--stream", address) as running:
        yield running


def use(client: Witness, camera: Camera, managed: str) -> str:
    """All that works -> the id of a login's cookie."""
    bare = camera.url("/door", credentials=False)
    with_password = bare.replace("rtsp://", f"rtsp://viewer:{FIELD}@")
    assert client("POST", "/streams", json={"id": "door", "url": with_password}).status_code == 201
    definition = {"id": "yard", "url": bare, "username": "viewer", "password": IN_URL}  # wrong: the camera refuses it
    assert client("POST", "/streams", json=definition).status_code == 201
    assert client("PATCH", "/streams/yard", json={"url": bare.replace("//", f"//viewer:{IN_URL}@")}).status_code == 200
    assert client("POST", "/streams?dry_run=true", json={"url": with_password}).json()["ok"]
    client("POST", "/streams?dry_run=true", json=definition | {"id": "none"})
    ledger = lambda: client("GET", "/streams/door/ledger").json()  # noqa: E731
    wait_for(lambda: ledger()["completed"] >= 3, 30, "detections")
    wait_for(lambda: client("GET", "/streams/yard").json()["status"]["reason"] == "auth", 30, "a refusal")
    with connect(f"{client.server.address.replace('http', 'ws')}/detections?token={managed}") as socket:
        client.seen += [str(socket.recv(10)) for _ in range(8)]
    assert client("GET", f"/streams/door/snapshot.jpg?token={managed}", None).status_code == 200
    login = client.http.post("/session", json={"token": managed})
    assert login.status_code == 200
    session = login.cookies["yolov9_session"]
    client.seen.append(login.text)
    client("GET", "/session", None)
    for path in ("/streams", "/metrics", "/openapi.json", "/readyz", "/models", "/settings"):
        client("GET", path)
    return session


def misuse(client: Witness, managed: str) -> None:
    """All that is refused."""
    wrong = (("/streams", WRONG), (f"/streams?token={WRONG}", WRONG), (f"/detections/sse?token={WRONG}", None))
    for path, header in wrong:
        assert client("GET", path, header).status_code == 401
    client("POST", "/session", None, json={"token": WRONG}, headers={"Cookie": f"yolov9_session={WRONG}"})
    client("POST", "/streams", managed, json={"url": f"rtsp://a:{REFUSED}@x"})
    for body in (
        {"url": 5, "password": REFUSED}, {"url": "rtsp://x", "password": [REFUSED]},
        {"url": "rtsp://x", "pin": REFUSED}, {"url": f"rtsp://a:{REFUSED}@"}, {"url": f"gopher://a:{REFUSED}@x"},
        {"url": f"file://a:{REFUSED}@x"}, {"url": f"rtsp://a:{REFUSED}\n@x"},
        {"url": f"rtsp://a:{REFUSED}@169.254.169.254/"},
        {"url": "rtsp://x", "password": REFUSED + "\0"}, [REFUSED], REFUSED,
    ):  # fmt: skip
        assert client("POST", "/streams", json=body).status_code == 422
        assert client("PATCH", "/streams/door", json=body).status_code == 422
    broken = f'{{"password": "{REFUSED}", '
    assert client("POST", "/streams", content=broken, headers={"Content-Type": "application/json"}).status_code == 422
    assert client("GET", f"/detections/sse?min_confidence={REFUSED}").status_code == 422


def break_things(client: Witness, data: Path) -> None:
    """A data base that is locked, a worker and a camera's process that end by a signal."""
    blocker = sqlite3.connect(data / "streams.sqlite", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        refused = client("POST", "/streams", json={"url": "rtsp://x", "password": FIELD})
        assert (refused.status_code, refused.json()["code"]) == (503, "storage")
    finally:
        blocker.close()
    for pid in list(client.server.children()):
        os.kill(pid, signal.SIGABRT)
    wait_for(lambda: client("GET", "/readyz").status_code == 200, 60, "a new worker")
    wait_for(lambda: client("GET", "/streams/door").json()["status"]["state"] == "running", 60, "a new camera process")


def processes(server: ServerProcess) -> str:
    """What the list of processes shows, and what the server's processes got from it."""
    shown = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    for pid in (server.process.pid, *server.children()):
        with contextlib.suppress(OSError):
            (core,) = [n for n in Path(f"/proc/{pid}/limits").read_text().splitlines() if n.startswith("Max core file")]
            assert core.split()[4] == "0", core  # a crash leaves no memory behind
    for pid in server.children():
        for name in ("cmdline", "environ", "comm"):
            with contextlib.suppress(OSError):  # it has just ended
                shown += Path(f"/proc/{pid}/{name}").read_text()
    return shown


def test_no_secret_comes_out(server: ServerProcess, managed: str, data: Path, clip: Path) -> None:
    client = Witness(server)
    with Camera({"/door": Mount(clip)}, username="viewer", password=FIELD) as camera:
        session = use(client, camera, managed)
        misuse(client, managed)
        shown = processes(server)
        break_things(client, data)
        shown += processes(server)
        client("GET", "/metrics")
        answers = "\n".join(client.seen)
        server.terminate()
    log = "".join(server.log)
    assert "state=" in log
    assert "auth" in log
    secrets = (SETTING, WRONG, ARGUMENT, FIELD, IN_URL, IN_QUERY, REFUSED, managed, session)
    for place, text in (("answers", answers), ("log", log), ("processes", shown)):
        for secret in secrets:
            line = next((line for line in text.splitlines() if secret in line), "")
            assert not line, f"{secret} in {place}: {line[:1000]}"
    for path in (data, *data.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.is_relative_to(data / "engines"), path
        if path.is_file() and not path.name.startswith("streams.sqlite"):
            content = path.read_bytes()
            assert not [s for s in secrets if s.encode() in content], path
    kept = [token["name"] for token in json.loads((data / "access.json").read_text())["tokens"]]
    assert kept == ["wall"]
