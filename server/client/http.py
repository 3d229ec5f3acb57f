"""One HTTP request, with the standard library: blocking, so it runs in a thread."""

from __future__ import annotations

import asyncio
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from server.client.errors import Unreachable, api_error

THREAD = "yolov9-request"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The server redirects no call of its interface, and a token must not follow to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Http:
    """Requests to one server."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float, context: ssl.SSLContext | None) -> None:
        self._url = url
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))

    async def request(self, method: str, path: str, body: bytes | None = None, timeout_s: float | None = None) -> bytes:
        """The answer's body. ApiError; Unreachable."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def settle(body: bytes, error: Exception | None) -> None:
            if answer.done():  # nobody waits any more
                return
            if error is None:
                answer.set_result(body)
            else:
                answer.set_exception(error)

        def ask() -> None:
            outcome: tuple[bytes, Exception | None]
            try:
                outcome = self._request(method, path, body, timeout_s), None
            except Exception as error:  # raised where it is waited for
                outcome = b"", error
            try:
                loop.call_soon_threadsafe(settle, *outcome)
            except RuntimeError:  # the loop is closed
                pass

        # A thread of its own: the end of the loop, after Ctrl-C say, waits for those of `asyncio.to_thread`.
        threading.Thread(target=ask, name=THREAD, daemon=True).start()
        return await answer

    def _request(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> bytes:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout_s or self._timeout_s) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            with error:
                raise api_error(error.code, dict(error.headers), error.read()) from None
        except urllib.error.URLError as error:
            raise Unreachable(f"{self._url}: {error.reason}") from error
        except (OSError, HTTPException) as error:
            raise Unreachable(f"{self._url}: {error or type(error).__name__}") from error
