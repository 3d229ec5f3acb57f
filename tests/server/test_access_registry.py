"""Who stands behind a token now: the file is followed, and nothing that happens to it opens the server."""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.access.registry import SETTING, Access, check_reach
from server.access.roles import LOCAL, Role
from server.access.sessions import FILE_NAME, LIFETIME_S, MAX_SESSIONS, Sessions
from server.access.tokens import AccessError, TokenFile
from server.settings import ServerSettings

LONG = "a-long-token-that-somebody-chose"


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path)


async def test_open_until_there_are_tokens_and_never_again(file: TokenFile, tmp_path: Path) -> None:
    access = Access(tmp_path, may_be_open=True)
    assert access.open
    token = file.add("phone", Role.VIEWER)
    access.refresh()
    assert not access.open
    assert access.managed(token) is not None
    file.path.unlink()
    access.refresh()
    assert not access.open
    assert access.managed(token) is None


def test_open_on_loopback_only(tmp_path: Path) -> None:
    assert Access.of(ServerSettings(data=tmp_path)).open
    assert not Access.of(ServerSettings(data=tmp_path, host="0.0.0.0")).open
    assert not Access.of(ServerSettings(data=tmp_path, token=LONG)).open


def test_a_server_that_others_reach_needs_a_token(file: TokenFile, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "camera.example"):
        with pytest.raises(AccessError, match=r"host: .*so a token is needed \(YOLOV9_TOKEN"):
            check_reach(ServerSettings(data=tmp_path, host=host))
        check_reach(ServerSettings(data=tmp_path, host=host, token=LONG))
    check_reach(ServerSettings(data=tmp_path))
    file.add("phone", Role.VIEWER)
    check_reach(ServerSettings(data=tmp_path, host="0.0.0.0"))


async def test_what_is_revoked_or_made_anew_is_known_at_once(file: TokenFile, tmp_path: Path) -> None:
    access = Access(tmp_path, SecretStr(LONG), may_be_open=True)
    first = file.add("phone", Role.VIEWER)
    assert access.managed(first) is None
    access.refresh()
    assert access.managed(first) is not None
    file.revoke("phone")
    second = file.add("phone", Role.ADMIN)
    access.refresh()
    assert access.managed(first) is None
    phone = access.managed(second)
    assert phone is not None
    assert (phone.name, phone.role) == ("phone", Role.ADMIN)
    setting = access.setting(LONG)
    assert setting is not None
    assert (setting.name, setting.role) == (SETTING, Role.ADMIN)
    for wrong in ("", LONG[:-1], LONG + "x", first, "\udcff", "é"):
        assert access.setting(wrong) is None
        assert access.managed(wrong) is None


