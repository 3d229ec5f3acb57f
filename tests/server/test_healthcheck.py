"""What a container's HEALTHCHECK runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from certificates import self_signed
from fake_runtime import FakeRuntime
from live_server import live_server

from server.healthcheck import main


async def check(*arguments: str) -> int:
    return await asyncio.to_thread(main, list(arguments))


async def test_ready_and_not_ready(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("YOLOV9_TLS_CERTIFICATE", raising=False)
    runtime = FakeRuntime()
    async with live_server(runtime) as server:
        monkeypatch.setenv("YOLOV9_PORT", str(server.port))
        assert await check() == 0
        runtime.ready = (False, "inference does not answer")
        assert await check() == 1
        assert "inference does not answer" in capsys.readouterr().err
    assert await check() == 1
    assert "refused" in capsys.readouterr().err
    assert await check("nonsense") == 1


async def test_over_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    async with live_server(FakeRuntime(), tls_certificate=certificate, tls_key=key) as server:
        monkeypatch.setenv("YOLOV9_PORT", str(server.port))
        monkeypatch.setenv("YOLOV9_TLS_CERTIFICATE", str(certificate))
        assert await check() == 0
