"""FFmpeg as an RTSP camera: its RTSP output is published (ANNOUNCE, RECORD) to a relay, which readers play from.

The relay passes RTP and RTCP packets on as they are, over TCP or UDP, so numbers, time stamps, markers, reports and
timing are FFmpeg's own. It is as small as the tests need: one publisher a path, no authentication.

    with Relay() as relay:
        relay.publish("door", "clip.mp4")
        open_stream(relay.url("door"))
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import av

from server.testing.rtsp import Request, parse_request
from server.testing.session import send_datagram, udp_pair

_T = TypeVar("_T")
_WAIT_S = 10.0
_METHODS = "OPTIONS, DESCRIBE, ANNOUNCE, SETUP, RECORD, PLAY, GET_PARAMETER, TEARDOWN"
Reader = Callable[[bool, bytes], None]
"""Takes (whether it is RTCP, packet)."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A frame that the relay has passed on."""

    place: int
    """Of the frame among all of the publisher's, from 0, decoding order."""
    rtp_timestamp: int
    began_at: float
    """CLOCK_MONOTONIC seconds before its first packet was passed on."""
    sent_at: float
    """The same after its last packet."""


@dataclass(slots=True)
class _Path:
    description: bytes = b""
    readers: list[Reader] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    began_at: float | None = None

    def packet(self, rtcp: bool, data: bytes) -> None:
        if self.began_at is None and not rtcp:
            self.began_at = time.monotonic()
        for reader in self.readers:
            reader(rtcp, data)
        if not rtcp and data[1] & 0x80:
            (timestamp,) = struct.unpack_from(">I", data, 4)
            assert self.began_at is not None
            self.passed.append(Passed(len(self.passed), timestamp, self.began_at, time.monotonic()))
            self.began_at = None


class Relay:
    """All methods may be called from any thread."""

    def __init__(self) -> None:
        self._paths: dict[str, _Path] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._publishers: list[subprocess.Popen[bytes]] = []
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for publisher in self._publishers:
            publisher.terminate()
            publisher.wait(_WAIT_S)
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()

    def url(self, name: str) -> str:
        return f"rtsp://127.0.0.1:{self.port}/{name}"

    def publish(self, name: str, clip: str | os.PathLike[str]) -> None:
        """Let FFmpeg play a clip in a loop, in real time; returns once it plays. TimeoutError, ChildProcessError."""
        # PyAV holds the GIL while FFmpeg waits for our answers: in this process both would wait for ever.
        publisher = subprocess.Popen([sys.executable, "-m", "server.testing.relay", str(clip), self.url(name)])
        self._publishers.append(publisher)
        deadline = time.monotonic() + _WAIT_S
        while not self.passed(name):
            if publisher.poll() is not None:
                raise ChildProcessError(f"FFmpeg does not publish {name}: exit status {publisher.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"FFmpeg does not publish {name}")
            time.sleep(0.01)

    def passed(self, name: str) -> list[Passed]:
        path = self._paths.get(f"/{name}")
        return list(path.passed) if path else []

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_S)

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.callback(writer.close)
                await _Connection(self._paths, writer, stack).run(reader)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the peer has gone, or the relay closes
        finally:
            self._connections.discard(task)


class _Connection:
    """One publisher or reader. What it takes is given back through `stack`."""

    def __init__(self, paths: dict[str, _Path], writer: asyncio.StreamWriter, stack: contextlib.AsyncExitStack) -> None:
        self._paths = paths
        self._writer = writer
        self._stack = stack
        self._path = _Path()
        self._reader: Reader = self._over_tcp
        self._publishes = False

    async def run(self, reader: asyncio.StreamReader) -> None:
        while True:
            first = await reader.readexactly(1)
            if first == b"$":
                channel, size = struct.unpack(">BH", await reader.readexactly(3))
                data = await reader.readexactly(size)
                if self._publishes:  # a reader's reports concern nobody
                    self._path.packet(channel % 2 == 1, data)
                continue
            head = first + await reader.readuntil(b"\r\n\r\n")
            request = parse_request(head.removesuffix(b"\r\n\r\n"))
            if request is None:
                return
            body = await reader.readexactly(int(request.headers.get("content-length", "0")))
            self._answer(request, body)
            if request.method == "TEARDOWN":
                return

    def _answer(self, request: Request, body: bytes) -> None:
        name = urlsplit(request.url).path.removesuffix("/").removesuffix("/streamid=0")
        headers, content = ["Session: 1"], b""
        match request.method:
            case "OPTIONS":
                headers = [f"Public: {_METHODS}"]
            case "ANNOUNCE":
                self._publishes = True
                self._path = self._paths.setdefault(name, _Path())
                self._path.description = body
            case "DESCRIBE":
                self._path = self._paths[name]
                content = self._path.description
                headers = [f"Content-Base: {request.url}/", "Content-Type: application/sdp"]
            case "SETUP":
                headers.append(f"Transport: {self._set_up(request.headers['transport'])}")
            case "PLAY":
                self._path.readers.append(self._reader)
                self._stack.callback(self._path.readers.remove, self._reader)
        if content:
            headers.append(f"Content-Length: {len(content)}")
        lines = ["RTSP/1.0 200 OK", f"CSeq: {request.headers.get('cseq', '0')}", *headers, "", ""]
        self._writer.write("\r\n".join(lines).encode() + content)

    def _set_up(self, wanted: str) -> str:
        fields = dict(part.split("=", 1) for part in wanted.split(",")[0].split(";") if "=" in part)
        if "client_port" not in fields:
            return wanted
        ports = [int(port) for port in fields["client_port"].split("-")]
        pair = udp_pair("127.0.0.1")
        for sock, port in zip(pair, ports, strict=True):
            sock.connect(("127.0.0.1", port))
            self._stack.callback(sock.close)
        self._reader = lambda rtcp, data: send_datagram(pair[rtcp], data)
        return f"{wanted};server_port={pair[0].getsockname()[1]}-{pair[1].getsockname()[1]}"

    def _over_tcp(self, rtcp: bool, data: bytes) -> None:
        self._writer.write(struct.pack(">BBH", ord("$"), int(rtcp), len(data)) + data)


def publish(clip: str, url: str) -> None:
    """Send a clip to an RTSP server by FFmpeg's own output, in a loop and in real time, for ever."""
    with (
        av.open(clip) as source,
        av.open(url, "w", format="rtsp", options={"rtsp_transport": "tcp"}) as output,
    ):
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        packets = [packet for packet in source.demux(video) if packet.dts is not None]
        assert video.time_base is not None
        assert video.average_rate is not None
        times = [(packet.dts or 0, packet.pts or 0) for packet in packets]
        duration = times[-1][0] - times[0][0] + round(1 / video.average_rate / video.time_base)
        output.start_encoding()
        started = time.monotonic()
        for turn in itertools.count():
            shift = turn * duration - times[0][0]
            for packet, (dts, pts) in zip(packets, times, strict=True):
                due = started + float((dts + shift) * video.time_base)
                time.sleep(max(0.0, due - time.monotonic()))
                # What is muxed is taken over: a packet can be sent once.
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = stream, video.time_base
                copy.dts, copy.pts, copy.is_keyframe = dts + shift, pts + shift, packet.is_keyframe
                output.mux(copy)


if __name__ == "__main__":
    publish(*sys.argv[1:])
