"""The RTSP side of the camera: one connection, its requests, and the session that it plays.

Runs on the camera's event loop and knows nothing of threads. What is sent, and when, is the mount's business.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.testing.mount import LiveMount
from server.testing.session import Session

if TYPE_CHECKING:
    from server.testing.service import Service

_MAX_REQUEST_BYTES = 64 << 10
_MAX_UNSENT_BYTES = 4 << 20
"""A client that reads so slowly loses whole frames, as at a camera; memory stays bounded."""
_TCP_SEND_BUFFER_BYTES = 1 << 20
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 454: "Session Not Found",
    455: "Method Not Valid in This State", 461: "Unsupported Transport", 501: "Not Implemented",
}  # fmt: skip
_METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, GET_PARAMETER, SET_PARAMETER, TEARDOWN"
_TRACK = re.compile(r"/track(ID=)?(\d+)$")
_VIDEO_TRACK = "0"
_AUDIO_TRACK = "1"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: str
    headers: dict[str, str]
    """Names in lower case."""


class Answer(Exception):
    """Ends the handling of a request with a status other than 200."""

    def __init__(self, status: int, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class Connection(asyncio.Protocol):
    """One TCP connection. `service` holds the mounts and the knobs that concern requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._session: Session | None = None
        self._session_id = ""
        self._transport: asyncio.Transport | None = None
        self.last_heard_at = time.monotonic()
        self.local_host = self.peer_host = ""
        self._handlers: dict[str, Callable[[Request], list[tuple[str, str]]]] = {
            "OPTIONS": lambda request: [("Public", _METHODS)],
            "SETUP": self._setup,
            "PLAY": self._play,
            "PAUSE": self._pause,
            "GET_PARAMETER": lambda request: [],
            "SET_PARAMETER": lambda request: [],
            "TEARDOWN": self._teardown,
        }

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _TCP_SEND_BUFFER_BYTES)
        self.local_host = sock.getsockname()[0]
        self.peer_host = sock.getpeername()[0]
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_session()
        self._service.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._service.camera.muted:
            return
        self.last_heard_at = time.monotonic()
        self._buffer += data
        while self._buffer and self._take_one():
            pass
        if len(self._buffer) > _MAX_REQUEST_BYTES:
            self.close()

    # What the camera calls.

    @property
    def playing(self) -> LiveMount | None:
        """The mount that this connection has set up, if any."""
        return self._session.mount if self._session else None

    @property
    def timed_out(self) -> bool:
        silent_s = time.monotonic() - self.last_heard_at
        return self._session is not None and silent_s > self._service.camera.session_timeout_s

    def close(self, reset: bool = False) -> None:
        """End the connection with a FIN, or with a RST."""
        self._end_session()
        if self._transport is None:
            return
        if reset:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    def send_media(self, data: bytes) -> None:
        """Whole interleaved packets; all of them are dropped if the client does not read."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() < _MAX_UNSENT_BYTES:
            self._transport.write(data)

    # Reading.

    def _take_one(self) -> bool:
        """Consume one request or one interleaved packet; False if it is not whole yet."""
        if self._buffer[0] == ord("$"):
            if len(self._buffer) < 4:
                return False
            end = 4 + int.from_bytes(self._buffer[2:4], "big")
            if len(self._buffer) < end:
                return False
            del self._buffer[:end]  # a receiver report: it shows that the client lives, and no more
            return True
        head, separator, _ = bytes(self._buffer).partition(b"\r\n\r\n")
        if not separator:
            return False
        request = parse_request(head)
        body_bytes = int(request.headers.get("content-length", "0") or 0) if request else 0
        end = len(head) + len(separator) + body_bytes
        if len(self._buffer) < end:
            return False
        del self._buffer[:end]
        self._answer(request)
        return True

    def _answer(self, request: Request | None) -> None:
        if request is None:
            self._reply(400, "0", [])
            self.close()
            return
        sequence = request.headers.get("cseq", "0")
        try:
            self._authorize(request)
            if request.method == "DESCRIBE":
                headers, body = self._describe(request)
                self._reply(200, sequence, headers, body)
            elif request.method in self._handlers:
                self._reply(200, sequence, self._handlers[request.method](request))
            else:
                raise Answer(501)
        except Answer as answer:
            self._reply(answer.status, sequence, answer.headers)
            return
        if request.method == "PLAY" and self._session is not None:
            self._session.mount.join(self._session)  # the answer comes first, then the first packet

    def _reply(self, status: int, sequence: str, headers: Sequence[tuple[str, str]], body: str = "") -> None:
        if self._transport is None or self._transport.is_closing():
            return
        lines = [f"RTSP/1.0 {status} {_REASONS[status]}", f"CSeq: {sequence}", "Server: yolov9-server test camera"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body:
            lines.append(f"Content-Length: {len(body.encode())}")
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _authorize(self, request: Request) -> None:
        guard = self._service.guard
        if guard is None or request.method == "OPTIONS":
            return
        header = request.headers.get("authorization")
        verdict = guard.check(request.method, header) if header else None
        if verdict == "ok":
            return
        if verdict == "wrong" and self._service.camera.on_wrong_password != "401":
            if self._service.camera.on_wrong_password == "close":
                self.close()
            raise Answer(403)
        raise Answer(401, [("WWW-Authenticate", value) for value in guard.challenges(stale=verdict == "stale")])

    # Requests.

    def _find(self, request: Request) -> tuple[LiveMount, str | None]:
        """(mount, number of the track in the URL). A query is part of a mount's path only where the mount has one."""
        parts = urlsplit(request.url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        track = _TRACK.search(path)
        bare = path[: track.start()] if track else path
        for candidate in (bare, bare.rstrip("/"), _TRACK.sub("", parts.path).rstrip("/")):
            if candidate in self._service.mounts:
                return self._service.mounts[candidate], track[2] if track else None
        raise Answer(404)

    def _describe(self, request: Request) -> tuple[list[tuple[str, str]], str]:
        live, _ = self._find(request)
        with_sets = live.mount.sdp_parameter_sets and not live.mount.faults.withhold_sets
        lines = [
            "v=0", f"o=- 1 1 IN IP4 {self.local_host}", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*",
            "a=range:npt=now-",
        ]  # fmt: skip
        if live.mount.audio:
            lines += ["m=audio 0 RTP/AVP 0", "a=rtpmap:0 PCMU/8000", f"a=control:trackID={_AUDIO_TRACK}"]
        lines += ["m=video 0 RTP/AVP 96", live.clip.sdp_format(with_sets), f"a=control:trackID={_VIDEO_TRACK}"]
        base = request.url if request.url.endswith("/") else request.url + "/"
        return [("Content-Type", "application/sdp"), ("Content-Base", base)], "\r\n".join(lines) + "\r\n"

    def _setup(self, request: Request) -> list[tuple[str, str]]:
        live, track = self._find(request)
        wanted = request.headers.get("transport", "")
        if track == _AUDIO_TRACK and live.mount.audio:
            return [("Transport", wanted), *self._session_header()]  # silent: no packet is ever sent for it
        if track not in (None, _VIDEO_TRACK):
            raise Answer(404)
        if self._session is not None:
            raise Answer(455)
        for offer in wanted.split(","):
            session, answer = self._accept(live, offer.strip())
            if session is not None:
                self._session = session
                return [("Transport", answer), *self._session_header()]
        raise Answer(461)

    def _accept(self, live: LiveMount, offer: str) -> tuple[Session | None, str]:
        """A session for one of the transports that the client offers, if the mount takes it."""
        parts = [part.strip() for part in offer.split(";")]
        fields = dict(part.split("=", 1) for part in parts if "=" in part)
        profile = parts[0].upper()
        if "multicast" in parts:
            return None, ""
        if profile == "RTP/AVP/TCP" and "tcp" in live.mount.transports:
            first, second = _number_pair(fields.get("interleaved", "0-1"), 255)
            return Session(live, self, "tcp", first), f"{parts[0]};unicast;interleaved={first}-{second}"
        if profile in ("RTP/AVP", "RTP/AVP/UDP") and "udp" in live.mount.transports and "client_port" in fields:
            ports = _number_pair(fields["client_port"], 65535)
            session = Session.over_udp(live, self, ports)
            server_ports = "-".join(map(str, session.server_ports))
            return session, f"{parts[0]};unicast;client_port={ports[0]}-{ports[1]};server_port={server_ports}"
        return None, ""

    def _session_header(self) -> list[tuple[str, str]]:
        if not self._session_id:
            self._session_id = self._service.new_session_id()
        return [("Session", f"{self._session_id};timeout={round(self._service.camera.session_timeout_s)}")]

    def _play(self, request: Request) -> list[tuple[str, str]]:
        session = self._require_session(request)
        sequence, timestamp = session.mount.next_packet()
        info = f"url={request.url.rstrip('/')}/trackID={_VIDEO_TRACK}"
        if not session.mount.mount.start_at_keyframe:
            info += f";seq={sequence};rtptime={timestamp}"
        return [*self._session_header(), ("Range", "npt=now-"), ("RTP-Info", info)]

    def _pause(self, request: Request) -> list[tuple[str, str]]:
        session = self._require_session(request)
        session.mount.leave(session)
        return self._session_header()

    def _teardown(self, request: Request) -> list[tuple[str, str]]:
        self._require_session(request)
        self._end_session()
        return []

    def _require_session(self, request: Request) -> Session:
        given = request.headers.get("session", "").split(";")[0].strip()
        if self._session is None or given != self._session_id:
            raise Answer(454)
        return self._session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
            self._session_id = ""


def parse_request(head: bytes) -> Request | None:
    """A request from its head without the empty line; None if it is none."""
    lines = head.decode("utf-8", "replace").split("\r\n")
    first = lines[0].split(" ")
    if len(first) != 3 or not first[2].startswith("RTSP/"):
        return None
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.strip().lower()] = value.strip()
    if not headers.get("content-length", "0").isdigit():
        return None
    return Request(first[0], first[1], headers)


def _number_pair(text: str, highest: int) -> tuple[int, int]:
    """ "a-b" or "a" as two numbers up to `highest`; anything else is a bad request."""
    first, _, second = text.partition("-")
    if not first.isdigit() or (second and not second.isdigit()):
        raise Answer(400)
    pair = int(first), int(second or int(first) + 1)
    if max(pair) > highest:
        raise Answer(400)
    return pair
