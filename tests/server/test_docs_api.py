"""The page about the interface: it names every call that there is and no other, and its examples can be used."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from server.ctl.cli import parser
from server.delivery.permissions import TABLE, WEBSOCKET

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
NO_INTERFACE = {("GET", "/"), ("GET", "/web/{path:path}"), ("GET", "/docs"), ("GET", "/docs/{file}"),
                ("GET", "/openapi.json"), (WEBSOCKET, "/{path:path}")}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_every_call_is_named_and_no_other() -> None:
    named = [(method, path) for method, path in re.findall(r"^\| `([A-Z]+) (/\S*)` \|", PAGE, re.M)]
    assert len(named) == len(set(named))
    probes = {("GET", "/healthz"), ("GET", "/readyz")}
    there = {("WS" if method == WEBSOCKET else method, path) for method, path in TABLE.keys() - NO_INTERFACE}
    assert set(named) == there | probes


@pytest.mark.parametrize("example", blocks("python"))
def test_python_compiles(example: str) -> None:
    assert compile(example, "docs/api.md", "exec")


def test_json_is_json() -> None:
    messages = [block for block in blocks("json") if not block.startswith('{"type": "state"')]
    assert len([json.loads(block) for block in messages]) == 2


def test_commands_are_commands() -> None:
    commands = re.findall(r"^python -m server\.ctl (.*)$", PAGE, re.M)
    assert len({parser().parse_args(shlex.split(command)).subject for command in commands}) == 5
