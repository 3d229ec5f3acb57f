"""Webhooks: signed, in order, tried again, given up; and one real POST."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.analytics.event_store import EventStore
from server.analytics.journal import Journal
from server.connect.webhooks import Hook, NotDelivered, Poster, signed
from server.delivery.hub import Hub
from server.metrics import Metrics
from server.reload import shown_settings
from server.settings import ServerSettings, SettingsError, load_settings

SECRET = "sixteen-characters-and-more"
HOOK = {"name": "desk", "url": "http://127.0.0.1:9/t0ken-in-path", "secret": SECRET}
AT = "2026-01-01T00:00:00.000Z"
AT_UNIX = 1767225600.0


class House:
    """The hook's clock is `now`; each pause advances it. `answers`: for each attempt None, or what is raised."""

    def __init__(self, tmp_path: Path) -> None:
        self.metrics = Metrics()
        store = EventStore(tmp_path / "e.sqlite", metrics=self.metrics, max_age_s=1e9, max_bytes=1 << 30)
        self.journal = Journal(store, Hub(10, 1 << 20, metrics=self.metrics, clock=lambda: 0.0), self.metrics)
        self.now = AT_UNIX
        self.answers: list[NotDelivered | None] = []
        self.attempts: list[int] = []
        self.taken: list[int] = []
        self.slept: list[float] = []
        self.results: dict[str, int] = {}

    async def post(self, body: bytes, headers: dict[str, str]) -> None:
        number = json.loads(body)["id"]
        assert headers == signed(body, SECRET, int(self.now), number)
        self.attempts.append(number)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        self.taken.append(number)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def webhook_event(self, result: str) -> None:
        self.results[result] = self.results.get(result, 0) + 1

    async def run_until(self, condition: Callable[[], bool], *messages: Any, **fields: Any) -> None:
        settings = ServerSettings(webhooks=[{**HOOK, **fields}])
        hook = Hook(
            settings.webhooks[0], settings, self.journal, self, post=self.post, sleep=self.sleep,
            wall_clock=lambda: self.now, chance=lambda: 0.0,
        )  # fmt: skip
        await self.journal.store.move_cursor("webhook:desk", 0)
        for message in messages:
            self.journal.store.put(message)
        task = asyncio.ensure_future(hook.run())
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    yield built
    await built.journal.close()


def message(number: int, class_name: str = "person", stream: str = "yard") -> Any:
    event = {
        "id": f"{number:017x}", "stream": stream, "track_id": 1, "class": class_name, "state": "active",
        "first_seen": AT, "last_seen": AT, "zones": [], "lines": [],
    }  # fmt: skip
    return {"type": "event", "id": number, "stream": stream, "kind": "new", "at": AT, "name": None, "event": event}


async def test_order_is_kept_while_a_hook_fails(house: House) -> None:
    house.answers = [NotDelivered("status=503") for _ in range(4)]
    await house.run_until(lambda: house.taken == [1, 2, 3], *map(message, (1, 2, 3)))
    assert house.attempts == [1, 1, 1, 1, 1, 2, 3]
    assert house.slept == [1.0, 2.0, 4.0, 8.0]
    assert house.results == {"retried": 4, "delivered": 3}


async def test_what_is_refused_again_and_again_is_given_up(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.answers = [NotDelivered("status=400", refused=True) for _ in range(5)]
    await house.run_until(lambda: house.taken == [2], message(1), message(2))
    assert house.results == {"retried": 4, "given_up": 1, "delivered": 1}
    assert "webhook=desk event=1 state=given_up status=400" in caplog.text


async def test_what_is_too_old_is_given_up(house: House) -> None:
    house.now = AT_UNIX + 25 * 3600
    house.answers = [NotDelivered("reason=refused")]
    await house.run_until(lambda: house.taken == [2], message(1), message(2))
    assert house.results == {"given_up": 1, "delivered": 1}


async def test_only_what_is_wanted(house: House) -> None:
    messages = [message(1, "car"), message(2, stream="hall"), message(3), message(4, "car"), message(5)]
    await house.run_until(lambda: 5 in house.taken, *messages, streams=["yard"], classes=["person"])
    assert house.taken == [3, 5]


class _Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver) as server:
        state: Any = server
        state.got, state.status = [], 204
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


async def test_a_real_post(receiver: Any) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/hook?key=1"
    settings = ServerSettings(webhooks=[{**HOOK, "url": url}])
    poster = Poster(settings.webhooks[0], settings)
    await poster.post(b'{"id":7}', signed(b'{"id":7}', SECRET, 1_700_000_000, 7))
    ((path, headers, body),) = receiver.got
    assert (path, body, headers["X-Yolov9-Event"]) == ("/hook?key=1", b'{"id":7}', "7")
    mac = hmac.new(SECRET.encode(), b"1700000000." + body, hashlib.sha256).hexdigest()
    assert headers["X-Yolov9-Signature"] == f"sha256={mac}"
    for status, refused in ((302, False), (400, True), (429, False), (500, False)):
        receiver.status = status
        with pytest.raises(NotDelivered, match=f"status={status}") as caught:
            await poster.post(b"{}", {})
        assert caught.value.refused == refused
    assert {path for path, _, _ in receiver.got} == {"/hook?key=1"}, "a redirect was followed"
    settings.deny_networks = load_settings(None, {"deny_networks": "127.0.0.0/8"}).deny_networks
    with pytest.raises(NotDelivered, match="forbidden"):
        await poster.post(b"{}", {})


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV9_WEBHOOKS", json.dumps([HOOK]))
    settings = load_settings()
    assert settings.webhooks[0].name == "desk"
    for shown in (repr(settings), json.dumps(shown_settings(settings))):
        assert SECRET not in shown
        assert "t0ken-in-path" not in shown


@pytest.mark.parametrize(
    ("hooks", "fault"),
    [
        ("[{", "webhooks: is not JSON"),
        ([{**HOOK, "url": "ftp://host"}], "webhooks.0.url: must be http"),
        ([{**HOOK, "url": "http://u:pw-word@host"}], "webhooks.0.url: must be http"),
        ([{**HOOK, "secret": "short"}], "webhooks.0.secret: "),
        ([HOOK, HOOK], "webhooks: two have the same name"),
    ],
)
def test_faults_are_named_without_secrets(hooks: Any, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"webhooks": hooks})
    assert fault in str(caught.value)
    for secret in (SECRET, "pw-word", "t0ken-in-path", "short:"):
        assert secret not in str(caught.value)
