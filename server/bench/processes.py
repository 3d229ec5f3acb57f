"""The processes that a bench starts: the cameras, and the server; and how it talks to the server over REST."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_START_S = 120.0
"""The first start of an engine compiles its model."""
_STOP_S = 10.0
_REQUEST_S = 10.0


class BenchError(Exception):
    """The bench cannot go on: one sentence with the cause."""


class Server:
    """A running server, seen over REST."""

    def __init__(self, url: str, pid: int | None, token: str | None = None) -> None:
        """`url`: http://host:port. `pid`: of its process, None if that is not known (then no CPU and no memory)."""
        self.url = url.rstrip("/")
        self.pid = pid
        self.token = token

    @property
    def websocket_url(self) -> str:
        return "ws" + self.url.removeprefix("http") + "/detections"

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """The body of a successful answer; BenchError with the server's own words otherwise."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise BenchError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:300]}") from None
        except OSError as error:
            raise BenchError(f"{method} {path}: {error}") from None

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(self.ask(method, path, body))

    def model(self) -> dict[str, str]:
        """Labels of the metric yolov9_model_info: name, engine, precision, hash."""
        for line in self.ask("GET", "/metrics").decode().splitlines():
            if line.startswith("yolov9_model_info{"):
                return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line))
        return {}

    def wait_until_ready(self, process: subprocess.Popen[bytes] | None) -> None:
        """BenchError if its process ends, or if it is not ready within two minutes."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.ask("GET", "/readyz")
                return
            except BenchError as error:
                if process is not None and process.poll() is not None:
                    raise BenchError(f"the server ended with status {process.returncode}") from None
                if time.monotonic() > deadline:
                    raise BenchError(f"the server is not ready after {_START_S:g} s: {error}") from None
            time.sleep(0.1)


@contextlib.contextmanager
def running_server(options: Sequence[str], log: Path, module: str = "server") -> Iterator[Server]:
    """`python -m MODULE` with these options on a free port; its log goes to the file `log`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, "--port", str(port), *options]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=sink)
    try:
        server = Server(f"http://127.0.0.1:{port}", process.pid, os.environ.get("YOLOV9_TOKEN"))
        server.wait_until_ready(process)
        yield server
    finally:
        _end(process)


class Cameras:
    """Our cameras, all in one process of their own."""

    def __init__(self, process: subprocess.Popen[str], urls: Mapping[str, str]) -> None:
        self._process = process
        self.urls = dict(urls)
        """stream -> address"""

    def tell(self, do: str, stream: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "path": f"/{stream}", **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"ok": False, "error": "the process has ended"}
        if not answer["ok"]:
            raise BenchError(f"camera {stream}: {answer['error']}")
        return answer["value"]

    def fall_silent(self) -> dict[str, int]:
        """Stop sending, connections stay open. stream -> frames sent up to here."""
        for stream in self.urls:
            self.tell("faults", stream, stalled=True)
        time.sleep(0.1)  # a frame that is on its way
        return {stream: self.tell("frames_sent", stream) for stream in self.urls}


@contextlib.contextmanager
def running_cameras(count: int, clip: Path, fps: float | None) -> Iterator[Cameras]:
    """`count` cameras that play the clip, each from another place of it."""
    streams = [f"cam{number:02d}" for number in range(count)]
    command = [sys.executable, "-m", "server.testing.camera", "--port", "0", "--control", "--spread"]
    for stream in streams:
        command += ["--mount", f"{stream}={clip}"]
    if fps is not None:
        command += ["--fps", f"{fps:g}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        urls = {stream: process.stdout.readline().strip() for stream in streams}
        if not all(urls.values()):
            raise BenchError("the cameras did not start; their own message stands above")
        yield Cameras(process, urls)
    finally:
        _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
