"""`python -m server.ctl`: look at a running server and change it.

Exit status: 0; 1: the server said no, or could not be reached; 2: usage; 130: interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from server.client import ApiError, Client, ClientError
from server.ctl import text
from server.secrecy import hide_arguments

_URL = "http://127.0.0.1:8080"


class UsageError(Exception):
    """An argument that cannot be used."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.ctl", description="Look at a running server and change it.")
    p.add_argument("--url", default=os.environ.get("YOLOV9_URL") or _URL, help=f"default YOLOV9_URL, else {_URL}")
    p.add_argument(
        "--token", help="default YOLOV9_TOKEN, which is better: arguments stand in the list of processes for a moment"
    )
    p.add_argument("--cacert", type=Path, metavar="FILE", help="trust this certificate (PEM) for https")
    p.add_argument("--json", action="store_true", help="as the server says it; one line for each live message")
    subjects = p.add_subparsers(dest="subject", required=True)

    streams = subjects.add_parser("streams", help="cameras and files").add_subparsers(dest="verb", required=True)
    streams.add_parser("list", help="all, with their state")
    add = streams.add_parser("add", help="add a camera or a file")
    add.add_argument("address", metavar="URL")
    add.add_argument("--id", help="made up if missing")
    add.add_argument("--dry-run", action="store_true", help="say what the source is, keep nothing")
    change = streams.add_parser("change", help="change settings while it runs")
    change.add_argument("id", metavar="ID")
    for command in (add, change):
        command.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE",
            help="a setting of the stream, as JSON or plain text: max_fps=5, classes='[\"person\"]'; repeatable",
        )  # fmt: skip
        command.add_argument("--ask-password", action="store_true", help="ask for the camera's password")
    streams.add_parser("remove", help="remove it").add_argument("id", metavar="ID")
    watch = streams.add_parser("watch", help="results as they come, until Ctrl-C")
    watch.add_argument("id", metavar="ID", nargs="?", help="default: all streams")
    watch.add_argument("--class", action="append", default=[], dest="classes", metavar="NAME", help="repeatable")
    watch.add_argument("--min-confidence", type=float, default=0.0, metavar="X")

    events = subjects.add_parser("events", help="what happened to followed objects")
    tail = events.add_subparsers(dest="verb", required=True).add_parser("tail", help="as it happens, until Ctrl-C")
    tail.add_argument("--after", type=int, metavar="N", help="begin after this message, and miss nothing")
    for live in (watch, tail):
        live.add_argument("--count", type=int, metavar="N", help="end after so many lines")

    models = subjects.add_parser("models", help="models of the server").add_subparsers(dest="verb", required=True)
    models.add_parser("list", help="all, with their state")
    activate = models.add_parser("activate", help="let it answer, and wait until it does")
    activate.add_argument("name", metavar="NAME")
    activate.add_argument("--force", action="store_true", help="even if streams ask for classes that it lacks")

    subjects.add_parser("ledger", help="where a stream's frames went").add_argument("id", metavar="ID")
    snapshot = subjects.add_parser("snapshot", help="a stream's newest frame as JPEG")
    snapshot.add_argument("id", metavar="ID")
    snapshot.add_argument("-o", "--output", required=True, metavar="FILE", help="- is the standard output")
    snapshot.add_argument("--annotate", action="store_true", help="with its boxes")
    return p


def run(argv: list[str]) -> int:
    """Exit status, with one line for each fault on stderr."""
    options = parser().parse_args(argv)
    passwords = [
        setting.partition("=")[2] for setting in getattr(options, "set", ()) if setting.startswith("password=")
    ]
    hide_arguments([options.token, *passwords], [options.address] if "address" in options else ())
    try:
        asyncio.run(_run(options))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush complains
        return 0
    except ApiError as error:
        faults = [f"{fault.field}: {fault.message}" for fault in error.errors] or [error.detail]
        for fault in faults:
            _say(f"{fault} ({error.status} {error.code})")
        return 1
    except (ClientError, OSError) as error:
        _say(str(error))
        return 1
    except UsageError as error:
        _say(str(error))
        return 2
    return 0


