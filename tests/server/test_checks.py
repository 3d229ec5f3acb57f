"""What /readyz is made of."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from server.checks import StoreWatch
from server.engine_room import Readiness
from server.store import Store, StoreError


def test_each_reason_is_a_check_of_its_own() -> None:
    fine = Readiness(worker_ready=True, worker_reason="", failing_s=None, unanswered_s=0.0)
    assert [(check.name, check.ok, check.required) for check in fine.checks()] == [
        ("model", True, True), ("inference", True, True),
    ]  # fmt: skip
    starting = Readiness(worker_ready=False, worker_reason="the engine is starting", failing_s=None, unanswered_s=0.0)
    assert starting.verdict() == (False, "the engine is starting")
    assert [check.detail for check in starting.checks()] == ["the engine is starting", "waits for the model"]
    failing = Readiness(worker_ready=True, worker_reason="", failing_s=3.21, unanswered_s=0.0)
    assert failing.verdict() == (False, "inference has been failing for 3.2 s")
    assert failing.checks()[0].ok
    hung = Readiness(worker_ready=True, worker_reason="", failing_s=None, unanswered_s=12.0)
    assert "none has been answered for 12.0 s" in hung.verdict()[1]


async def test_a_data_base_that_others_hold_fails_and_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.store._BUSY_S", 0.05)
    caplog.set_level(logging.INFO)
    store = Store(tmp_path / "s.sqlite")
    watch = StoreWatch(store.check)
    await watch.look()
    assert watch.check.ok
    other = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        await watch.look()
    assert not watch.check.ok
    assert not watch.check.required
    other.execute("ROLLBACK")
    other.close()
    await watch.look()
    assert watch.check.ok
    assert [r.getMessage().split()[1] for r in caplog.records if "store" in r.getMessage()] == [
        "state=failing", "state=working",
    ], "one line a change"  # fmt: skip
    await store.close()


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "s.sqlite")
    await store.check()
    monkeypatch.setattr("server.store._LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(StoreError, match="the disk is full"):
        await store.check()
    await store.close()
    with pytest.raises(RuntimeError):
        await store.check()
