"""The camera as it runs on its event loop: mounts, connections and the port. `camera.Camera` is its face."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from server.testing.auth import Guard
from server.testing.mount import LiveMount
from server.testing.rtsp import Connection

if TYPE_CHECKING:
    from server.testing.camera import Camera


class Service:
    """Everything here is called on the loop. One object lives from one start of the camera to its stop."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.connections: set[Connection] = set()
        self._rng = random.Random(camera.seed)
        self.guard: Guard | None = None
        if camera.username is not None:
            self.guard = Guard(camera.username, camera.password or "", camera.auth, random.Random(camera.seed))
        self.mounts: dict[str, LiveMount] = {}
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError if the port is taken."""
        loop = asyncio.get_running_loop()
        listener = socket.create_server((host, port), family=socket.AF_INET, backlog=128)
        self._server = await loop.create_server(lambda: Connection(self), sock=listener)
        self.port = listener.getsockname()[1]
        self.mounts = {
            path: LiveMount(path, mount, random.Random(f"{self.camera.seed}{path}"))
            for path, mount in self.camera.mounts.items()
        }
        self._tasks = [loop.create_task(live.run()) for live in self.mounts.values()]
        self._tasks.append(loop.create_task(self._expire_sessions()))

    async def stop(self) -> None:
        """Close the port and every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.close()
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # the loop closes the sockets in its next round

    def connections_of(self, path: str | None) -> Iterator[Connection]:
        """Those that have set up the mount; None: all."""
        live = None if path is None else self.mounts[path]
        return (item for item in list(self.connections) if live is None or item.playing is live)

    def new_session_id(self) -> str:
        return f"{self._rng.getrandbits(32):08X}"

    async def _expire_sessions(self) -> None:
        """A client that sends neither requests nor receiver reports for so long is gone."""
        while True:
            await asyncio.sleep(min(1.0, self.camera.session_timeout_s / 4))
            for connection in list(self.connections):
                if connection.timed_out:
                    connection.close()
