"""RTSP on the wire (RFC 2326): requests out; responses, server requests and interleaved `$` frames in.

Pure. `MessageReader` takes whatever the socket gave and gives back what is whole. Before the first SETUP anything that
is not RTSP is an error (`ProtocolError`); afterwards, with channels known, a damaged stream is searched for the next
plausible frame, because some cameras write a few stray bytes between frames and everything after them is fine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 1024 * 1024
MAX_GARBAGE_BYTES = 1024 * 1024
"""Skipped in a row while searching for the next frame; more than that is no RTSP peer."""

_SERVER_METHODS = (
    b"OPTIONS ", b"GET_PARAMETER ", b"SET_PARAMETER ", b"ANNOUNCE ", b"REDIRECT ", b"TEARDOWN ", b"PLAY_NOTIFY ",
)  # fmt: skip
_RESPONSE = b"RTSP/"
_STARTS = (_RESPONSE, *_SERVER_METHODS)
_STATUS_LINE = re.compile(rb"RTSP/\d+\.\d+[ \t]+(\d{3})[ \t]*(.*)")
_REQUEST_LINE = re.compile(rb"([A-Z_]+)[ \t]+(\S+)[ \t]+RTSP/\d+\.\d+[ \t]*")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_DOLLAR = 0x24


class ProtocolError(Exception):
    """The peer does not speak RTSP, or exceeds a limit. The text is one clause without credentials."""


class Headers:
    """Header fields in their order; names without regard to case."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str | None:
        """The first value of `name`."""
        name = name.lower()
        return next((value for key, value in self._fields if key.lower() == name), None)

    def get_all(self, name: str) -> list[str]:
        name = name.lower()
        return [value for key, value in self._fields if key.lower() == name]

    @property
    def cseq(self) -> int | None:
        return decimal(self.get("CSeq"))


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    reason: str
    """The phrase of the status line: printable ASCII, at most 80 characters."""
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """A request that the server sends to us."""

    method: str
    uri: str
    headers: Headers
    body: bytes = b""


@dataclass(slots=True)
class Interleaved:
    """One `$` frame."""

    channel: int
    data: memoryview


Item = Response | ServerRequest | Interleaved


def decimal(text: str | None) -> int | None:
    """A non-negative decimal number of at most ten digits, or None."""
    match = re.match(r"\s*(\d{1,10})\s*$", text or "", re.ASCII)
    return int(match[1]) if match else None


