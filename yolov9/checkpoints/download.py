"""One file over HTTPS: with progress, resumed after an interruption, whole or not at all. Standard library only.

The bytes gather in `FILE.part`; `FILE.part.json` says of which version of which URL they are, so that a file that
changed in between is begun anew (If-Range). A lock keeps two processes from writing the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
_ATTEMPTS = 4
"""In a row without a new byte."""
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Progress = Callable[[int, int | None], None]


class DownloadError(Exception):
    """A download that failed: one clause, without the signed addresses that servers redirect to."""


class _Transient(Exception):
    """Worth another attempt."""


def fetch(
    url: str,
    target: Path,
    *,
    limit: int,
    check: Callable[[Path], None] = lambda part: None,
    progress: Progress = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download `url` (https, or http on this machine) to `target`, of at most `limit` bytes, in an existing folder.

    `check` looks at the complete file before it gets its name; what it raises ends the download, and the bytes go.
    `progress` gets the bytes so far and, if known, of how many. DownloadError; OSError from the disk.
    """
    address = urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in _LOOPBACK):
        raise DownloadError(f"{address.scheme or 'no scheme'} is not https")
    with _locked(target.with_name(target.name + ".part")) as part:
        _gather(_Transfer(url, part, limit, progress), sleep)
        try:
            check(part.path)
        except DownloadError:
            part.discard()
            raise
        os.fsync(part.file.fileno())
        part.path.replace(target)
        part.state_path.unlink(missing_ok=True)


def _gather(transfer: _Transfer, sleep: Callable[[float], None]) -> None:
    """Attempts until the file is complete."""
    failures = 0
    while True:
        before = transfer.part.size
        try:
            transfer.run()
            return
        except _Transient as e:
            failures = failures + 1 if transfer.part.size <= before else 1
            if failures >= _ATTEMPTS:
                raise DownloadError(str(e)) from e
        sleep(2.0**failures - 1)


class _Part:
    """The bytes so far, and of what they are."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.state_path = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # without it the bytes are of unknown origin: they are not used
            return {}
        return state if isinstance(state, dict) else {}

    def restart(self, state: dict[str, Any]) -> None:
        """From nothing, with another state."""
        self.file.seek(0)
        self.file.truncate()
        self.state_path.write_text(json.dumps(state), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[_Part]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise DownloadError("another process is fetching it right now") from e
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise DownloadError("another process has just fetched it: call again")
        part = _Part(path, file)
        try:
            yield part
        finally:
            if not part.size:
                part.discard()


class _Transfer:
    """One URL into one part, in as many attempts as it takes."""

    def __init__(self, url: str, part: _Part, limit: int, progress: Progress) -> None:
        self._url = url
        self.part = part
        self._limit = limit
        self._progress = progress

    def run(self) -> None:
        """One attempt. _Transient if another one may succeed, DownloadError if not."""
        state = self.part.state()
        known = state.get("validator") if state.get("url") == self._url else None
        offset = self.part.size if isinstance(known, str) else 0
        request = urllib.request.Request(self._url, headers={"User-Agent": "yolov9", "Accept-Encoding": "identity"})
        if offset and isinstance(known, str):
            request.add_header("Range", f"bytes={offset}-")
            request.add_header("If-Range", known)
        try:
            with _opener().open(request, timeout=_TIMEOUT_S) as response:
                total = self._begin(response, offset)
                self._copy(response, total)
        except urllib.error.HTTPError as e:
            self._refused(e)
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as e:
            reason = getattr(e, "reason", None) or e
            text = f"{urlsplit(self._url).hostname} cannot be reached ({_short(reason)})"
            if isinstance(reason, socket.gaierror) and not self.part.size:  # most likely offline: no use in waiting
                raise DownloadError(text) from e
            raise _Transient(text) from e

    def _begin(self, response: Any, offset: int) -> int | None:
        """Where the answer begins: goes on, or from nothing. The size of the whole file, if the server says."""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and len(length) < 16 else None
        if response.status == 206:
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != offset:
                self.part.restart({})
                raise _Transient("the server sent another part than was asked for")
            total = int(found[2])
        elif response.status == 200:
            tag = response.headers.get("ETag", "")
            strong = tag if tag.startswith('"') else None
            self.part.restart({"url": self._url, "validator": strong or response.headers.get("Last-Modified")})
        else:
            raise DownloadError(f"the server answered HTTP {response.status}")
        if total is not None and total > self._limit:
            raise DownloadError(f"the server has {total:,} bytes of it, more than the {self._limit:,} that are taken")
        return total

    def _copy(self, response: Any, total: int | None) -> None:
        done = self.part.size
        while chunk := response.read(_CHUNK):
            done += len(chunk)
            if done > self._limit:
                self.part.discard()
                raise DownloadError(f"the server sends more than {self._limit:,} bytes")
            self.part.file.write(chunk)
            self._progress(done, total)
        self.part.file.flush()
        if total is not None and done < total:
            raise _Transient(f"the connection ended after {done:,} of {total:,} bytes")
        if total is not None and done > total:
            self.part.restart({})
            raise _Transient(f"{done:,} bytes came of a file of {total:,}")

    def _refused(self, e: urllib.error.HTTPError) -> None:
        size = e.headers.get("Content-Range", "").removeprefix("bytes */")
        e.close()
        if e.code == 416:  # what is there is all of it, or is no part of what the server has now
            if size.isdecimal() and size == str(self.part.size):
                return
            self.part.restart({})
            raise _Transient("the server has no more bytes of it") from e
        if 300 <= e.code < 400:  # urllib's own words would show the address
            raise DownloadError("the server redirects to what is not https") from None
        text = f"the server answered HTTP {e.code} {http.client.responses.get(e.code, '')}".rstrip()
        if e.code in (408, 429) or e.code >= 500:
            raise _Transient(text) from e
        raise DownloadError(text) from e


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone. Their addresses are signed: no error shows more of them than the host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        address = urlsplit(newurl)
        if address.scheme != "https":
            raise DownloadError(f"the server redirects to {address.scheme} on {address.hostname}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP(S) and proxies alone: not the handlers for file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _HttpsOnly(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:120] or type(reason).__name__
