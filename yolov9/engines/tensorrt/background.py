"""An engine built by a process of its own: whatever its builder does to memory or to itself, this process goes on."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.build import BuildCancelled, Progress

_POLL_S = 0.2
_GRACE_S = 15.0
"""A cancelled builder may take so long to end by itself; it has a limit of its own that is shorter."""
_NICE = 10
"""The builder's share of the cores is what is left over: cameras are being decoded."""
_READ = 1 << 16


def build_in_background(
    bundle: str | Path,
    *,
    precision: str = "auto",
    max_batch: int | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = lambda share, what: None,
    cancelled: threading.Event | None = None,
    command: Sequence[str] = (sys.executable, "-m", "yolov9.engines.tensorrt"),
) -> Path:
    """Blocks until the engine is in the cache, and gives its file. The process ends with this one, however that ends.
    EngineError with the builder's reason, or how it died; BuildCancelled; OSError if it cannot be started."""
    arguments = [*command, str(bundle), "--attached", "--nice", str(_NICE), "--precision", precision]
    if max_batch is not None:
        arguments += ["--max-batch", str(max_batch)]
    if cache_dir is not None:
        arguments += ["--cache", str(cache_dir)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        return _follow(process, progress, cancelled or threading.Event())
    finally:
        _end(process)


def _follow(process: subprocess.Popen[bytes], progress: Progress, cancelled: threading.Event) -> Path:
    assert process.stdin is not None
    assert process.stdout is not None
    unread, built, error = b"", None, None
    while True:
        if cancelled.is_set():
            raise BuildCancelled("building the engine was cancelled")
        readable, _, _ = select.select([process.stdout], [], [], _POLL_S)
        if not readable:
            continue
        data = os.read(process.stdout.fileno(), _READ)
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            said = _parsed(line)
            share = said.get("share")
            if isinstance(share, int | float):
                progress(float(share), str(said.get("what", "")))
            built, error = said.get("built", built), said.get("error", error)
        if not data:
            break
    code = process.wait()
    if built is not None and code == 0:
        return Path(str(built))
    raise EngineError(str(error) if error is not None else f"the builder ended without a result: {_fate(code)}")


def _parsed(line: bytes) -> dict[str, object]:
    """A line of the builder; libraries that print into its stdout are not listened to."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """In order if it listens, else by force."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _fate(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    return f"exit status {code}"
