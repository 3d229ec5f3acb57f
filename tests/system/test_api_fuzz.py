"""Schemathesis throws at the REST interface what its OpenAPI allows, and what it does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_runtime import FakeRuntime, detection
from hypothesis import HealthCheck, settings

from server.delivery.app import create_app
from server.delivery.serve import serve
from server.settings import ServerSettings

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis (extra: test)")

openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server in a thread. It is about to end, so that endless answers (SSE, MJPEG) end at once."""
    found: list[str] = []
    up = threading.Event()
    end: list[Any] = []

    async def main() -> None:
        runtime = FakeRuntime()
        for stream_id in ("door", "0"):
            runtime.add(stream_id)
            runtime.see(stream_id, detection())
        app, stop = create_app(runtime, ServerSettings(port=0)), asyncio.Event()
        app.state.context.stop()
        loop = asyncio.get_running_loop()
        end.append(lambda: loop.call_soon_threadsafe(stop.set))

        def ready(address: str) -> None:
            found.append(address)
            up.set()

        await serve(app, ServerSettings(port=0), ready, stop=stop)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(20)
    yield found[0]
    end[0]()
    thread.join(20)


GUESSES = [openapi_checks.negative_data_rejection, openapi_checks.positive_data_acceptance]
"""Whether data should have been taken is for the schema to say, and it cannot say all (which class the model knows); in
a query everything is text. Worth a look by hand: `schemathesis run`."""

schema = schemathesis.openapi.from_dict(create_app(FakeRuntime(), ServerSettings()).openapi())


@schema.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_no_500_and_nothing_undocumented(case: Any, address: str) -> None:
    response = case.call(base_url=address, timeout=20)
    if response.text == "Invalid HTTP request received." or response.status_code == 431:
        return  # 32 kB of URL and more: refused before the application
    case.validate_response(response, excluded_checks=GUESSES)
