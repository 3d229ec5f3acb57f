"""As much of an RTMP server as it takes to play a clip to one client: no library brings one that pip could install."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av

_HANDSHAKE = 1536
_CHUNK = 1 << 20
_SET_CHUNK_SIZE, _VIDEO, _COMMAND = 1, 9, 20


def flv_tags(clip: Path) -> list[tuple[int, int, bytes]]:
    """(kind, milliseconds, data) of a clip's video."""
    output = io.BytesIO()
    with av.open(str(clip)) as source, av.open(output, "w", "flv") as container:
        stream = source.streams.video[0]
        out = container.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = out
                container.mux(packet)
    data, position, tags = output.getvalue(), 13, []
    while position + 11 <= len(data):
        kind, size, time_ms, extended = struct.unpack("!B3s3sB", data[position : position + 8])
        length = int.from_bytes(size, "big")
        tags.append(
            (kind, extended << 24 | int.from_bytes(time_ms, "big"), data[position + 11 : position + 11 + length])
        )
        position += 11 + length + 4
    return tags


@contextlib.contextmanager
def rtmp_server(clip: Path, *, stall_after: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """(port, what clients asked to connect to: tcUrl). Plays in real time; after `stall_after` tags comes silence."""
    asked: list[str] = []
    over = threading.Event()
    tags = flv_tags(clip)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, EOFError):
                    sock, _ = listener.accept()
                    with sock:
                        _Connection(sock, asked).play(tags, stall_after, over)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


class _Connection:
    def __init__(self, sock: socket.socket, asked: list[str]) -> None:
        self._socket = sock
        self._asked = asked
        self._chunk = 128
        self._headers: dict[int, tuple[int, int, int]] = {}  # chunk stream -> length, kind, message stream
        self._parts: dict[int, bytes] = {}

    def play(self, tags: list[tuple[int, int, bytes]], stall_after: int | None, over: threading.Event) -> None:
        hello = self._read(1 + _HANDSHAKE)
        self._socket.sendall(b"\x03" + bytes(_HANDSHAKE) + hello[1:])
        self._read(_HANDSHAKE)
        self._send(_SET_CHUNK_SIZE, 0, struct.pack("!I", _CHUNK))
        while not self._obey(*self._message()):
            pass
        begun = time.monotonic()
        for kind, time_ms, data in tags[:stall_after]:
            if over.wait(max(begun + time_ms / 1e3 - time.monotonic(), 0)):
                return
            self._send(kind, 1, data, time_ms)
        if stall_after is not None:
            over.wait(20)

    def _obey(self, kind: int, body: bytes) -> bool:
        """Whether the client wants to see the clip now."""
        if kind == _SET_CHUNK_SIZE:
            self._chunk = int.from_bytes(body[:4], "big")
        if kind != _COMMAND:
            return False
        length = int.from_bytes(body[1:3], "big")
        name, number = body[3 : 3 + length], body[3 + length : 12 + length]
        success = b"\x03" + _key("level") + _text("status") + _key("code")
        if name == b"connect":
            at = body.find(_key("tcUrl")) + len(_key("tcUrl"))
            self._asked.append(body[at + 3 : at + 3 + int.from_bytes(body[at + 1 : at + 3], "big")].decode())
            information = success + _text("NetConnection.Connect.Success") + b"\x00\x00\x09"
            self._send(_COMMAND, 0, _text("_result") + number + b"\x05" + information)
        elif name == b"createStream":
            self._send(_COMMAND, 0, _text("_result") + number + b"\x05" + b"\x00" + struct.pack("!d", 1))
        elif name == b"play":
            information = success + _text("NetStream.Play.Start") + b"\x00\x00\x09"
            self._send(_COMMAND, 1, _text("onStatus") + b"\x00" + bytes(8) + b"\x05" + information)
            return True
        return False

    def _message(self) -> tuple[int, bytes]:
        while True:
            (first,) = self._read(1)
            form, stream = first >> 6, first & 0x3F
            length, kind, owner = self._headers.get(stream, (0, 0, 0))
            if form < 3:
                header = self._read((11, 7, 3)[form])
                if form < 2:
                    length, kind = int.from_bytes(header[3:6], "big"), header[6]
            self._headers[stream] = length, kind, owner
            part = self._parts.pop(stream, b"")
            part += self._read(min(self._chunk, length - len(part)))
            if len(part) == length:
                return kind, part
            self._parts[stream] = part

    def _send(self, kind: int, owner: int, body: bytes, time_ms: int = 0) -> None:
        header = b"\x06" + time_ms.to_bytes(3, "big") + len(body).to_bytes(3, "big") + bytes([kind])
        self._socket.sendall(header + struct.pack("<I", owner) + body)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


def _text(text: str) -> bytes:
    return b"\x02" + _key(text)


def _key(text: str) -> bytes:
    return struct.pack("!H", len(text)) + text.encode()
