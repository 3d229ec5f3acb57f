"""Logins of browsers: a random id in a cookie stands for a token, so that no token is kept in the browser.

Ids are 256 random bits and are kept as digests, like tokens. Sessions of tokens from the file outlive the server (a
wall of screens must not need a login after an update). Those of the `token` setting do not: that token may be one that
people thought up, and no digest of it may lie on the disk.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from server.access.tokens import digest
from yolov9.files import write_file

log = logging.getLogger("yolov9.access")

FILE_NAME = "sessions.json"
LIFETIME_S = 30 * 24 * 3600
MAX_SESSIONS = 1000
"""The oldest goes. Only who has a token can make one."""
_MAX_BYTES = 4 << 20

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Session(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    sha256: _Sha256
    key: _Sha256
    """Digest of its token: `Principal.key`."""
    ends_at: float
    """Unix seconds."""


_Sessions = TypeAdapter(list[Session])


class Sessions:
    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / FILE_NAME
        self._clock = clock
        self._sessions = {session.sha256: session for session in self._load()}
        self._volatile: set[str] = set()
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, key: str, *, volatile: bool) -> str:
        """-> the id for the cookie. `volatile`: not kept over a restart."""
        secret = secrets.token_urlsafe(32)
        session = Session(sha256=digest(secret), key=key, ends_at=self._clock() + LIFETIME_S)
        self._sessions[session.sha256] = session
        if volatile:
            self._volatile.add(session.sha256)
        while len(self._sessions) > MAX_SESSIONS:
            self._forget(next(iter(self._sessions)))
        return secret

    def key(self, secret: str) -> str | None:
        """The key of the token that a session stands for; None if it is over or never was.

        Found by its digest: how long that takes tells nothing of an id that would lead there.
        """
        session = self._sessions.get(digest(secret))
        if session is None:
            return None
        if session.ends_at <= self._clock():
            self._forget(session.sha256)
            return None
        return session.key

    def end(self, secret: str) -> bool:
        """Log out. False if there is no such session: then nothing need be saved, whoever asks how often."""
        return self._forget(digest(secret))

    def save(self) -> None:
        """Blocks. What cannot be written is only logged: the sessions hold until the server ends."""
        try:
            with self._writing:
                kept = [s for s in list(self._sessions.values()) if s.sha256 not in self._volatile]
                write_file(self._path, _Sessions.dump_json(kept), mode=0o600)
        except OSError as error:
            log.warning("%s: %s; browsers must log in again after a restart", self._path, error.strerror)

    def _forget(self, sha256: str) -> bool:
        self._volatile.discard(sha256)
        return self._sessions.pop(sha256, None) is not None

    def _load(self) -> list[Session]:
        try:
            with self._path.open("rb") as file:
                sessions = _Sessions.validate_json(file.read(_MAX_BYTES))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            why = error.strerror if isinstance(error, OSError) else "cannot be read"
            log.warning("%s: %s; browsers must log in again", self._path, why)
            return []
        now = self._clock()
        return [session for session in sessions if session.ends_at > now][-MAX_SESSIONS:]
