"""HTTP(S) for sources: every connection, of redirects too, goes to an address that has been checked.

libavformat never opens a connection of its own here; it reads from the objects of this module. Credentials are shown to
the host for which they were given and to no other. Proxies of the environment are not used: behind one, nobody could
check where a connection ends.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from server import __version__
from server.ingest import network
from server.ingest.network import ANYWHERE, Networks, Patience, tls_context
from server.ingest.readable import Readable
from server.ingest.rtsp.auth import Authenticator
from server.ingest.source import Reason, SourceError

SCHEMES = ("http", "https")
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_SKIP_BYTES = 1 << 20
"""A seek forward by less is done by reading: cheaper than another request."""
_READ_BYTES = 64 << 10
_PATH = "/%!$&'()*+,;=:@~"
"""What stays as it is in a path that was written by people; in a query `?` as well."""


@dataclass(slots=True)
class Answer:
    """A successful answer whose body has not been read."""

    response: http.client.HTTPResponse
    sock: socket.socket
    """For its time-outs; the answer closes it."""
    url: str
    """Where it came from in the end."""
    offset: int
    """Of its first byte in the whole."""

    def close(self) -> None:
        self.response.close()
        self.sock.close()


class HttpClient:
    """GET, for one source. Used by one thread."""

    def __init__(self, origin: str, username: str | None, password: str | None, networks: Networks = ANYWHERE) -> None:
        self.patience = Patience()
        self._networks = networks
        self._authenticator = Authenticator(username, password)
        self._origin = _origin(urlsplit(origin))
        self._tls: ssl.SSLContext | None = None

    def get(self, url: str, offset: int = 0, end: int | None = None) -> Answer:
        """The bytes of `url` from `offset` up to `end` (not included). Raises SourceError."""
        for _ in range(MAX_REDIRECTS + 1):
            parts = _parse(url)
            answer = self._ask(parts, url, offset, end)
            status = answer.response.status
            if status == 401 and self._accepts(answer, parts):
                answer.close()
                answer = self._ask(parts, url, offset, end)
                status = answer.response.status
            if status in (200, 206):
                if status == 200:
                    answer.offset = 0
                return answer
            location = answer.response.getheader("Location")
            answer.close()
            if status not in _REDIRECTS or location is None:
                raise _refusal(status)
            url = urljoin(url, location)
        raise SourceError(Reason.PROTOCOL, f"the peer redirects more than {MAX_REDIRECTS} times")

    def _ask(self, parts: SplitResult, url: str, offset: int, end: int | None) -> Answer:
        target = quote(parts.path or "/", safe=_PATH)
        if parts.query:
            target += "?" + quote(parts.query, safe=_PATH + "?")
        headers = {"User-Agent": f"yolov9-server/{__version__}", "Accept": "*/*", "Connection": "close"}
        if offset or end is not None:
            headers["Range"] = f"bytes={offset}-" + (str(end - 1) if end is not None else "")
        if self._trusts(parts) and (authorization := self._authenticator.authorization("GET", target)):
            headers["Authorization"] = authorization
        host, secure = parts.hostname or "", parts.scheme == "https"
        if secure and self._tls is None:
            self._tls = tls_context(verify=False)
        port = parts.port or (443 if secure else 80)
        connection = http.client.HTTPConnection(host, port)
        connection.default_port = 443 if secure else 80  # what the Host header leaves out
        self.patience.left_s()
        sock = network.connect(host, port, self.patience.deadline, self._networks, self._tls if secure else None)
        connection.sock = sock
        try:
            sock.settimeout(self.patience.left_s())
            connection.request("GET", target, headers=headers)
            return Answer(connection.getresponse(), sock, url, offset)
        except (http.client.HTTPException, OSError, ValueError) as error:
            sock.close()
            raise self._failure(error) from None
        except SourceError:
            sock.close()
            raise

    def _accepts(self, answer: Answer, parts: SplitResult) -> bool:
        """Whether there are credentials for this challenge that have not been refused yet."""
        if not self._authenticator.has_credentials or not self._trusts(parts):
            return False
        tried = self._authenticator.scheme is not None
        challenge = self._authenticator.challenge(answer.response.headers.get_all("WWW-Authenticate") or [])
        return challenge is not None and (not tried or challenge.stale)

    def _trusts(self, parts: SplitResult) -> bool:
        """Cameras send from http:// to https:// on the same host."""
        return _origin(parts) == self._origin or (parts.scheme == "https" and parts.hostname == self._origin[1])

    def read(self, answer: Answer, size: int) -> bytes:
        """Some bytes of the body, b"" at its end. Raises SourceError."""
        try:
            answer.sock.settimeout(self.patience.left_s())
            return answer.response.read1(size)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise self._failure(error, reading=True) from None

    def read_exactly(self, answer: Answer, size: int) -> bytes:
        """So many bytes of the body, fewer only at its end. Raises SourceError."""
        data = b""
        while len(data) < size and (piece := self.read(answer, size - len(data))):
            data += piece
        return data

    def _failure(self, error: Exception, reading: bool = False) -> SourceError:
        if isinstance(error, TimeoutError):
            return self.patience.late()
        if isinstance(error, OSError):
            if reading or isinstance(error, ConnectionError):
                return SourceError(Reason.ENDED, "the peer broke the connection off")
            return SourceError(Reason.ERROR, f"the request failed ({type(error).__name__})")
        return SourceError(Reason.PROTOCOL, "what the peer sends is no HTTP that we understand")