async def test_a_broken_file_changes_nothing_and_is_told_once(
    file: TokenFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(tmp_path, may_be_open=True)
    token = file.add("phone", Role.VIEWER)
    access.refresh()
    whole = file.path.read_bytes()
    with caplog.at_level(logging.ERROR, "yolov9.access"):
        for _ in range(3):
            file.path.write_bytes(b"{")
            access.refresh()
    assert access.managed(token) is not None
    assert len(caplog.records) == 1
    file.path.write_bytes(whole)
    file.revoke("phone")
    access.refresh()
    assert access.managed(token) is None


def test_a_server_does_not_start_with_a_broken_file(file: TokenFile, tmp_path: Path) -> None:
    file.add("phone", Role.VIEWER)
    file.path.write_bytes(b"{")
    with pytest.raises(AccessError, match=str(file.path)):
        Access(tmp_path, may_be_open=True)


async def test_an_expired_token_lets_nobody_in(file: TokenFile, tmp_path: Path) -> None:
    now = [datetime.now(UTC).timestamp()]
    token = file.add("guest", Role.VIEWER, expires_at=datetime.now(UTC) + timedelta(hours=1))
    access = Access(tmp_path, may_be_open=True, clock=lambda: now[0])
    guest = access.managed(token)
    assert guest is not None
    session = access.begin_session(guest)
    assert access.by_session(session) == guest
    now[0] += 3601
    assert access.managed(token) is None
    assert access.by_session(session) is None


Change = Callable[[TokenFile], object]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda file: file.revoke("phone"), id="revoked"),
        pytest.param(lambda file: (file.revoke("phone"), file.add("phone", Role.VIEWER)), id="made anew"),
        pytest.param(lambda file: file.path.unlink(), id="file removed"),
    ],
)
async def test_leases_end_with_their_token(file: TokenFile, tmp_path: Path, change: Change) -> None:
    token = file.add("phone", Role.VIEWER)
    other = file.add("tablet", Role.VIEWER)
    access = Access(tmp_path, SecretStr(LONG), may_be_open=True)
    entered = asyncio.Semaphore(0)

    async def hold(secret: str) -> str:
        principal = access.managed(secret) or access.setting(secret)
        assert principal is not None
        with access.lease(principal) as lease:
            try:
                async with lease:
                    entered.release()
                    await asyncio.sleep(60)
            except TimeoutError:
                return "ended"
        return "slept"

    tasks = {secret: asyncio.create_task(hold(secret)) for secret in (token, other, LONG)}
    for _ in tasks:
        await entered.acquire()
    change(file)
    access.refresh()
    async with asyncio.timeout(10):
        assert await tasks[token] == "ended"
    assert not tasks[LONG].done()
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_a_lease_ends_when_its_token_expires(file: TokenFile, tmp_path: Path) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    token = file.add("guest", Role.VIEWER, expires_at=expires_at)
    access = Access(tmp_path, may_be_open=True, clock=lambda: expires_at.timestamp() - 0.05)
    guest = access.managed(token)
    assert guest is not None
    with access.lease(guest) as lease, pytest.raises(TimeoutError):
        async with lease:
            await asyncio.sleep(60)


async def test_whoever_was_there_before_the_first_token_goes(file: TokenFile, tmp_path: Path) -> None:
    access = Access(tmp_path, may_be_open=True)
    access.refresh()
    loop = asyncio.get_running_loop()
    loop.call_soon(file.add, "phone", Role.VIEWER)
    loop.call_soon(access.refresh)
    with access.lease(LOCAL) as lease, pytest.raises(TimeoutError):
        async with lease:
            await asyncio.sleep(60)


async def test_sessions_of_tokens_outlive_the_server(file: TokenFile, tmp_path: Path) -> None:
    token = file.add("phone", Role.VIEWER)
    before = Access(tmp_path, SecretStr(LONG), may_be_open=True)
    phone, setting = before.managed(token), before.setting(LONG)
    assert phone is not None
    assert setting is not None
    kept, lost = before.begin_session(phone), before.begin_session(setting)
    before.sessions.save()
    assert before.by_session(lost) == setting
    written = (tmp_path / FILE_NAME).read_text()
    assert kept not in written
    assert setting.key not in written  # no digest of a token that somebody thought up
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600

    after = Access(tmp_path, SecretStr(LONG), may_be_open=True)
    assert after.by_session(kept) == phone
    assert after.by_session(lost) is None
    file.revoke("phone")
    after.refresh()
    assert after.by_session(kept) is None


def test_sessions_are_bounded_and_end(tmp_path: Path) -> None:
    now = [0.0]
    sessions = Sessions(tmp_path, lambda: now[0])
    ids = [sessions.begin("0" * 64, volatile=False) for _ in range(MAX_SESSIONS + 1)]
    assert len(sessions) == MAX_SESSIONS
    assert sessions.key(ids[0]) is None
    assert sessions.key(ids[1]) == "0" * 64
    assert sessions.end(ids[1])
    assert not sessions.end(ids[1])
    assert not sessions.end("never there")
    assert sessions.key(ids[1]) is None
    now[0] = LIFETIME_S
    assert sessions.key(ids[2]) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"sha256": "x", "key": "y", "ends_at": 1}]'])
def test_broken_sessions_are_only_a_new_login(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    assert len(Sessions(tmp_path)) == 0
    assert "log in again" in caplog.text


def test_sessions_that_cannot_be_written_hold_until_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sessions = Sessions(tmp_path / "nowhere")
    session = sessions.begin("0" * 64, volatile=False)
    sessions.save()
    assert sessions.key(session) == "0" * 64
    assert "browsers must log in again after a restart" in caplog.text
