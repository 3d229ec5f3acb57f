"""`python -m server.access add | list | revoke`: the tokens of a server, whether it runs or not."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.access.roles import ROLE_NAMES, Role
from server.access.tokens import AccessError, TokenFile
from server.settings import SettingsError, load_settings

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_MAX_LIFETIME = timedelta(days=36_500)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m server.access",
        description="Tokens of a server. A running server follows within a second.",
    )
    p.add_argument("--data", type=Path, metavar="DIR", help="data folder of the server (default: as the server's)")
    p.add_argument("--config", type=Path, metavar="FILE", help="the server's settings, which name the data folder")
    commands = p.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a token and print it, once")
    add.add_argument("name", help="who will use it; letters, digits, `_`, `.` and `-`")
    add.add_argument("--role", choices=ROLE_NAMES, default="viewer", help="default viewer")
    add.add_argument(
        "--stream", action="append", metavar="ID", help="may see this stream only; repeatable (default: all streams)"
    )
    add.add_argument("--expires", metavar="WHEN", help="90d, 12h, 4w from now, or a time such as 2027-01-31T12:00Z")
    commands.add_parser("list", help="names, roles, streams, times; never a token")
    revoke = commands.add_parser("revoke", help="its owner is let in no more, and what is open is ended")
    revoke.add_argument("name")
    return p


def run(argv: list[str]) -> int:
    """Exit status: 0, or 2 with one sentence on stderr."""
    options = parser().parse_args(argv)
    try:
        overrides = {} if options.data is None else {"data": options.data}
        file = TokenFile(load_settings(options.config, overrides).data)
        match options.command:
            case "add":
                streams = None if options.stream is None else frozenset(options.stream)
                expires_at = None if options.expires is None else _time(options.expires)
                token = file.add(options.name, Role.named(options.role), streams=streams, expires_at=expires_at)
                print("This token is shown once and kept nowhere:", file=sys.stderr)
                print(token)
            case "list":
                _list(file)
            case _:
                file.revoke(options.name)
    except (AccessError, SettingsError, ValueError) as error:
        print(f"python -m server.access: {error}", file=sys.stderr)
        return 2
    return 0


def _time(text: str) -> datetime:
    """A span from now, or an ISO 8601 time (UTC if it names no zone). ValueError."""
    if match := re.fullmatch(r"(\d{1,6})([hdw])", text):
        span = int(match[1]) * _UNITS[match[2]]
        if span > _MAX_LIFETIME:
            raise ValueError(f"--expires: {text} is more than a hundred years")
        return datetime.now(UTC) + span
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--expires: {text!r} is neither a span (90d, 12h, 4w) nor a time") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _list(file: TokenFile) -> None:
    rows = [("NAME", "ROLE", "STREAMS", "CREATED", "EXPIRES")]
    for token in file.load():
        streams = "all" if token.streams is None else ",".join(sorted(token.streams))
        expires = "never" if token.expires_at is None else f"{token.expires_at:%Y-%m-%d %H:%M}Z"
        rows.append((token.name, token.role.label, streams, f"{token.created_at:%Y-%m-%d %H:%M}Z", expires))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
