"""What is logged to stderr, and how: one line a record, as text for people or as JSON, in every process of the server.

Messages are written as `log.info("stream=%s state=%s", ...)`: the pairs are the structure. In JSON each pair is a field
of its own, with its type. No line holds credentials (`masked`), and no source of lines can flood the log (`Throttle`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

BURST = 20
"""Lines of one kind within WINDOW_S. A camera that flaps as fast as its back-off lets it writes fewer."""
WINDOW_S = 10.0
_KINDS = 4096
"""Kinds of lines that are counted at once: some of each of the most streams."""
_INHERITED = "_YOLOV9_LOGS"
"""Environment variable that tells the server's processes how to log."""
_CONVERSION = re.compile(r"%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
_WORD = re.compile(r"(?:([A-Za-z_]\w*)=)?(\S+)")
"""A word of a message's template; group 1 is the name where it is a pair."""
_RESERVED = frozenset({"time", "level", "logger", "message", "exception", "process"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")
_MASK = "***"
_SECRETS = (
    (re.compile(r"(?<=://)[^\s/@:\"'<>]{0,256}:[^\s\"'<>]{0,1024}@(?=[^\s/@])"), f"{_MASK}@"),
    (re.compile(r"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|digest)\s+).+", re.I), rf"\1{_MASK}"),
    (re.compile(r"((?:\b|_)(?:token|password|passwd|pwd|secret)[\"']?\s*[:=]\s*)(?!None\b|null\b|\d+\b)[\"']?[^\s\"',;&}]+",
                re.I), rf"\1{_MASK}"),
)  # fmt: skip


def configure(level: str, log_format: LogFormat) -> None:
    """Log to stderr from now on; may be called again, to change both. Processes started later do as this one."""
    os.environ[_INHERITED] = f"{log_format}:{level}"
    _install(level, log_format, None)


def inherit(process: str) -> None:
    """In a process of the server: log as it said when this one was started. `process` stands in each line."""
    log_format, _, level = os.environ.get(_INHERITED, "text:info").partition(":")
    _install(level, "json" if log_format == "json" else "text", process)


def _install(level: str, log_format: LogFormat, process: str | None) -> None:
    handler = _Stderr()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    handler.addFilter(Throttle(handler.handle))
    root = logging.getLogger()
    for old in [h for h in root.handlers if any(isinstance(f, Throttle) for f in h.filters)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def masked(text: str) -> str:
    """Without what looks like credentials: the last line of defence, for texts that libraries wrote."""
    if "://" in text or "=" in text or ":" in text:
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return text


class _Stderr(logging.Handler):
    """To what is standard error when a line comes: not to one that has been replaced and closed."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # as all handlers do: a log that cannot be written must not stop what writes it
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """`2026-11-24T10:15:30.123Z INFO yolov9.stream stream=door state=running`; a traceback on lines of its own."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = f"{process} " if process else ""

    def format(self, record: logging.LogRecord) -> str:
        message = _CONTROL.sub(lambda m: repr(m[0])[1:-1], record.getMessage())
        line = f"{_time(record)} {record.levelname} {record.name} {self._process}{message}"
        return masked(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the message's pairs as fields."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if self._process:
            line["process"] = self._process
        line["message"] = masked(record.getMessage())
        if stream := getattr(record, "stream", None):
            line["stream"] = stream
        line |= pairs(record)
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def pairs(record: logging.LogRecord) -> dict[str, Any]:
    """The `name=value` pairs of a message, out of its template and arguments: nobody's text is parsed.

    `a=%s` gives the argument itself, `a=%dx%d` and `a=word` the text. Of `a=%s%s` the second is a text of its own.
    """
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return {}
    found: dict[str, Any] = {}
    arguments = iter(record.args)
    for name, word in _WORD.findall(record.msg):
        conversions = [c for c in _CONVERSION.findall(word) if c != "%%"]
        values = [next(arguments, None) for _ in conversions]
        if not name or name in _RESERVED:
            continue
        if conversions and word in (conversions[0], "".join(conversions)):
            value = values[0]
            plain = isinstance(value, int | float | dict | list) or value is None
            found[name] = value if plain else masked(str(value))
        else:
            found[name] = masked(word % tuple(values))
    return found


class Throttle(logging.Filter):
    """Lets BURST lines of one kind pass in WINDOW_S and counts the rest; a line that says how many follows.

    A kind is a template of one logger about one stream. `write` takes the lines that say how many.
    """

    def __init__(self, write: Callable[[logging.LogRecord], Any], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._write = write
        self._clock = clock
        self._kinds: OrderedDict[tuple[object, ...], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "counted", False):
            return True
        now = self._clock()
        self._tell(now)
        key = (record.name, record.levelno, record.msg, getattr(record, "stream", None))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _KINDS:
                return True  # who makes so many kinds is no loop
            kind = self._kinds[key] = _Kind(now, record)
        kind.lines += 1
        return kind.lines <= BURST

    def _tell(self, now: float) -> None:
        """Kinds whose window is over are forgotten, in the order in which they began."""
        while self._kinds:
            kind = next(iter(self._kinds.values()))
            if now - kind.began < WINDOW_S:
                break
            self._kinds.popitem(last=False)
            if kind.lines > BURST:
                record = logging.LogRecord(
                    kind.record.name, kind.record.levelno, kind.record.pathname, kind.record.lineno,
                    "%d more lines like this within %g s: %s",
                    (kind.lines - BURST, WINDOW_S, kind.record.getMessage()), None,
                )  # fmt: skip
                record.counted = True
                if stream := getattr(kind.record, "stream", None):
                    record.stream = stream
                self._write(record)


class _Kind:
    """The lines of one kind in one window."""

    __slots__ = ("began", "lines", "record")

    def __init__(self, began: float, record: logging.LogRecord) -> None:
        self.began = began
        self.record = record
        self.lines = 0


def _time(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
