"""What people read: tables and lines. Pure; nothing that a server sends reaches the terminal as a control character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.client import Reconnected
from server.results import EventMessage, Gap, Result, State


def clean(value: object) -> str:
    return "".join(character if character.isprintable() else "?" for character in str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns side by side; None is a dash."""
    cells = [list(head), *(["-" if cell is None else clean(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def streams(views: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for view in views:
        status = view["status"]
        size = None if status["width"] is None else f"{status['width']}x{status['height']}"
        state = status["state"] if status["reason"] is None else f"{status['state']} ({status['reason']})"
        fps, p99 = _rounded(status["fps_detected"], 1), _rounded(status["latency_ms_p99"], 0)
        rows.append((view["id"], state, status["codec"], size, fps, p99, view["url"]))
    return table(("ID", "STATE", "CODEC", "SIZE", "FPS", "P99 MS", "URL"), rows)


def models(views: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (view["name"], view["state"], len(view["classes"]), view["input_size"], view["source"], view["reason"])
        for view in views
    ]
    return table(("NAME", "STATE", "CLASSES", "INPUT", "SOURCE", "REASON"), rows)


def ledger(view: Mapping[str, Any]) -> str:
    rows = [(name, view[name]) for name in ("received", "completed", "in_flight")]
    rows += [
        (f"dropped/{stage}/{reason}", count)
        for stage, reasons in view["dropped"].items()
        for reason, count in reasons.items()
    ]
    return table(("FRAMES", "COUNT"), rows)


def fields(view: Mapping[str, Any]) -> str:
    return table(("FIELD", "VALUE"), [(name, value) for name, value in view.items() if value is not None])


def line(message: Result | State | Gap | Reconnected | EventMessage) -> str:
    """One message of a live feed."""
    stream = message["stream"]
    if message["type"] == "result":
        found = Counter(detection["class"] for detection in message["detections"])
        what = ", ".join(f"{count} {name}" for name, count in found.most_common()) or "nothing"
        if message["status"] == "error":
            what = f"error: {message.get('error')}"
        at, total = message["time"]["received_at"], message["latency_ms"]["total"]
        return clean(f"{at}  {stream}  #{message['seq']}  {total:.0f} ms  {what}")
    if message["type"] == "state":
        reason = "" if message["reason"] is None else f" ({message['reason']})"
        return clean(f"-- {stream} is {message['state']}{reason}")
    if message["type"] == "gap":
        return clean(f"-- {stream}: {message['missed']} messages dropped ({message['reason']})")
    if message["type"] == "reconnected":
        missed = "an unknown number of" if message["missed"] is None else f"up to {message['missed']}"
        return clean(f"-- {stream}: connected again after {message['away_s']:.1f} s, {missed} results missed")
    event = message["event"]
    name = "" if message["name"] is None else f" {message['name']}"
    if message["direction"] is not None:
        name += f" {message['direction']}"
    if message["seconds"] is not None:
        name += f" {message['seconds']:.1f} s"
    who = f"{event['class']} {event['track_id']}"
    return clean(f"{message['at']}  {stream}  {message['kind']}{name}  {who}  {event['id']}")


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
