"""Tokens at rest: what the file holds, who may read it, and that nothing is lost between commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.access.cli import run
from server.access.roles import Principal, Role
from server.access.tokens import FILE_NAME, PREFIX, AccessError, TokenFile, digest


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "data")


def test_a_token_is_kept_as_a_digest_only(file: TokenFile) -> None:
    token = file.add("phone", Role.VIEWER, streams=frozenset({"yard", "door"}))
    assert token.startswith(PREFIX)
    assert len(token) - len(PREFIX) == 43  # 256 bits
    assert token[len(PREFIX) :] not in file.path.read_text()
    (kept,) = json.loads(file.path.read_text())["tokens"]
    assert kept | {"created_at": ""} == {
        "name": "phone", "role": "viewer", "streams": ["door", "yard"], "sha256": digest(token), "created_at": "",
    }  # fmt: skip
    (loaded,) = file.load()
    assert loaded.principal == Principal("phone", Role.VIEWER, frozenset({"door", "yard"}), None, digest(token))


def test_only_its_owner_may_read_it(file: TokenFile) -> None:
    before = os.umask(0)
    try:
        file.add("phone", Role.VIEWER)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.path.parent.iterdir()} == {0o600}
    file.path.chmod(0o640)
    with pytest.raises(AccessError, match="others may read or write it; chmod 600"):
        file.load()


def test_no_file_means_no_tokens(file: TokenFile) -> None:
    assert file.load() == []
    assert file.stamp() is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "content: "),
        ("[]", "content: "),
        ("{", "content: "),
        ('{"version": 2, "tokens": []}', "version: "),
        ('{"tokens": [{"name": "a"}]}', "tokens.0.role: "),
        ('{"tokens": [{"name": "a", "role": "root"}]}', "tokens.0.role: .*'root' is not a role"),
        ('{"tokens": [{"name": "a", "role": 3}]}', "tokens.0.role: .*must be the name of a role"),
        ('{"admin": true}', "admin: "),
        ("\x00" * 100, "content: "),
    ],
)
def test_a_broken_file_is_named(file: TokenFile, content: str, said: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(content)
    file.path.chmod(0o600)
    with pytest.raises(AccessError, match=f"^{file.path}: {said}"):
        file.load()


def test_a_name_is_there_once(file: TokenFile) -> None:
    file.add("phone", Role.VIEWER)
    with pytest.raises(AccessError, match="there is a token 'phone' already"):
        file.add("phone", Role.ADMIN)
    content = json.loads(file.path.read_text())
    content["tokens"] *= 2
    file.path.write_text(json.dumps(content))
    with pytest.raises(AccessError, match="a name stands there twice"):
        file.load()


def test_revoked_is_gone(file: TokenFile) -> None:
    file.add("phone", Role.VIEWER)
    file.add("tablet", Role.VIEWER)
    file.revoke("phone")
    assert [token.name for token in file.load()] == ["tablet"]
    with pytest.raises(AccessError, match="there is no token 'phone'"):
        file.revoke("phone")


@pytest.mark.parametrize("name", ["", "two words", "../x", "a\n", "x" * 65, "é"])
def test_odd_names_are_refused(file: TokenFile, name: str) -> None:
    with pytest.raises(AccessError, match=r"^name: "):
        file.add(name, Role.VIEWER)
    with pytest.raises(AccessError, match=r"^streams: "):
        file.add("phone", Role.VIEWER, streams=frozenset({name}))
    assert not file.path.exists()


def test_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from server.access.cli import run; [run(['--data', sys.argv[1], 'add', n]) for n in sys.argv[2:]]"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), *(f"{letter}{n}" for n in range(20))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for letter in "ab"
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    assert len(TokenFile(tmp_path).load()) == 40


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path)]
    assert run([*data, "add", "phone", "--stream", "door", "--stream", "yard", "--expires", "90d"]) == 0
    shown = capsys.readouterr()
    token = shown.out.strip()
    assert token.startswith(PREFIX)
    assert token not in shown.err
    assert run([*data, "add", "ops", "--role", "operator"]) == 0
    capsys.readouterr()
    assert run([*data, "list"]) == 0
    head, phone, ops = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "ROLE", "STREAMS", "CREATED", "EXPIRES"]
    assert phone.split()[:3] == ["phone", "viewer", "door,yard"]
    assert f"{datetime.now(UTC) + timedelta(days=90):%Y-%m}" in phone
    assert ops.split()[:3] == ["ops", "operator", "all"]
    assert ops.endswith("never")
    assert run([*data, "revoke", "phone"]) == 0
    assert [kept.name for kept in TokenFile(tmp_path).load()] == ["ops"]
    assert (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["revoke", "nobody"], "there is no token 'nobody'"),
        (["add", "a b"], "name: "),
        (["add", "a", "--expires", "soon"], "neither a span"),
        (["add", "a", "--expires", "999999w"], "more than a hundred years"),
        (["add", "a", "--expires", "2001-01-01"], "must not expire before it is used"),
        (["--config", "/nonexistent.yaml", "list"], "/nonexistent.yaml"),
        (["--data", "/proc/nowhere", "add", "a"], "/proc/nowhere: "),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--data" in arguments else ["--data", str(tmp_path), *arguments]
    assert run(given) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_command_needs_no_token_for_an_open_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the container YOLOV9_HOST is 0.0.0.0, and the first token is still to be made."""
    monkeypatch.setenv("YOLOV9_HOST", "0.0.0.0")
    assert run(["--data", str(tmp_path), "add", "admin", "--role", "admin"]) == 0