async def _run(options: argparse.Namespace) -> None:
    context = None
    if options.cacert is not None:
        try:
            context = ssl.create_default_context(cafile=options.cacert)
        except OSError as error:
            raise UsageError(f"--cacert: {options.cacert}: {error.strerror or error}") from None
    token = options.token or os.environ.get("YOLOV9_TOKEN") or None
    try:
        connected = Client(options.url, token=token, context=context, on_retry=_on_retry)
    except ValueError as error:
        raise UsageError(str(error)) from None
    async with connected as client:
        await _COMMANDS[options.subject, getattr(options, "verb", None)](client, options)


async def _list_streams(client: Client, options: argparse.Namespace) -> None:
    _show(options, await client.streams(), text.streams)


async def _add_stream(client: Client, options: argparse.Namespace) -> None:
    given = _fields(options)
    if options.id is not None:
        given["id"] = options.id
    view = await client.add_stream(options.address, dry_run=options.dry_run, **given)
    _show(options, view, text.fields if options.dry_run else lambda added: text.streams([added]))


async def _change_stream(client: Client, options: argparse.Namespace) -> None:
    view = await client.change_stream(options.id, **_fields(options))
    _show(options, view, lambda changed: text.streams([changed]))


async def _remove_stream(client: Client, options: argparse.Namespace) -> None:
    await client.remove_stream(options.id)


async def _watch(client: Client, options: argparse.Namespace) -> None:
    messages = client.detections(options.id, classes=options.classes, min_confidence=options.min_confidence)
    await _follow(options, messages)


async def _tail(client: Client, options: argparse.Namespace) -> None:
    await _follow(options, client.tail() if options.after is None else client.changes(options.after))


async def _follow(options: argparse.Namespace, messages: AsyncIterator[Any]) -> None:
    shown = 0
    async for message in messages:
        _show(options, message, text.line)
        shown += 1
        if shown == options.count:
            return


async def _list_models(client: Client, options: argparse.Namespace) -> None:
    _show(options, await client.models(), text.models)


async def _activate(client: Client, options: argparse.Namespace) -> None:
    _show(options, await client.activate(options.name, force=options.force), lambda model: text.models([model]))


async def _ledger(client: Client, options: argparse.Namespace) -> None:
    _show(options, await client.ledger(options.id), text.ledger)


async def _snapshot(client: Client, options: argparse.Namespace) -> None:
    jpeg = await client.snapshot(options.id, annotate=options.annotate)
    if options.output == "-":
        sys.stdout.buffer.write(jpeg)
        sys.stdout.buffer.flush()
    else:
        await asyncio.to_thread(Path(options.output).write_bytes, jpeg)


_COMMANDS = {
    ("streams", "list"): _list_streams,
    ("streams", "add"): _add_stream,
    ("streams", "change"): _change_stream,
    ("streams", "remove"): _remove_stream,
    ("streams", "watch"): _watch,
    ("events", "tail"): _tail,
    ("models", "list"): _list_models,
    ("models", "activate"): _activate,
    ("ledger", None): _ledger,
    ("snapshot", None): _snapshot,
}


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """Of --set and --ask-password. UsageError."""
    fields: dict[str, Any] = {}
    for setting in options.set:
        name, separator, value = setting.partition("=")
        if not separator or name in ("", "url", "id"):
            raise UsageError(f"--set: {name or setting!r} is not FIELD=VALUE of a setting")
        try:
            fields[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            fields[name] = value
    if options.ask_password:
        fields["password"] = getpass.getpass("Password of the camera: ")
    return fields


def _show(options: argparse.Namespace, answer: Any, as_text: Callable[[Any], str]) -> None:
    print(msgspec.json.encode(answer).decode() if options.json else as_text(answer), flush=True)


def _say(line: str) -> None:
    print(f"python -m server.ctl: {text.clean(line)}", file=sys.stderr)


def _on_retry(pause_s: float, why: Exception) -> None:
    _say(f"no connection, trying again in {pause_s:.1f} s: {why}")
