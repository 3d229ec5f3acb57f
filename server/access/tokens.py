"""Tokens: how they are made, and the file that knows them by their digests.

A token is 256 random bits, so one SHA-256 is all that it takes at rest: nobody can try 2^256 inputs, and the slow,
salted hashes for passwords (scrypt, Argon2) would only let clients make the server work. Whoever reads the file learns
no token.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from server.access.roles import Principal, Role
from server.streams import STREAM_ID
from yolov9.files import write_file

PREFIX = "yv9_"
"""Lets scanners of repositories and logs recognise a token that has got out."""
FILE_NAME = "access.json"
MAX_TOKENS = 1000
_MAX_BYTES = 16 << 20
_OWNER_ONLY = 0o600
VERSION = 1

StreamId = Annotated[str, Field(pattern=STREAM_ID)]


class AccessError(Exception):
    """The file of tokens cannot be used, or not in this way. One sentence; names the file or the token's name."""


class Token(BaseModel):
    """What is kept of a token."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=STREAM_ID)
    role: Role
    streams: frozenset[StreamId] | None = Field(None, max_length=4096)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    @field_validator("role", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if isinstance(value, Role):
            return value
        if isinstance(value, str):
            return Role.named(value)
        raise ValueError("must be the name of a role")

    @field_serializer("role")
    def _name_of(self, role: Role) -> str:
        return role.label

    @field_serializer("streams")
    def _sorted(self, streams: frozenset[str] | None) -> list[str] | None:
        return None if streams is None else sorted(streams)

    @property
    def principal(self) -> Principal:
        expires_at = None if self.expires_at is None else self.expires_at.timestamp()
        return Principal(self.name, self.role, self.streams, expires_at, self.sha256)


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    version: int = Field(VERSION, ge=VERSION, le=VERSION)
    tokens: list[Token] = Field(default_factory=list, max_length=MAX_TOKENS)

    @field_validator("tokens")
    @classmethod
    def _one_of_a_name(cls, tokens: list[Token]) -> list[Token]:
        if len({token.name for token in tokens}) < len(tokens):
            raise ValueError("a name stands there twice")
        return tokens


def digest(token: str) -> str:
    """SHA-256 of a token, as it is kept. Never fails: what a header brings need not be text."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class TokenFile:
    """`access.json` in the data folder: readable by its owner alone, replaced whole, locked between writers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / FILE_NAME

    def load(self) -> list[Token]:
        """All tokens, the expired too; none if there is no file. AccessError if it cannot be used."""
        try:
            with self.path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise AccessError(f"{self.path}: others may read or write it; chmod 600 it")
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise AccessError(f"{self.path}: {error.strerror}") from None
        if len(data) > _MAX_BYTES:
            raise AccessError(f"{self.path}: larger than {_MAX_BYTES} bytes")
        try:
            return _Content.model_validate_json(data).tokens
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            raise AccessError(f"{self.path}: {field or 'content'}: {fault['msg']}") from None

    def stamp(self) -> tuple[int, int, int] | None:
        """Differs whenever the file does; None if there is none. OSError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def add(
        self, name: str, role: Role, *, streams: frozenset[str] | None = None, expires_at: datetime | None = None
    ) -> str:
        """Make a token and keep its digest -> the token, which is nowhere else. AccessError if the name is taken."""
        secret = PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        if expires_at is not None and expires_at <= now:
            raise AccessError("a token must not expire before it is used")
        try:
            made = Token(
                name=name, role=role, streams=streams, sha256=digest(secret), created_at=now, expires_at=expires_at
            )
        except ValidationError as error:
            fault = error.errors()[0]
            raise AccessError(f"{fault['loc'][0]}: {fault['msg']}") from None
        with self._locked():
            tokens = self.load()
            if any(token.name == name for token in tokens):
                raise AccessError(f"there is a token {name!r} already; revoke it first")
            if len(tokens) >= MAX_TOKENS:
                raise AccessError(f"there are {len(tokens)} tokens already")
            self._save([*tokens, made])
        return secret

    def revoke(self, name: str) -> None:
        """AccessError if there is no such token."""
        with self._locked():
            tokens = self.load()
            kept = [token for token in tokens if token.name != name]
            if len(kept) == len(tokens):
                raise AccessError(f"there is no token {name!r}")
            self._save(kept)

    def _save(self, tokens: list[Token]) -> None:
        content = _Content(tokens=tokens).model_dump_json(indent=1, exclude_none=True)
        try:
            write_file(self.path, content.encode() + b"\n", mode=_OWNER_ONLY)
        except OSError as error:
            raise AccessError(f"{self.path}: {error.strerror}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two commands at once must not lose one another's change. The file is replaced, so another is locked."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / f".{FILE_NAME}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _OWNER_ONLY)
        except OSError as error:
            raise AccessError(f"{self._folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
