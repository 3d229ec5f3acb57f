"""The command line against a real server around a fake runtime: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from fake_runtime import JPEG, FakeRuntime, detection
from live_server import Live, live_server, until
from test_event_store import NOW, message

from server.ctl import text
from server.ctl.cli import run

TOKEN = "t0p-secret"
Ctl = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    runtime = FakeRuntime()
    runtime.add("door", "rtsp://192.0.2.1/door")
    async with live_server(runtime, token=TOKEN) as server:
        yield server


@pytest.fixture
def ctl(live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Runs a command line as a process would, in a thread: exit status, stdout, stderr."""
    monkeypatch.setenv("YOLOV9_URL", live.http)
    monkeypatch.setenv("YOLOV9_TOKEN", TOKEN)

    async def call(*arguments: str) -> tuple[int, str, str]:
        async with asyncio.timeout(20):
            status = await asyncio.to_thread(run, list(arguments))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


async def test_streams_are_listed_added_changed_removed(ctl: Ctl) -> None:
    assert await ctl("streams", "list") == (
        0,
        "ID    STATE    CODEC  SIZE     FPS  P99 MS  URL\n"
        "door  running  h264   640x360  -    -       rtsp://192.0.2.1/door\n",
        "",
    )
    status, out, _ = await ctl("streams", "add", "rtsp://192.0.2.2/x", "--id", "yard", "--set", 'classes=["person"]')
    assert (status, out.splitlines()[1].split()[0]) == (0, "yard")
    status, out, _ = await ctl("--json", "streams", "change", "yard", "--set", "max_fps=5", "--set", "transport=tcp")
    changed = json.loads(out)
    assert (changed["classes"], changed["max_fps"], changed["transport"]) == (["person"], 5, "tcp")
    status, out, _ = await ctl("streams", "add", "rtsp://192.0.2.3/x", "--dry-run")
    assert "codec     h264" in out
    assert await ctl("streams", "remove", "yard") == (0, "", "")
    assert "yard" not in (await ctl("streams", "list"))[1]


WRONG = [
    (["streams", "add", "rtsp://192.0.2.2/x", "--set", "max_fps=-1"], 1, "max_fps: Input should be greater than 0"),
    (["streams", "add", "rtsp://192.0.2.2/x", "--set", "colour=red"], 1, "colour: is not known here (422"),
    (["streams", "add", "rtsp://192.0.2.2/x", "--id", "door"], 1, "exists already (409"),
    (["streams", "add", "rtsp://192.0.2.2/x", "--set", "max_fps"], 2, "'max_fps' is not FIELD=VALUE"),
    (["streams", "remove", "none"], 1, "(404 stream_not_found)"),
    (["streams", "watch", "none"], 1, "(404 stream_not_found)"),
    (["ledger", "none"], 1, "(404 stream_not_found)"),
    (["models", "activate", "none"], 1, "(404 "),
    (["snapshot", "door", "-o", "/nowhere/x.jpg"], 1, "/nowhere/x.jpg"),
    (["--token", "wrong", "streams", "list"], 1, "(401 unauthorized)"),
    (["--url", "http://127.0.0.1:9", "streams", "list"], 1, "127.0.0.1:9"),
    (["--url", "ftp://x", "streams", "list"], 2, "url: must be"),
    (["--cacert", "/nowhere.pem", "streams", "list"], 2, "--cacert: /nowhere.pem"),
]
"""Arguments, exit status, what is said."""


async def test_what_goes_wrong_is_one_line(ctl: Ctl) -> None:
    for arguments, status, said in WRONG:
        ended, out, err = await ctl(*arguments)
        assert (ended, out) == (status, ""), err
        assert said in err
        assert err.startswith("python -m server.ctl: ")
        assert len(err.splitlines()) == 1
        assert TOKEN not in err


