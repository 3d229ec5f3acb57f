"""Settings read anew: what changes, what waits for a restart, and that a broken file changes nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import FakeRuntime

from server.delivery.app import create_app
from server.reload import LIVE, Reloader, SettingsRefused, ignore_hangup, on_hangup, shown_settings
from server.settings import ServerSettings, SettingsError, load_settings

TOKEN = "t0ken-0123456789"


class House:
    """A file of settings, and who follows it."""

    def __init__(self, folder: Path, text: str = "") -> None:
        self.file = folder / "server.yaml"
        self.file.write_text(text)
        self.settings = load_settings(self.file)
        self.told: list[set[str]] = []
        self.reloader = Reloader(self.settings, lambda: load_settings(self.file), lambda n: self.told.append(set(n)))


async def test_what_can_change_changes_and_the_rest_is_named(tmp_path: Path) -> None:
    house = House(tmp_path, "confidence: 0.3\nport: 9000\n")
    house.file.write_text("confidence: 0.5\nport: 9001\nread_timeout_s: 2.0\ndeny_networks: [10.0.0.0/8]\n")
    done = await house.reloader.reload()
    assert done.changed == {"confidence": 0.5, "read_timeout_s": 2.0, "deny_networks": ["10.0.0.0/8"]}
    assert done.restart == ["port"]
    assert (house.settings.confidence, house.settings.port) == (0.5, 9000)
    assert house.told == [{"confidence", "read_timeout_s", "deny_networks"}]
    again = await house.reloader.reload()
    assert again.changed == {}
    assert again.restart == ["port"], "it goes on waiting for the restart"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("confidence: 7\n", "confidence"),
        ("confidence: 0.5\nmaxstreams: 3\n", "maxstreams"),
        ("confidence: 0.5\n a: [\n", "is not YAML"),
        ("[" * 2_000, "is not YAML"),
        ("confidence: 0.5\nport: 2001-99-99\n", "is not YAML"),
        ("backoff_initial_s: 60\nbackoff_max_s: 1\nconfidence: 0.5\n", "backoff_initial_s"),
    ],
)
async def test_a_broken_file_changes_nothing(tmp_path: Path, text: str, said: str) -> None:
    house = House(tmp_path, "confidence: 0.3\n")
    before = shown_settings(house.settings)
    house.file.write_text(text)
    with pytest.raises(SettingsRefused, match=said):
        await house.reloader.reload()
    assert shown_settings(house.settings) == before
    assert house.told == []
    house.file.unlink()
    with pytest.raises(SettingsRefused, match=r"server\.yaml"):
        await house.reloader.reload()


async def test_options_and_environment_stay_stronger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path, "confidence: 0.3\n")
    monkeypatch.setenv("YOLOV9_CONFIDENCE", "0.9")
    house.file.write_text("confidence: 0.5\n")
    assert (await house.reloader.reload()).changed == {"confidence": 0.9}


async def test_reloads_at_once_go_one_after_the_other() -> None:
    running = 0

    def load() -> ServerSettings:
        nonlocal running
        running += 1
        assert running == 1
        running -= 1
        return ServerSettings()

    reloader = Reloader(ServerSettings(), load)
    results = await asyncio.gather(*(reloader.reload() for _ in range(8)))
    assert all(done.changed == {} for done in results)


def test_live_settings_are_settings_and_dangerous_ones_are_not_among_them() -> None:
    assert set(ServerSettings.model_fields) >= LIVE
    assert LIVE.isdisjoint({"host", "port", "token", "data", "tls_key", "tls_certificate", "engine", "model"})


def test_the_page_lists_what_a_reload_takes_over() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = page.partition("| taken over | for |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == LIVE


async def test_sighup_reloads_and_survives_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.reload._at_a_terminal", lambda: False)
    house = House(tmp_path, "iou: 0.4\n")
    changed = asyncio.Event()
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load() -> ServerSettings:
        try:
            return load_settings(house.file)
        except SettingsError:
            loop.call_soon_threadsafe(refused.set)
            raise

    house.reloader = Reloader(house.settings, load, lambda _: changed.set())
    with on_hangup(house.reloader):
        house.file.write_text("iou: broken\n")
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            await refused.wait()
        house.file.write_text("iou: 0.6\n")
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            await changed.wait()
    assert house.settings.iou == 0.6


def test_a_signal_before_the_server_is_there_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        monkeypatch.setattr("server.reload._at_a_terminal", lambda: True)
        ignore_hangup()
        assert signal.getsignal(signal.SIGHUP) is before
        monkeypatch.setattr("server.reload._at_a_terminal", lambda: False)
        ignore_hangup()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_closed_terminal_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.reload._at_a_terminal", lambda: True)
    before = signal.getsignal(signal.SIGHUP)
    with on_hangup(Reloader(ServerSettings(), ServerSettings)):
        assert signal.getsignal(signal.SIGHUP) is before


async def test_the_routes(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"token: {TOKEN}\ndata: {tmp_path}\n")
    settings = load_settings(file)
    app = create_app(FakeRuntime(), settings, Reloader(settings, lambda: load_settings(file)))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with http_client(app, "http://localhost:8080", headers=headers) as client:
        shown = (await client.get("/settings")).json()
        assert shown["settings"]["token"] == "***"
        assert shown["settings"]["confidence"] == 0.25
        assert "confidence" in shown["live"]
        file.write_text(f"token: {TOKEN}-new\ndata: {tmp_path}\nconfidence: 0.4\n")
        answer = await client.post("/settings/reload")
        assert answer.json() == {"changed": {"confidence": 0.4}, "restart": ["token"]}
        assert (await client.get("/settings")).json()["settings"]["confidence"] == 0.4
        file.write_text(f"token: {TOKEN}\nconfidence: high\n")
        refused = await client.post("/settings/reload")
        assert (refused.status_code, refused.json()["code"]) == (422, "settings_refused")
        assert "confidence" in refused.json()["detail"]
        texts = [shown, answer.json(), refused.json()]
        assert TOKEN not in str(texts)
    async with http_client(app, "http://localhost:8080") as stranger:
        for call in (stranger.get("/settings"), stranger.post("/settings/reload")):
            response: httpx.Response = await call
            assert response.status_code == 401


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def load() -> ServerSettings:
        raise SettingsError(f"{tmp_path}/server.yaml: Permission denied")

    with pytest.raises(SettingsRefused, match="Permission denied"):
        await Reloader(ServerSettings(), load).reload()
