"""A real server, started as people start it, for the system tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect


class ServerProcess:
    """`python -m server` on a free port. Use as a context; `log` is all that it wrote so far."""

    def __init__(self, model: Path | None, data: Path, *options: str, prefix: Sequence[str] = ()) -> None:
        """`model` None: what the data base remembers. `prefix`: a command that runs the server as its arguments."""
        command = [*prefix, sys.executable, "-m", "server", "--port", "0", "--data", str(data), *options]
        command += [] if model is None else ["--model", str(model)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=data.parent)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        address = wait_for(self._address, 60, "the server's address")
        self.http = httpx.Client(base_url=address, timeout=10)
        self.address = address

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def _address(self) -> str | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {''.join(self.log)}")
        for line in self.log:
            if match := re.search(r"serving on (http://\S+)", line):
                return match[1]
        return None

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def terminate(self) -> float:
        """SIGTERM; returns the seconds until it had ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        return time.monotonic() - began

    def add(self, **definition: Any) -> None:
        answer = self.http.post("/streams", json=definition)
        assert answer.status_code == 201, answer.text

    def status(self, stream: str) -> dict[str, Any]:
        status: dict[str, Any] = self.http.get(f"/streams/{stream}").json()["status"]
        return status

    def ledger(self, stream: str) -> dict[str, Any]:
        """The ledger, which must balance."""
        ledger: dict[str, Any] = self.http.get(f"/streams/{stream}/ledger").json()
        dropped = sum(n for reasons in ledger["dropped"].values() for n in reasons.values())
        assert ledger["received"] == ledger["completed"] + ledger["in_flight"] + dropped, ledger
        return ledger

    def messages(self, path: str = "/detections", timeout: float = 10) -> Iterator[dict[str, Any]]:
        """What a WebSocket client receives."""
        with connect(self.address.replace("http", "ws") + path) as socket:
            while True:
                yield json.loads(socket.recv(timeout))

    def children(self) -> dict[int, str]:
        """pid -> command name of all processes below the server."""
        parents: dict[int, tuple[int, str]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                name, rest = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
                if rest[0] != "Z":
                    parents[int(entry)] = (int(rest[1]), name)
        found: dict[int, str] = {}
        grown = True
        while grown:
            grown = False
            for pid, (parent, name) in parents.items():
                if pid not in found and (parent == self.process.pid or parent in found):
                    found[pid] = name
                    grown = True
        return found


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true value of `condition`, looked at every 20 ms."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.02)
