"""What a planned fault does to the running server and its cameras, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from server.bench.processes import BenchError, Cameras, Server
from server.bench.procfs import roles, snapshot
from server.chaos.acts_clients import upgrade
from server.soak.schedule import Planned
from server.testing.truth.pattern import CERTAINTY

_SLOW_CLIENTS = 3
_TIMEOUT_S = 5.0
_SWAP_S = 120.0
End = Callable[[], None]


@dataclass(slots=True)
class Acts:
    """Has a method for each fault of `schedule`, called with the stream it concerns; what it gives back ends it."""

    server: Server
    cameras: Cameras
    clip: Path
    larger: Path
    """The same pictures in another size."""
    models: tuple[str, str] | None = None
    """Names of two models to change between; None: there is only one."""
    added: Callable[[str], None] = lambda stream: None
    """Told when a stream has been added again."""
    done: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _models_turn: int = 0

    @property
    def streams(self) -> list[str]:
        return list(self.cameras.urls)

    def begin(self, planned: Planned) -> End | None:
        """Do it. A server that refuses is noted as failed, and the run goes on."""
        stream = "" if planned.camera is None else self.streams[planned.camera]
        try:
            end: End | None = getattr(self, f"_{planned.fault}")(stream)
        except (BenchError, OSError) as error:
            self.failed.append(f"{planned.fault} {stream}: {error}")
            return None
        self.done[planned.fault] = self.done.get(planned.fault, 0) + 1
        return end

    def add(self, stream: str) -> None:
        """The stream of a camera, over TCP or UDP in turns. BenchError."""
        transport = ("tcp", "udp")[self.streams.index(stream) % 2]
        body = {"id": stream, "url": self.cameras.urls[stream], "transport": transport, "confidence": CERTAINTY}
        self.server.ask("POST", "/streams", body)
        self.added(stream)

    # Cameras.

    def _fin(self, stream: str) -> None:
        self.cameras.tell("kill", stream)

    def _rst(self, stream: str) -> None:
        self.cameras.tell("kill", stream, reset=True)

    def _bye(self, stream: str) -> None:
        self.cameras.tell("bye", stream)

    def _stall(self, stream: str) -> End:
        return self._knob(stream, "stalled", True, False)

    def _loss(self, stream: str) -> End:
        return self._knob(stream, "loss", 0.1, 0.0)

    def _corrupt(self, stream: str) -> End:
        return self._knob(stream, "corrupt", 0.05, 0.0)

    def _knob(self, stream: str, name: str, on: object, off: object) -> End:
        self.cameras.tell("faults", stream, **{name: on})
        return lambda: self.cameras.tell("faults", stream, **{name: off})

    def _pts_jump(self, stream: str) -> None:
        self.cameras.tell("jump", stream, seconds=-600.0 if len(stream) % 2 else 600.0)

    def _resolution(self, stream: str) -> End:
        self.cameras.tell("switch", stream, clip=str(self.larger))
        return lambda: self.cameras.tell("switch", stream, clip=str(self.clip))

    def _process_killed(self, stream: str) -> None:
        os.kill(self._process_of(stream), signal.SIGKILL)

    def _process_stopped(self, stream: str) -> None:
        os.kill(self._process_of(stream), signal.SIGSTOP)

    def _process_of(self, stream: str) -> int:
        """The process that receives this camera. BenchError if it is just being started anew."""
        assert self.server.pid is not None
        for pid, role in roles(self.server.pid, snapshot()).items():
            if role == "camera":
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == f"cam {stream}"[:15]:
                        return pid
        raise BenchError("it has no process now")

    def _settings(self, stream: str) -> None:
        for changes in ({"max_fps": 3.0}, {"max_fps": None}):
            self.server.ask("PATCH", f"/streams/{stream}", changes)

    def _removed(self, stream: str) -> End:
        self.server.ask("DELETE", f"/streams/{stream}")
        return lambda: self.add(stream)

    # The server and its clients.

    def _slow_client(self, _: str) -> End:
        clients = [self._client() for _ in range(_SLOW_CLIENTS)]

        def end() -> None:
            for client in clients:
                client.close()

        return end

    def _client_goes(self, _: str) -> None:
        self._client().close()

    def _client(self) -> socket.socket:
        address = urlsplit(self.server.url)
        host, port = str(address.hostname), address.port or 80
        client = socket.create_connection((host, port), _TIMEOUT_S)
        client.sendall(upgrade(host, port))
        return client

    def _pictures(self, _: str) -> None:
        self.ask_for_pictures()

    def ask_for_pictures(self) -> None:
        """A snapshot of each camera that has one."""
        for stream in self.streams:
            with contextlib.suppress(BenchError):  # it is away
                self.server.ask("GET", f"/streams/{stream}/snapshot.jpg?annotate=true")

    def swap_there_and_back(self) -> None:
        """Both models have been active then, and the first one is. BenchError."""
        for name in reversed(self.models or ()):
            self.server.ask("POST", f"/models/{name}/activate?force=true", {})
            deadline = time.monotonic() + _SWAP_S
            while (state := self.server.json("GET", f"/models/{name}")["state"]) != "active":
                if state == "refused" or time.monotonic() > deadline:
                    raise BenchError(f"model {name} is not active, but {state}")
                time.sleep(0.1)

    def _swap(self, _: str) -> None:
        if self.models is None:
            raise BenchError("there is only one model")
        self._models_turn += 1
        self.server.ask("POST", f"/models/{self.models[self._models_turn % 2]}/activate?force=true", {})