@pytest.mark.parametrize("arguments", [[], ["streams"], ["streams", "paint"], ["snapshot", "door"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    assert "usage: python -m server.ctl" in capsys.readouterr().err


async def test_ledger_models_snapshot(ctl: Ctl, tmp_path: Path) -> None:
    assert (await ctl("ledger", "door"))[1] == (
        "FRAMES                  COUNT\nreceived                5\ncompleted               2\n"
        "in_flight               1\ndropped/ingest/damaged  2\n"
    )
    assert "tiny  active" in (await ctl("models", "list"))[1]
    assert "tiny  active" in (await ctl("models", "activate", "tiny"))[1]
    assert await ctl("snapshot", "door", "-o", str(tmp_path / "door.jpg"), "--annotate") == (0, "", "")
    assert (tmp_path / "door.jpg").read_bytes() == JPEG


async def test_watch_and_tail(live: Live, ctl: Ctl) -> None:
    hub, feed = live.runtime.hub, live.runtime.journal.feed
    watching = asyncio.ensure_future(ctl("streams", "watch", "door", "--class", "person", "--count", "3"))
    await until(lambda: len(hub) == 1)
    live.runtime.see("door", detection(), detection(), detection("dog"))
    live.runtime.see("door")
    assert (await watching)[:2] == (
        0,
        "-- door is running\n"
        "2026-11-24T10:15:30.123Z  door  #1  24 ms  2 person\n2026-11-24T10:15:30.123Z  door  #2  24 ms  nothing\n",
    )
    tailing = asyncio.ensure_future(ctl("--json", "events", "tail", "--count", "1"))
    await until(lambda: len(feed) == 1)
    feed.publish(message(8, "0" * 17, "zone_enter", name="mat", stream="door", last=NOW))
    status, out, _ = await tailing
    told = json.loads(out)
    assert (status, told["kind"], told["name"]) == (0, "zone_enter", "mat")
    assert "door  zone_enter mat  person" in text.line(told)
    await live.runtime.journal.close()


async def process(live: Live, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server.ctl", "--url", live.http, "--token", TOKEN, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


def arguments_of(pid: int) -> str:
    """As everybody on this machine sees them."""
    return Path(f"/proc/{pid}/cmdline").read_text()


async def test_interrupts_and_closed_pipes_end_it_quietly(live: Live) -> None:
    async with asyncio.timeout(30):
        interrupted, piped = await asyncio.gather(*[process(live, "streams", "watch") for _ in range(2)])
        assert interrupted.stdout is not None
        assert piped.stdout is not None
        assert await interrupted.stdout.readline() == await piped.stdout.readline() == b"-- door is running\n"
        assert TOKEN not in arguments_of(interrupted.pid)
        interrupted.send_signal(signal.SIGINT)
        assert await interrupted.communicate() == (b"", b"")
        assert interrupted.returncode == 130
        piped.stdout._transport.close()  # type: ignore[attr-defined]  # as `| head -1` does
        while piped.returncode is None:
            live.runtime.see("door")
            await asyncio.sleep(0.02)
        assert piped.stderr is not None
        assert (await piped.stderr.read(), piped.returncode) == (b"", 0)


def test_a_terminal_is_not_steered_by_what_it_is_told() -> None:
    assert text.table(("A", "B"), [("x\x1b[31m", None), ("longer", 3)]) == "A       B\nx?[31m  -\nlonger  3"


def test_lines_of_what_was_missed() -> None:
    gap = text.line({"type": "gap", "stream": "door", "missed": 3, "reason": "slow_client"})
    assert gap == "-- door: 3 messages dropped (slow_client)"
    back = text.line({"type": "reconnected", "stream": "door", "missed": 4, "away_s": 2.04})
    assert back == "-- door: connected again after 2.0 s, up to 4 results missed"
    anew = text.line({"type": "reconnected", "stream": "door", "missed": None, "away_s": 2.0})
    assert anew.endswith("an unknown number of results missed")
