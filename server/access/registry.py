"""Who stands behind a token or a session now, and the end of those whose token is revoked or has expired.

The file of tokens is looked at every second, so that `python -m server.access` works on a running server.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from server.access.roles import LOCAL, Principal, Role
from server.access.sessions import Sessions
from server.access.tokens import AccessError, TokenFile, digest
from server.settings import ServerSettings, is_loopback

log = logging.getLogger("yolov9.access")

SETTING = "token setting"
"""Name of whoever shows the `token` setting. Holds a blank, so no token of the file can have it."""
CHECK_S = 1.0
_SHORT = 16
"""Characters. A shorter token may be found by trying."""


def check_reach(settings: ServerSettings) -> None:
    """AccessError if a server that others can reach would let nobody in, for want of a token."""
    if settings.token is None and not is_loopback(settings.host) and not TokenFile(settings.data).load():
        raise AccessError(
            f"host: {settings.host!r} is reachable from outside, so a token is needed (YOLOV9_TOKEN, or "
            "python -m server.access add); without one only 127.0.0.1, ::1 or localhost can be bound"
        )


class Access:
    """All who are let in. One event loop; `watch` runs along with the server.

    With no `token` and no file of tokens it is `open`: nobody needs a token. That is for loopback addresses alone:
    `may_be_open`.
    """

    def __init__(
        self,
        folder: Path,
        token: SecretStr | None = None,
        *,
        may_be_open: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """AccessError if there is a file of tokens that cannot be used."""
        self._file = TokenFile(folder)
        self._clock = clock
        self._may_be_open = may_be_open
        self._setting: Principal | None = None
        if token is not None:
            text = token.get_secret_value()
            self._setting = Principal(SETTING, Role.ADMIN, key=digest(text))
            if len(text) < _SHORT:
                log.warning("the token has fewer than %d characters: others may find it by trying", _SHORT)
        self.sessions = Sessions(folder, clock)
        self._stamp = self._file.stamp()
        self._principals = self._load()
        self._leases: dict[asyncio.Timeout, Principal] = {}
        self._fault: str | None = None

    @classmethod
    def of(cls, settings: ServerSettings) -> Access:
        """AccessError"""
        return cls(settings.data, settings.token, may_be_open=is_loopback(settings.host))

    @property
    def open(self) -> bool:
        """Nobody needs a token. Once tokens were in the file it stays closed, even if the file is removed."""
        return self._may_be_open and self._setting is None and self._stamp is None

    def managed(self, secret: str) -> Principal | None:
        """Who has shown this token of the file."""
        shown, found = digest(secret), None
        for principal in self._principals.values():  # all of them, whichever it is: the time tells nothing
            if hmac.compare_digest(shown, principal.key):
                found = principal
        return found if found is not None and self._is_current(found) else None

    def setting(self, secret: str) -> Principal | None:
        """Whether this is the `token` setting. Digests are compared, so that the time does not tell its length."""
        if self._setting is not None and hmac.compare_digest(digest(secret), self._setting.key):
            return self._setting
        return None

    def by_session(self, session: str) -> Principal | None:
        key = self.sessions.key(session)
        if key is None:
            return None
        if self._setting is not None and hmac.compare_digest(key, self._setting.key):
            return self._setting
        principal = self._principals.get(key)
        return principal if principal is not None and self._is_current(principal) else None

    def begin_session(self, principal: Principal) -> str:
        """-> the id for the cookie. To be saved by `sessions.save`, in a thread."""
        return self.sessions.begin(principal.key, volatile=principal is self._setting)

    @contextmanager
    def lease(self, principal: Principal) -> Iterator[asyncio.Timeout]:
        """A time-out that ends what a principal does when its token is revoked, changed or expires."""
        when = None
        if principal.expires_at is not None:
            when = asyncio.get_running_loop().time() + principal.expires_at - self._clock()
        lease = asyncio.timeout_at(when)
        self._leases[lease] = principal
        try:
            yield lease
        finally:
            del self._leases[lease]

    async def watch(self) -> None:
        """Endless: follow the file."""
        while True:
            await asyncio.sleep(CHECK_S)
            await asyncio.to_thread(self._look)
            self._end_leases()

    def refresh(self) -> None:
        """Look at the file now. Blocks."""
        self._look()
        self._end_leases()

    def _look(self) -> None:
        """What cannot be read changes nothing: a file that somebody broke must neither let in nor lock out."""
        try:
            stamp = self._file.stamp()
            if stamp == self._stamp and self._fault is None:
                return
            self._principals = self._load()
        except (AccessError, OSError) as error:
            if str(error) != self._fault:
                log.error("the tokens stay as they were: %s", error)
                self._fault = str(error)
            return
        if stamp is None:  # removed: all are revoked, and nothing opens by that
            self._may_be_open = False
        self._fault, self._stamp = None, stamp
        log.info("tokens: %d", len(self._principals))

    def _load(self) -> dict[str, Principal]:
        return {token.sha256: token.principal for token in self._file.load()}

    def _end_leases(self) -> None:
        now = asyncio.get_running_loop().time()
        for lease, principal in list(self._leases.items()):
            if not self._holds(principal) and not lease.expired():
                lease.reschedule(now)

    def _holds(self, principal: Principal) -> bool:
        if principal is LOCAL:
            return self.open
        return principal == self._setting or self._principals.get(principal.key) == principal

    def _is_current(self, principal: Principal) -> bool:
        return principal.expires_at is None or principal.expires_at > self._clock()
