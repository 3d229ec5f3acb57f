"""A scripted RTSP server on loopback for tests of the conversation: what it answers is written in the test."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from server.ingest.rtsp.source import RtspSource
from server.ingest.source import AccessUnit

SDP = b"v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track1\r\n"


@dataclass
class Request:
    method: str
    url: str
    headers: dict[str, str]
    """Names in lower case."""


@dataclass
class Peer:
    """One connection of the server."""

    socket: socket.socket
    requests: list[Request] = field(default_factory=list)
    buffer: bytes = b""

    def read(self) -> Request | None:
        """The next request, None at the end. Interleaved frames are skipped."""
        while True:
            if self.buffer.startswith(b"$") and len(self.buffer) >= 4:
                end = 4 + int.from_bytes(self.buffer[2:4], "big")
                if len(self.buffer) >= end:
                    self.buffer = self.buffer[end:]
                    continue
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if found and not head.startswith(b"$"):
                self.buffer = rest
                first, *lines = head.decode().split("\r\n")
                if first.startswith("RTSP/"):
                    continue
                method, url, _ = first.split(" ")
                pairs = (line.split(": ", 1) for line in lines)
                request = Request(method, url, {name.lower(): value for name, value in pairs})
                self.requests.append(request)
                return request
            data = self.socket.recv(65_536)
            if not data:
                return None
            self.buffer += data

    def answer(self, request: Request, status: str = "200 OK", body: bytes = b"", **headers: str) -> None:
        lines = [f"RTSP/1.0 {status}", f"CSeq: {request.headers['cseq']}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def play(self, request: Request, sdp: bytes = SDP) -> None:
        """Answer as an ordinary camera over TCP does."""
        if request.method == "OPTIONS":
            self.answer(request, Public="DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
        elif request.method == "DESCRIBE":
            self.answer(request, body=sdp, Content_Type="application/sdp")
        elif request.method == "SETUP":
            channels = re.search(r"interleaved=[\d-]+", request.headers["transport"])
            if channels is None:
                self.answer(request, "461 Unsupported Transport")
            else:
                self.answer(request, Transport=f"RTP/AVP/TCP;unicast;{channels[0]}", Session="abc;timeout=60")
        else:
            self.answer(request)

    def frame(self, channel: int, data: bytes) -> None:
        self.socket.sendall(b"$" + bytes([channel]) + len(data).to_bytes(2, "big") + data)


class ScriptedServer:
    """Accepts connections one after the other and gives each to `script`, in a thread. Leaving the context ends it and
    raises what a script raised."""

    def __init__(self, script: Callable[[Peer], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._failure: BaseException | None = None
        self.port: int = self._listener.getsockname()[1]
        self.url = f"rtsp://127.0.0.1:{self.port}/live"
        self.peers: list[Peer] = []

    @property
    def methods(self) -> list[str]:
        return [request.method for peer in self.peers for request in peer.requests]

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self.peers:
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed already
        self._thread.join(10)
        assert not self._thread.is_alive()
        if error is None and self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(20)
            peer = Peer(sock)
            self.peers.append(peer)
            try:
                with sock:
                    self._script(peer)
            except ConnectionError:
                pass  # the client went away, as it may
            except BaseException as failure:
                self._failure = failure
                return


KEY = b"\x65\x88key"
Answer = Callable[[Peer, Request], None]


def rtp(sequence: int, payload: bytes = KEY, marker: bool = True, payload_type: int = 96) -> bytes:
    return struct.pack("!BBHII", 0x80, marker << 7 | payload_type, sequence, 3000 * sequence, 1) + payload


def camera(
    special: dict[str, Answer] | None = None, playing: Callable[[Peer], None] | None = None
) -> Callable[[Peer], None]:
    """An ordinary camera, with answers of its own to some methods; `playing` begins after PLAY."""

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            (special or {}).get(request.method, Peer.play)(peer, request)
            if request.method == "PLAY" and playing is not None:
                playing(peer)

    return script


def status(line: str, **headers: str) -> Answer:
    return lambda peer, request: peer.answer(request, line, b"", **headers)


def next_unit(source: RtspSource) -> AccessUnit:
    return next(unit for unit in source.units() if unit is not None)
