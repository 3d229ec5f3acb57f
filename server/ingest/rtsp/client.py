"""A connection to an RTSP server that can ask, be asked, and hand out what comes in between.

What is asked, and in which order, stands in `session`. Errors are SourceErrors with the reasons of the REST contract.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from server.ingest.rtsp.auth import Authenticator
from server.ingest.rtsp.messages import (
    Interleaved,
    Item,
    MessageReader,
    ProtocolError,
    Response,
    ServerRequest,
    build_request,
    build_response,
)
from server.ingest.rtsp.sockets import Chunk, StreamSocket
from server.ingest.source import Reason, SourceError

USER_AGENT = "yolov9-server"
DEFAULT_SESSION_TIMEOUT_S = 60
TEARDOWN_S = 0.5
MAX_READS_IN_A_ROW = 64
"""Some 4 MB; then time-outs get their turn, however much the peer sends."""

_NOT_IMPLEMENTED = (400, 405, 451, 501, 551)


class Received(NamedTuple):
    """A message and when it came."""

    item: Item
    arrived_at: float
    unix_offset: float
    uncertainty_s: float


class RtspClient:
    """One connection. Used by one thread."""

    def __init__(self, stream: StreamSocket, authenticator: Authenticator) -> None:
        self.stream = stream
        self.reader = MessageReader()
        self.early: list[Received] = []
        """Frames and server requests that came while an answer was waited for."""
        self.session: str | None = None
        self.session_timeout_s = DEFAULT_SESSION_TIMEOUT_S
        self.closed = False
        """The peer ended the connection or the session."""
        self._authenticator = authenticator
        self._poll = select.poll()
        self._poll.register(stream, select.POLLIN)
        self._polls_write = False
        self._cseq = 0
        self._alive_method = "OPTIONS"
        self._alive_url = ""
        self._alive_cseq: int | None = None
        self._alive_retried = False

    def request(self, method: str, url: str, deadline: float, headers: dict[str, str] | None = None) -> Response:
        """Ask and wait for the answer, with authentication. Raises SourceError, but not for the answer's status
        (except 401 when credentials do not help)."""
        for attempt in range(3):
            cseq = self._send(method, url, headers)
            response = self._answer(method, cseq, deadline)
            if response.status != 401:
                return response
            if not self._authenticator.has_credentials:
                raise SourceError(Reason.AUTH, "the camera asks for a user name and a password")
            challenge = self._authenticator.challenge(response.headers.get_all("WWW-Authenticate"))
            if challenge is None:
                raise SourceError(Reason.AUTH, "the camera asks for an authentication that is not supported")
            if attempt and not challenge.stale:
                break
        raise SourceError(Reason.AUTH, "the camera does not accept the user name and password")

    def read(self) -> Iterator[Received]:
        """What has come. Answers to keep-alive requests and requests of the server are dealt with here
        and not given out; `closed` tells the end. Raises SourceError(PROTOCOL)."""
        batch: list[Received] | None
        batch, self.early = self.early, []
        for _ in range(MAX_READS_IN_A_ROW):
            for received in batch:
                if not self._dealt_with(received.item):
                    yield received
            if self.stream.drained and batch:
                return
            batch = self._receive()
            if batch is None:
                return

    def watch(self, *files: socket.socket) -> None:
        """`wait` wakes up for these too."""
        for file in files:
            self._poll.register(file, select.POLLIN)

    def wait(self, timeout_s: float) -> list[int]:
        """File numbers of what can be read, once there is any, after at most `timeout_s`. Sends what is unsent."""
        if self.stream.pending:
            return [self.stream.fileno()]
        if self._polls_write != self.stream.unsent:
            self._polls_write = self.stream.unsent
            self._poll.modify(self.stream, select.POLLIN | (select.POLLOUT if self._polls_write else 0))
        # Rounded up: a time-out that comes a moment early would only make us wait a second time.
        ready = self._poll.poll(max(0, math.ceil(timeout_s * 1000)))
        if self._polls_write:
            # A broken connection shows at the next read.
            with contextlib.suppress(OSError):
                self.stream.flush()
        return [file for file, event in ready if event != select.POLLOUT]

    def keep_alive(self) -> None:
        """Send the request that keeps the session; its answer is taken by `read`."""
        self._alive_retried = False
        self._send_keep_alive()

    def set_keep_alive(self, url: str, methods: set[str]) -> None:
        self._alive_url = url
        self._alive_method = "GET_PARAMETER" if "GET_PARAMETER" in methods else "OPTIONS"

    def send_frame(self, channel: int, data: bytes) -> None:
        """An interleaved frame; left out while the peer is not reading, as it is only a report."""
        if not self.stream.unsent:
            self._write(b"$" + bytes((channel,)) + len(data).to_bytes(2, "big") + data)

    def teardown(self, url: str) -> None:
        """Say goodbye: at most TEARDOWN_S, and whatever happens."""
        deadline = time.monotonic() + TEARDOWN_S
        if self.session is None or self.closed:
            return
        with contextlib.suppress(SourceError, OSError):
            cseq = self._send("TEARDOWN", url, None)
            self._answer("TEARDOWN", cseq, deadline)

    def close(self) -> None:
        self.stream.finish()
        self.stream.close()

    def _send(self, method: str, url: str, headers: dict[str, str] | None) -> int:
        self._cseq += 1
        fields = {"CSeq": str(self._cseq), "User-Agent": USER_AGENT}
        if self.session is not None:
            fields["Session"] = self.session
        try:
            authorization = self._authenticator.authorization(method, url)
            if authorization is not None:
                fields["Authorization"] = authorization
            data = build_request(method, url, fields | (headers or {}))
        except ValueError as error:
            raise SourceError(Reason.PROTOCOL, str(error)) from None
        self._write(data)
        return self._cseq

    def _write(self, data: bytes) -> None:
        # A broken connection shows at the next read, after what the peer had still sent.
        with contextlib.suppress(OSError):
            self.stream.send(data)

    def _answer(self, method: str, cseq: int, deadline: float) -> Response:
        while True:
            batch = self._receive()
            answer: Response | None = None
            for received in batch or ():
                item = received.item
                if isinstance(item, Response):
                    # Some cameras leave the number out.
                    if item.headers.cseq in (cseq, None):
                        answer = item
                elif self.session is not None:
                    self.early.append(received)
            if answer is not None:
                return answer
            if self.closed:
                raise SourceError(Reason.REFUSED, f"the camera closed the connection at {method}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise SourceError(Reason.TIMEOUT, f"the camera does not answer {method}")
            if batch is None:
                self.wait(left)

    def _receive(self) -> list[Received] | None:
        """What one read from the socket gave; None: there is nothing, or the end."""
        if self.closed:
            return None
        try:
            chunk = self.stream.receive()
        except OSError:
            chunk, self.closed = None, True
        if chunk is None:
            return None
        if not chunk.data:
            self.closed = True
            return None
        try:
            items = self.reader.feed(chunk.data)
        except ProtocolError as error:
            raise SourceError(Reason.PROTOCOL, str(error)) from None
        return _timed(items, chunk)

    def _dealt_with(self, item: Item) -> bool:
        if isinstance(item, Interleaved):
            return False
        if isinstance(item, Response):
            self._keep_alive_answer(item)
        else:
            self._serve(item)
        return True

    def _serve(self, request: ServerRequest) -> None:
        known = request.method in ("OPTIONS", "GET_PARAMETER", "SET_PARAMETER", "ANNOUNCE", "REDIRECT", "TEARDOWN")
        self._write(build_response(request, *((200, "OK") if known else (501, "Not Implemented"))))
        if request.method in ("REDIRECT", "TEARDOWN"):
            self.closed = True

    def _send_keep_alive(self) -> None:
        self._alive_cseq = self._send(self._alive_method, self._alive_url, None)

    def _keep_alive_answer(self, response: Response) -> None:
        if self._alive_cseq is None or response.headers.cseq not in (self._alive_cseq, None):
            return
        self._alive_cseq = None
        if response.status == 401 and not self._alive_retried:
            # Nonces expire; the session is kept by the repetition.
            if self._authenticator.challenge(response.headers.get_all("WWW-Authenticate")):
                self._alive_retried = True
                self._send_keep_alive()
        elif response.status in _NOT_IMPLEMENTED and self._alive_method == "GET_PARAMETER":
            self._alive_method = "OPTIONS"
            self._send_keep_alive()


def _timed(items: list[Item], chunk: Chunk) -> list[Received]:
    """With the time of the chunk, which is that of its end: certain for the last packet of each channel alone."""
    last = {item.channel: place for place, item in enumerate(items) if isinstance(item, Interleaved)}
    return [
        Received(
            item, chunk.arrived_at, chunk.unix_offset,
            chunk.spread_s if isinstance(item, Interleaved) and last[item.channel] != place else chunk.uncertainty_s,
        )
        for place, item in enumerate(items)
    ]  # fmt: skip