def build_request(method: str, uri: str, headers: dict[str, str]) -> bytes:
    """Raises ValueError if a line break or another control character would get into the request."""
    lines = [f"{method} {uri} RTSP/1.0", *(f"{name}: {value}" for name, value in headers.items())]
    if any(re.search(r"[\x00-\x1f\x7f]", line) for line in lines) or re.search(r"\s", uri):
        raise ValueError("control characters or blanks in the address or in the credentials")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def build_response(request: ServerRequest, status: int, reason: str) -> bytes:
    """The answer to a request of the server."""
    cseq = request.headers.cseq
    lines = [f"RTSP/1.0 {status} {reason}", *([f"CSeq: {cseq}"] if cseq is not None else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class MessageReader:
    """Cuts the byte stream of a connection. Frames' data are views into what was fed: no copies."""

    def __init__(self) -> None:
        self._rest = b""
        self._channels: frozenset[int] = frozenset()
        self._skipped_in_a_row = 0
        self.skipped_bytes = 0
        """Bytes that belonged to no message."""

    def allow_channels(self, *channels: int) -> None:
        """Frames on these channels are expected from now on, and stray bytes are tolerated."""
        self._channels = frozenset(channels)

    def feed(self, data: bytes) -> list[Item]:
        """The messages that are whole now, in order. Raises ProtocolError, after which the reader is of no use."""
        items: list[Item] = []
        data = self._rest + data if self._rest else data
        view = memoryview(data)
        position, size = 0, len(data)
        while position < size:
            if data[position] == _DOLLAR:
                if size - position < 4:
                    break
                length = data[position + 2] << 8 | data[position + 3]
                end = position + 4 + length
                if self._channels and not _looks_like_rtp(data, position):
                    position = self._resynchronise(data, position)
                    continue
                if end > size:
                    break
                self._skipped_in_a_row = 0
                items.append(Interleaved(data[position + 1], view[position + 4 : end]))
                position = end
            elif data[position] in b"\r\n":
                position += 1
            elif _starts_message(data, position):
                message = self._message(data, position)
                if message is None:
                    break
                item, position = message
                self._skipped_in_a_row = 0
                items.append(item)
            else:
                position = self._resynchronise(data, position)
        self._rest = data[position:]
        return items

    def _resynchronise(self, data: bytes, position: int) -> int:
        """Where the next message may start, or the end of `data`."""
        if not self._channels:
            raise ProtocolError(_describe(data[position:]))
        found = _cut_off_response(data, position + 1)
        dollar = data.find(b"$", position + 1)
        while dollar >= 0:
            if dollar + 4 > len(data) or (data[dollar + 1] in self._channels and _looks_like_rtp(data, dollar)):
                found = dollar
                break
            dollar = data.find(b"$", dollar + 1)
        text = data.find(_RESPONSE, position + 1, found)
        if text >= 0:
            found = text
        skipped = found - position
        self.skipped_bytes += skipped
        self._skipped_in_a_row += skipped
        if self._skipped_in_a_row > MAX_GARBAGE_BYTES:
            raise ProtocolError("the stream of RTSP messages cannot be followed any more")
        return found

    def _message(self, data: bytes, position: int) -> tuple[Item, int] | None:
        """A response or request and the position behind it; None while it is not whole."""
        head_end = _HEADER_END.search(data, position, position + MAX_HEADER_BYTES)
        if head_end is None:
            if len(data) - position >= MAX_HEADER_BYTES:
                raise ProtocolError("the header of an RTSP message is too long")
            return None
        first, *lines = re.split(rb"\r?\n", data[position : head_end.start()])
        headers = _headers(lines)
        length = decimal(headers.get("Content-Length") or "0")
        if length is None:
            raise ProtocolError("an RTSP message has a Content-Length that is no number")
        if length > MAX_BODY_BYTES:
            raise ProtocolError(f"an RTSP message announces a body of {length} bytes")
        end = head_end.end() + length
        if end > len(data):
            return None
        body = data[head_end.end() : end]
        if match := _STATUS_LINE.fullmatch(first):
            return Response(int(match[1]), _printable(match[2]), headers, body), end
        if match := _REQUEST_LINE.fullmatch(first):
            return ServerRequest(match[1].decode(), match[2].decode("utf-8", "replace"), headers, body), end
        raise ProtocolError(_describe(first))


def _looks_like_rtp(data: bytes, position: int) -> bool:
    """Whether the `$` there can start a frame: RTP or RTCP of version 2 follows, or nothing, or it has not come yet."""
    empty = data[position + 2] == data[position + 3] == 0
    return empty or position + 4 >= len(data) or data[position + 4] >> 6 == 2


def _cut_off_response(data: bytes, position: int) -> int:
    """Where, from `position` on, a response begins whose first word is cut off by the end of what has come; else that
    end."""
    sizes = range(min(len(_RESPONSE) - 1, len(data) - position), 0, -1)
    return next((len(data) - size for size in sizes if data.endswith(_RESPONSE[:size])), len(data))


def _starts_message(data: bytes, position: int) -> bool:
    if data.startswith(_STARTS, position):
        return True
    # The beginning of one, cut off by the end of what has come so far.
    rest = data[position : position + 16]
    return len(data) - position < 16 and any(start.startswith(rest) for start in _STARTS)


def _headers(lines: list[bytes]) -> Headers:
    fields: list[tuple[str, str]] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace")
        if line[:1] in (" ", "\t") and fields:
            name, value = fields[-1]
            fields[-1] = (name, f"{value} {line.strip()}")
            continue
        name, colon, value = line.partition(":")
        if colon and name.strip():
            fields.append((name.strip(), value.strip()))
    return Headers(fields)


def _printable(text: bytes) -> str:
    return re.sub(rb"[^\x20-\x7e]+", b"?", text.strip())[:80].decode("ascii")


def _describe(data: bytes) -> str:
    if data.startswith(b"HTTP/"):
        return "the peer answers in HTTP, not in RTSP"
    return "the peer does not answer in RTSP"
