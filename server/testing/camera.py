"""An RTSP camera in Python on PyAV alone: for tests, the demo and the bench.

It plays clips in real time and for ever, H.264 and H.265, over TCP and UDP, with a clock, sender reports and
authentication like a camera's, and with faults that can be switched on while it runs. It runs in a thread of its own:

    with Camera({"/door": Mount("clip.mp4")}, username="u", password="p") as camera:
        open_stream(camera.url("/door"))
        camera.faults("/door").loss = 0.02
        camera.kill("/door", reset=True)

`python -m server.testing.camera --mount door=clip.mp4 --port 8554` runs one as a process.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from server.testing.auth import Scheme
from server.testing.clip import ClipError, load_clip
from server.testing.faults import Faults
from server.testing.mount import Mount, SentFrame
from server.testing.service import Service

__all__ = ["Camera", "ClipError", "Faults", "Mount", "SentFrame"]

_T = TypeVar("_T")
_ANSWER_S = 10.0
_COMMANDS = (
    "kill", "bye", "switch", "jump", "renew_nonce", "stop", "start", "clients", "connections", "frames_sent",
)  # fmt: skip
"""Methods that `--control` may call by their names."""


class Camera:
    """All methods may be called from any thread. Attributes are knobs that act at once."""

    def __init__(
        self,
        mounts: Mapping[str, Mount],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        username: str | None = None,
        password: str | None = None,
        auth: Scheme = "digest",
        session_timeout_s: float = 60.0,
        seed: int = 0,
    ) -> None:
        """`mounts`: path (with its leading slash) -> what it plays. `port` 0 takes a free one. Clips are read here:
        ClipError. `seed` fixes SSRCs, first numbers, nonces and the course of random faults."""
        for path, mount in mounts.items():
            if not path.startswith("/"):
                raise ValueError(f"mount {path!r} does not start with a slash")
            load_clip(mount.clip)
        self.mounts = dict(mounts)
        self.host = host
        self.port = port
        self.username = username
        self.password = password
        self.auth: Scheme = auth
        self.session_timeout_s = session_timeout_s
        self.seed = seed
        self.muted = False
        """Connections are accepted, and no request is answered."""
        self.on_wrong_password: Literal["401", "403", "close"] = "401"
        self._service: Service | None = None
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Camera:
        self._thread = threading.Thread(target=self._loop.run_forever, name="camera", daemon=True)
        self._thread.start()
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop for good."""
        if self._thread is None:
            return
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ANSWER_S)
        self._loop.close()
        self._thread = None

    def start(self) -> None:
        """Switch on, on the same port as before. OSError if it is taken."""
        if self._service is not None:
            return

        async def start() -> Service:
            service = Service(self)
            await service.start(self.host, self.port)
            return service

        self._service = asyncio.run_coroutine_threadsafe(start(), self._loop).result(_ANSWER_S)
        self.port = self._service.port

    def stop(self) -> None:
        """Switch off, as at a power cut that still sends a FIN: the port refuses connections until `start`."""
        if self._service is not None:
            asyncio.run_coroutine_threadsafe(self._service.stop(), self._loop).result(_ANSWER_S)
            self._service = None

    # Addresses.

    def url(self, path: str, *, credentials: bool = True) -> str:
        """rtsp://user:password@host:port/path, percent-encoded; without user information if there is none."""
        user = ""
        if credentials and self.username is not None:
            user = f"{quote(self.username, safe='')}:{quote(self.password or '', safe='')}@"
        return f"rtsp://{user}{self.host}:{self.port}{path}"

    # What it knows.

    def sent(self, path: str, newest: int | None = None) -> list[SentFrame]:
        """The frames sent to at least one client, oldest first; all that the log keeps (20,000), or the newest."""
        frames = self._call(lambda service: list(service.mounts[path].sent))
        return frames if newest is None else frames[-newest:]

    def frames_sent(self, path: str) -> int:
        """How many frames at least one client was sent, since the camera was switched on."""
        return self._call(lambda service: service.mounts[path].frames_sent)

    def clients(self, path: str) -> int:
        """Sessions that are playing."""
        return self._call(lambda service: len(service.mounts[path].clients))

    def connections(self) -> int:
        return self._call(lambda service: len(service.connections))

    def wait_for_clients(self, path: str, count: int = 1, timeout_s: float = 10.0) -> None:
        """Return once so many sessions play. TimeoutError."""
        self._wait(lambda: self.clients(path) == count, f"{count} clients of {path}", timeout_s)

    def wait_for_frames(self, path: str, count: int = 1, timeout_s: float = 10.0) -> None:
        """Return once `count` more frames were sent. TimeoutError."""
        goal = len(self.sent(path)) + count
        self._wait(lambda: len(self.sent(path)) >= goal, f"{count} more frames of {path}", timeout_s)

    # What can be done to it.

    def faults(self, path: str) -> Faults:
        """The knobs of a mount; they act from the next frame on."""
        return self.mounts[path].faults

    def kill(self, path: str | None = None, *, reset: bool = False) -> int:
        """Close all connections that play the mount (None: all), by FIN or by RST. Returns how many."""

        def kill(service: Service) -> int:
            connections = list(service.connections_of(path))
            for connection in connections:
                connection.close(reset)
            return len(connections)

        return self._call(kill)

    def bye(self, path: str) -> None:
        """Say RTCP BYE and send nothing more; connections stay open."""
        self._call(lambda service: service.mounts[path].bye())

    def switch(self, path: str, clip: str | os.PathLike[str], fps: float | None = None) -> None:
        """Play another clip from its start, in the running sessions too, without a word. ClipError."""
        loaded = load_clip(clip)
        self._call(lambda service: service.mounts[path].switch(loaded, fps))

    def jump(self, path: str, seconds: float) -> None:
        """RTP timestamps jump, forwards or backwards."""
        self._call(lambda service: service.mounts[path].jump(seconds))

    def renew_nonce(self) -> None:
        """Digest answers computed so far are stale from now on."""
        self._call(lambda service: service.guard.renew_nonce() if service.guard else None)

    def _call(self, function: Callable[[Service], _T]) -> _T:
        async def call() -> _T:
            if self._service is None:
                raise RuntimeError("the camera is switched off")
            return function(self._service)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_ANSWER_S)

    @staticmethod
    def _wait(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {timeout_s:g} s")
            time.sleep(0.01)


def _obey(camera: Camera, command: dict[str, Any]) -> Any:
    """One command of `--control`: {"do": NAME, ...arguments of the method}."""
    name = command.pop("do", None)
    if name == "faults":
        faults = camera.faults(command.pop("path"))
        for field, value in command.items():
            if not hasattr(faults, field):
                raise ValueError(f"there is no fault {field!r}")
            setattr(faults, field, value)
        return None
    if name == "set":
        for field, value in command.items():
            if field not in ("muted", "on_wrong_password", "session_timeout_s"):
                raise ValueError(f"{field!r} cannot be set")
            setattr(camera, field, value)
        return None
    if name == "sent":
        return [dataclasses.asdict(frame) for frame in camera.sent(**command)]
    if name not in _COMMANDS:
        raise ValueError(f"there is no command {name!r}")
    return getattr(camera, name)(**command)


def _control(camera: Camera) -> None:
    """Commands from standard input, one JSON object a line, each answered by one line; returns at its end."""
    for line in sys.stdin:
        try:
            answer = {"ok": True, "value": _obey(camera, json.loads(line))}
        except (ValueError, TypeError, KeyError, RuntimeError, OSError, ClipError) as error:
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Run a camera until it is interrupted, or until the end of standard input with `--control`."""
    parser = argparse.ArgumentParser(prog="python -m server.testing.camera", description=__doc__.splitlines()[0])
    parser.add_argument("--mount", action="append", required=True, metavar="PATH=CLIP", help="may be repeated")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8554, help="0: a free one")
    parser.add_argument("--fps", type=float, help="default: the clip's own times")
    parser.add_argument("--user")
    parser.add_argument("--password", help="default: the environment variable CAMERA_PASSWORD")
    parser.add_argument("--auth", default="digest", choices=["basic", "digest", "digest-sha256", "digest-qop", "any"])
    parser.add_argument("--spread", action="store_true", help="mounts start at different places of their clips")
    parser.add_argument("--control", action="store_true", help="read commands from standard input; end with it")
    arguments = parser.parse_args()
    mounts = {}
    for item in arguments.mount:
        path, equals, clip = item.partition("=")
        if not equals:
            parser.error(f"argument --mount: {item!r} is not PATH=CLIP")
        mounts["/" + path.lstrip("/")] = Mount(clip, fps=arguments.fps)
    try:
        if arguments.spread:
            for number, mount in enumerate(mounts.values()):
                mount.phase_s = load_clip(mount.clip).duration / 90_000 * number / len(mounts)
        camera = Camera(
            mounts,
            host=arguments.host,
            port=arguments.port,
            username=arguments.user,
            password=arguments.password or os.environ.get("CAMERA_PASSWORD"),
            auth=arguments.auth,
        )
        with camera:
            for path in mounts:
                print(camera.url(path, credentials=False), flush=True)
            if arguments.control:
                _control(camera)
            else:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
                threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except (ClipError, OSError) as error:
        sys.exit(f"camera: {error}")


if __name__ == "__main__":
    main()
