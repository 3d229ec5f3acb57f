"""HLS for libavformat: what its demuxer asks for is fetched by our `HttpClient`, and nothing else is to be had.

libavformat resolves the relative names in a playlist against the address that it asked for; where a redirect led
elsewhere, that would be wrong, so names are made absolute here. Segments encrypted with AES-128 are asked for as
`crypto+http://...` with key and vector as options, and decrypted on the way.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from urllib.parse import urljoin

from server.ingest.http import Answer, HttpClient, HttpFile
from server.ingest.readable import Readable
from server.ingest.source import Reason, SourceError

MAGIC = b"#EXTM3U"
MAX_PLAYLIST_BYTES = 16 << 20
_BLOCK = 16
_WRITE = 2
"""AVIO_FLAG_WRITE"""
_URI = re.compile(r'URI="([^"]*)"')

Opener = Callable[[str, int, dict[str, str]], io.IOBase]


def refuse(url: str, flags: int, options: dict[str, str]) -> io.IOBase:
    """For containers that have no business with other files."""
    raise SourceError(Reason.FORBIDDEN, "the stream leads to another file")


class PlaylistOpener:
    """Passed to PyAV as `io_open`. The first address is the playlist's, whose answer is there already."""

    def __init__(self, client: HttpClient, playlist: Answer, begin: bytes) -> None:
        self._client = client
        self._first: tuple[Answer, bytes] | None = (playlist, begin)
        self._failed = False

    def __call__(self, url: str, flags: int, options: dict[str, str]) -> io.IOBase:
        """A file to read. Raises SourceError, once: libavformat would go on to the next segment, but an opening that
        has failed ends the connection, and what follows is not to count as its cause."""
        if self._failed:
            return io.BytesIO()
        try:
            return self._open(url, flags, options)
        except SourceError:
            self._failed = True
            raise

    def _open(self, url: str, flags: int, options: dict[str, str]) -> io.IOBase:
        if flags & _WRITE:
            raise SourceError(Reason.FORBIDDEN, "the stream wants to write")
        if self._first is not None:
            (answer, begin), self._first = self._first, None
            return self._playlist(answer, begin)
        encrypted = re.match(r"crypto[+:]", url) is not None
        offset, end = int(options.get("offset", 0)), int(options.get("end_offset", 0)) or None
        answer = self._client.get(url[len("crypto+") :] if encrypted else url, offset, end)
        if encrypted:
            return DecryptedFile(HttpFile(self._client, answer, offset, end), options.get("key"), options.get("iv"))
        if offset == 0 and end is None:
            begin = self._client.read_exactly(answer, len(MAGIC))
            if begin == MAGIC:
                return self._playlist(answer, begin)
            return HttpFile(self._client, answer, begun=begin)
        return HttpFile(self._client, answer, offset, end)

    def _playlist(self, answer: Answer, begin: bytes) -> io.BytesIO:
        content = bytearray(begin)
        while piece := self._client.read(answer, 64 << 10):
            content += piece
            if len(content) > MAX_PLAYLIST_BYTES:
                raise SourceError(Reason.PROTOCOL, "the playlist is too long")
        answer.close()
        return io.BytesIO(absolute(content.decode("utf-8", "replace"), answer.url).encode())


def absolute(playlist: str, base: str) -> str:
    """The playlist with its relative names made absolute."""
    lines = []
    for line in playlist.splitlines():
        name = line.strip()
        if name.startswith("#"):
            line = _URI.sub(lambda match: f'URI="{_join(base, match[1])}"', line)
        elif name:
            line = _join(base, name)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _join(base: str, name: str) -> str:
    try:
        return urljoin(base, name)
    except ValueError:
        return name


class DecryptedFile(Readable):
    """AES-128 in CBC mode, with the padding at its end taken off. Not seekable."""

    def __init__(self, file: HttpFile, key: str | None, vector: str | None) -> None:
        """`key`, `vector`: 16 bytes in hexadecimal."""
        super().__init__("http")
        self._file = file
        try:
            # Not every installation has streams that need it.
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

            cipher = Cipher(algorithms.AES128(bytes.fromhex(key or "")), modes.CBC(bytes.fromhex(vector or "")))
        except ImportError:
            raise SourceError(Reason.CODEC, "encrypted HLS needs the package cryptography (pip)") from None
        except ValueError:
            raise SourceError(Reason.PROTOCOL, "the key of the encrypted stream is not usable") from None
        self._decryptor = cipher.decryptor()
        self._encrypted = b""  # less than a block
        self._last = b""  # the last block, which may be padding

    def _more(self, size: int) -> bytes:
        while data := self._file.read(max(size, _BLOCK)):
            data = self._encrypted + data
            whole = len(data) - len(data) % _BLOCK
            self._encrypted = data[whole:]
            clear = self._last + self._decryptor.update(data[:whole])
            self._last = clear[-_BLOCK:]
            if len(clear) > _BLOCK:
                return clear[:-_BLOCK]
        last, self._last = self._last, b""
        return last[: -last[-1]] if last and 1 <= last[-1] <= _BLOCK else last

    def close(self) -> None:
        self._file.close()
        super().close()
