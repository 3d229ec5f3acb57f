"""Logs: one line a record, structure out of the templates, no credentials, no floods."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs
from server.logs import BURST, WINDOW_S, JsonFormatter, TextFormatter, Throttle, masked, pairs

SECRET = "s3cr3t/p@ss"


def record(template: str, *arguments: Any, stream: str | None = None, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("yolov9.stream", level, "x.py", 1, template, arguments, None)
    made.created = 1_795_515_330.1234
    if stream:
        made.stream = stream
    return made


def test_a_line_of_text() -> None:
    line = TextFormatter().format(record("stream=%s state=%s", "door", "running"))
    assert line == "2026-11-24T10:15:30.123Z INFO yolov9.stream stream=door state=running"
    assert " yolov9.stream worker a" in TextFormatter("worker").format(record("a"))


def test_the_pairs_of_a_message_are_fields_with_their_types() -> None:
    made = record(
        "stream=%s state=%s retry_in_s=%.1f pid=%d 100%% reason=%s%s ledger=%s", "door", "backoff", 2.25, 17, None,
        " detail='x'", {"received": 3},
    )  # fmt: skip
    line = json.loads(JsonFormatter().format(made))
    assert line["message"].startswith("stream=door state=backoff retry_in_s=2.2 pid=17 100% reason=None detail='x'")
    assert {name: line[name] for name in ("stream", "state", "retry_in_s", "pid", "reason", "ledger")} == {
        "stream": "door", "state": "backoff", "retry_in_s": 2.25, "pid": 17, "reason": None, "ledger": {"received": 3},
    }  # fmt: skip
    assert (line["time"], line["level"], line["logger"]) == ("2026-11-24T10:15:30.123Z", "info", "yolov9.stream")


def test_pairs_of_several_parts_and_of_plain_words() -> None:
    made = record("worker pid=%d state=ready shape=%dx%d seconds=%.2f for %s", 7, 320, 192, 1.5, "a")
    assert pairs(made) == {"pid": 7, "state": "ready", "shape": "320x192", "seconds": 1.5}
    assert pairs(record("state=reloaded changed=%s restart=%s", {"a": 1}, ["b"])) == {
        "state": "reloaded", "changed": {"a": 1}, "restart": ["b"],
    }  # fmt: skip


def test_a_pair_cannot_take_the_place_of_a_field() -> None:
    line = json.loads(JsonFormatter().format(record("level=%s message=%s", "x", "y", stream="door")))
    assert (line["level"], line["message"], line["stream"]) == ("info", "level=x message=y", "door")


@given(st.text(), st.integers() | st.text())
def test_whatever_is_logged_it_is_one_line(text: str, value: object) -> None:
    made = record("stream=%s %s", text, value)
    assert len(TextFormatter().format(made).splitlines()) == 1
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line)["level"] == "info"


def test_an_exception_is_a_field_in_json_and_lines_of_its_own_in_text() -> None:
    made = record("it failed")
    try:
        raise ValueError(f"rtsp://viewer:{SECRET}@camera/one")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "ValueError" in json.loads(line)["exception"]
    text = TextFormatter().format(made)
    assert text.splitlines()[0].endswith("it failed")
    assert "ValueError" in text
    assert SECRET not in line + text


@pytest.mark.parametrize(
    "text",
    [
        f"cannot open rtsp://viewer:{SECRET}@10.0.0.7:554/stream",
        f"cannot open 'http://viewer:{SECRET}@camera/', tried 3 times",
        f"GET /detections?token={SECRET} HTTP/1.1",
        f"{{'password': '{SECRET}', 'user': 'a'}}",
        f"Authorization: Bearer {SECRET}",
        f'"authorization": "Digest username=\\"a\\", response={SECRET}"',
        f"YOLOV9_TOKEN={SECRET}",
    ],
)
def test_what_looks_like_credentials_is_masked(text: str) -> None:
    assert "***" in masked(text)
    assert "s3cr3t" not in masked(text)
    made = record("detail=%s", text)
    assert "s3cr3t" not in TextFormatter().format(made) + JsonFormatter().format(made)


@pytest.mark.parametrize(
    "text",
    [
        "stream=door state=running reason=None", "tokens: 3", "serving on http://127.0.0.1:8080 (API: http://[::1]/docs)",
        "rtsp://***@camera:554/a", "password: None", "2026-11-24T10:15:30.123Z mail@example.org",
    ],
)  # fmt: skip
def test_what_does_not_is_left_alone(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("text", ["://" * 3000, "://" + ":" * 9000, "token=" * 1500, "authorization: basic " * 400])
def test_masking_takes_no_time_that_a_text_could_stretch(text: str) -> None:
    began = time.process_time()
    masked(text)
    assert time.process_time() - began < 1.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_that_repeats_is_counted_and_the_count_is_told() -> None:
    clock, told = Clock(), []
    throttle = Throttle(told.append, clock)
    passed = [throttle.filter(record("decode error %d", n, stream="door")) for n in range(BURST + 30)]
    assert passed == [True] * BURST + [False] * 30
    assert throttle.filter(record("decode error %d", 1, stream="gate")), "another stream is another kind"
    assert throttle.filter(record("decode error %d", 1, stream="door", level=logging.ERROR))
    clock.now += WINDOW_S
    assert throttle.filter(record("something else"))
    (line,) = told
    assert line.getMessage() == f"30 more lines like this within {WINDOW_S:g} s: decode error 0"
    assert line.stream == "door"
    assert throttle.filter(line), "what is told is not counted again"
    assert throttle.filter(record("decode error %d", 1, stream="door")), "a new window"


def test_a_flood_of_different_lines_costs_no_memory() -> None:
    throttle = Throttle(lambda _: None, Clock())
    for n in range(10_000):
        throttle.filter(record(f"template {n}"))
    assert len(throttle._kinds) <= 4096


@pytest.fixture
def _own_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, inherited = root.handlers[:], root.level, os.environ.get("_YOLOV9_LOGS")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if inherited is None:
        os.environ.pop("_YOLOV9_LOGS", None)


@pytest.mark.usefixtures("_own_root")
def test_configured_again_it_changes_level_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure("info", "text")
    before = len(logging.getLogger().handlers)
    logging.getLogger("yolov9.test").info("a=%d", 1)
    logs.configure("error", "json")
    assert len(logging.getLogger().handlers) == before
    logging.getLogger("yolov9.test").warning("b=%d", 2)
    logging.getLogger("yolov9.test").error("c=%d", 3)
    first, second = stderr.getvalue().splitlines()
    assert first.endswith("INFO yolov9.test a=1")
    assert json.loads(second)["c"] == 3


@pytest.mark.usefixtures("_own_root")
def test_processes_log_as_the_server_does() -> None:
    logs.configure("warning", "json")
    code = (
        "import logging; from server import logs; logs.inherit('camera'); logging.warning('x=%d', 1); logging.info('y')"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = child.stderr.splitlines()
    assert json.loads(line) | {"time": ""} == {
        "time": "", "level": "warning", "logger": "root", "process": "camera", "message": "x=1", "x": 1,
    }  # fmt: skip


def test_pairs_of_strange_records() -> None:
    assert pairs(record("a=%s")) == {"a": None}
    made = record("a=%(a)s")
    made.args = {"a": 1}
    assert pairs(made) == {}
