"""Tasks that run as long as the server does."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.keeping import PAUSE_S, kept_running


async def test_an_error_costs_a_pause_and_the_end_is_a_cancellation(caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []
    runs = 0

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise KeyError("nobody foresaw this")
        if runs == 3:
            await asyncio.Event().wait()

    with caplog.at_level(logging.ERROR):
        task = asyncio.create_task(kept_running("mqtt", run, sleep))
        while runs < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert pauses == [PAUSE_S, PAUSE_S]
    assert [record.exc_info is not None for record in caplog.records] == [True, False]
    assert all("task=mqtt" in record.getMessage() for record in caplog.records)