class HttpFile(Readable):
    """The body of an answer as a file for libavformat; seekable if its length is known."""

    def __init__(
        self, client: HttpClient, answer: Answer, begin: int = 0, end: int | None = None, begun: bytes = b""
    ) -> None:
        """`begin`, `end`: the part of the whole that is the file. The answer starts at `begin`, or before it; `begun`
        has been read of it already."""
        super().__init__("http")
        self._client = client
        self._answer = answer
        self._begin = begin
        length = answer.response.length
        if end is None and length is not None:
            end = answer.offset + len(begun) + length
        self._size = None if end is None else end - begin
        self._rest = begun
        self._at = answer.offset - begin + len(begun)
        """Where the answer is: a position in the file, negative in front of it. `_rest` lies before it."""
        self._want = 0

    def seekable(self) -> bool:
        return self._size is not None

    def tell(self) -> int:
        return self._want

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Only notes the position: libav seeks to the end and back to learn the size."""
        if self._size is None:
            raise io.UnsupportedOperation("not seekable")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._want, io.SEEK_END: self._size}[whence]
        self._want = max(base + offset, 0)
        return self._want

    def read(self, size: int = -1) -> bytes:
        if self._rest and self._want != self._at - len(self._rest):
            self._rest = b""  # a seek has left it
        data = super().read(size)
        self._want += len(data)
        return data

    def close(self) -> None:
        self._answer.close()
        super().close()

    def _more(self, size: int) -> bytes:
        size = _READ_BYTES if size <= 0 else size
        if self._size is not None:
            size = min(size, self._size - self._want)
            if size <= 0:
                return b""
        if self._want != self._at:
            self._reposition()
        data = self._client.read(self._answer, size)
        self._at += len(data)
        return data

    def _reposition(self) -> None:
        if not 0 <= self._want - self._at <= _SKIP_BYTES:
            self._answer.close()
            self._answer = self._client.get(self._answer.url, self._begin + self._want)
            self._at = self._answer.offset - self._begin
        while self._at < self._want:
            skipped = self._client.read(self._answer, min(self._want - self._at, _READ_BYTES))
            if not skipped:
                raise SourceError(Reason.ENDED, "the peer broke the connection off")
            self._at += len(skipped)


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        served = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        served = False
    if not served:
        raise SourceError(Reason.FORBIDDEN, "it leads to an address that is not http:// or https://")
    return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _refusal(status: int) -> SourceError:
    if status == 401:
        return SourceError(Reason.AUTH, "user name or password are wrong or missing")
    if status == 403:
        return SourceError(Reason.AUTH, "access is forbidden with these credentials")
    if status == 404:
        return SourceError(Reason.NOT_FOUND, "there is nothing at this path")
    if status >= 500:
        return SourceError(Reason.ERROR, f"the peer answers with an internal error ({status})")
    return SourceError(Reason.PROTOCOL, f"the peer refuses the request ({status})")
