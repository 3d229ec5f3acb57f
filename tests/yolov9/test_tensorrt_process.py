"""The builder in a process of its own: what it says, how it dies, and that it never outlives whoever started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from tiny_model import random_model, tiny_bundle

from yolov9.engines import EngineError
from yolov9.engines.tensorrt import __main__ as command
from yolov9.engines.tensorrt.background import build_in_background
from yolov9.engines.tensorrt.build import BuildCancelled

pytestmark = pytest.mark.system

_LISTENING = """
import json, os, sys, threading, time
def say(**fields): print(json.dumps(fields), flush=True)
"""


def builder(tmp_path, body):
    """The command of a fake builder."""
    script = tmp_path / "builder.py"
    script.write_text(_LISTENING + body)
    return (sys.executable, str(script))


def test_progress_and_result_come_back_whatever_else_is_printed(tmp_path):
    told = []
    body = """
say(share=0.25, what="measuring")
print("a native library talks\\n[1, 2]\\n{broken", flush=True)
sys.stdout.write('{"share": 0.5, '); sys.stdout.flush(); time.sleep(0.3); print('"what": "still"}', flush=True)
say(built=sys.argv[1] + "/out.engine", bytes=7)
"""
    path = build_in_background(
        tmp_path, command=builder(tmp_path, body), progress=lambda share, what: told.append((share, what))
    )
    assert path == tmp_path / "out.engine"
    assert told == [(0.25, "measuring"), (0.5, "still")]


def test_it_is_told_what_to_build(tmp_path):
    body = "say(built='|'.join(sys.argv[1:]))"
    path = build_in_background(
        tmp_path / "b", precision="int8", max_batch=4, cache_dir=tmp_path / "c", command=builder(tmp_path, body)
    )
    options = str(path).split("|")
    parsed = command._parser().parse_args(options)
    assert (parsed.bundle, parsed.precision, parsed.max_batch, parsed.cache) == (
        tmp_path / "b", "int8", 4, tmp_path / "c",
    )  # fmt: skip
    assert parsed.attached
    assert parsed.nice > 0, "cameras come first"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("say(error='the GPU is too small'); sys.exit(2)", "^the GPU is too small$"),
        ("os.kill(os.getpid(), 9)", r"ended without a result: killed by signal 9 \(SIGKILL\)"),
        ("say(share=0.5, what='x'); os.abort()", r"killed by signal 6 \(SIGABRT\)"),
        ("sys.exit(5)", "ended without a result: exit status 5"),
        ("", "ended without a result: exit status 0"),
        ("say(built='/x'); os.kill(os.getpid(), 11)", r"killed by signal 11"),
    ],
    ids=["says", "killed", "aborts", "fails", "silent", "crashes at the end"],
)
def test_how_it_failed_is_said(tmp_path, body, message):
    with pytest.raises(EngineError, match=message):
        build_in_background(tmp_path, command=builder(tmp_path, body))


def test_cancelled_it_ends_in_order(tmp_path):
    cancelled = threading.Event()
    body = f"""
say(share=0.1, what="begun")
sys.stdin.buffer.read()
open({str(tmp_path / "ended")!r}, "w").close()
"""
    with pytest.raises(BuildCancelled):
        build_in_background(
            tmp_path, command=builder(tmp_path, body), cancelled=cancelled, progress=lambda *_: cancelled.set()
        )
    assert (tmp_path / "ended").exists()


def test_cancelled_it_is_ended_if_it_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr("yolov9.engines.tensorrt.background._GRACE_S", 0.3)
    cancelled = threading.Event()
    pids = []

    def progress(share, what):
        pids.append(int(what))
        cancelled.set()

    with pytest.raises(BuildCancelled):
        build_in_background(
            tmp_path, command=builder(tmp_path, "say(share=0.1, what=str(os.getpid())); time.sleep(60)"),
            cancelled=cancelled, progress=progress,
        )  # fmt: skip
    assert not psutil.pid_exists(pids[0])


def test_an_exception_of_the_listener_ends_it(tmp_path):
    def progress(share, what):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_in_background(
            tmp_path, command=builder(tmp_path, "say(share=0.1, what='x'); sys.stdin.read()"), progress=progress
        )
    assert not any("builder.py" in " ".join(p.cmdline()) for p in psutil.Process().children())


_PARENT = """
import sys
from yolov9.engines.tensorrt.background import build_in_background
build_in_background("x", command=(sys.executable, sys.argv[1]), progress=lambda share, what: print(what, flush=True))
"""


def test_the_end_of_whoever_started_it_is_its_end(tmp_path):
    """kill -9: nobody is left to cancel, and the real command's watch sees the end of its stdin."""
    body = """
sys.path.insert(0, os.getcwd())
from yolov9.engines.tensorrt import __main__ as command
cancelled = threading.Event()
threading.Thread(target=command._watch, args=(0, cancelled), daemon=True).start()
say(share=0.1, what=str(os.getpid()))
cancelled.wait(60)
"""
    _, script = builder(tmp_path, body)
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, script], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_one_that_is_caught_in_native_code_ends_all_the_same(monkeypatch):
    ends = []
    monkeypatch.setattr(command, "_GRACE_S", 0.01)
    monkeypatch.setattr(os, "_exit", ends.append)
    cancelled = threading.Event()
    reading, writing = os.pipe()
    os.write(writing, b"noise")
    os.close(writing)
    command._watch(reading, cancelled)
    os.close(reading)
    assert cancelled.is_set()
    deadline = time.monotonic() + 10
    while not ends and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ends == [3]


class TestCommand:
    @pytest.fixture
    def bundle(self, tmp_path):
        return tiny_bundle(tmp_path / "bundle", random_model(3), ("a", "b", "c"))

    def test_it_builds_into_the_cache_and_says_where(self, bundle, tmp_path, monkeypatch, capsys):
        from types import SimpleNamespace

        asked = {}

        def site(bundle, **options):
            asked.update(options)
            return SimpleNamespace(cache=SimpleNamespace(path=lambda recipe: tmp_path / f"{recipe}.engine"))

        def provide(where, *, progress, cancelled):
            progress(0.5, "measuring")
            assert not cancelled.is_set()
            return "made", b"12345678"

        monkeypatch.setattr(command, "site", site)
        monkeypatch.setattr(command, "provide", provide)
        assert (
            command.main([str(bundle.path), "--precision", "fp32", "--max-batch", "3", "--cache", str(tmp_path)]) == 0
        )
        assert asked == {"precision": "fp32", "max_batch": 3, "cache_dir": tmp_path}
        told = capsys.readouterr()
        assert told.err == " 50% measuring\n"
        assert told.out == f"{tmp_path}/made.engine (0.0 MB)\n"

    def test_what_is_wrong_is_one_sentence(self, bundle, tmp_path, capsys):
        assert command.main([str(tmp_path / "nothing")]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path}/nothing: no such folder\n"

    def test_attached_it_speaks_json_even_of_what_is_wrong(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "yolov9.engines.tensorrt", str(tmp_path / "nothing"), "--attached"],
            stdin=subprocess.PIPE, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode in (2, 3), done.stderr
        assert json.loads(done.stdout) == {"error": f"{tmp_path}/nothing: no such folder"}

    def test_help_names_every_option(self, capsys):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        text = capsys.readouterr().out
        for option in ("--precision", "--max-batch", "--cache", "--attached", "--nice"):
            assert option in text
