"""What a client may do: a role, and which streams it is granted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """Each may do what those below it may."""

    METRICS = 0
    """`/metrics`, and nothing else: for Prometheus."""
    VIEWER = 1
    """Looks: streams, results, pictures."""
    OPERATOR = 2
    """Adds, changes and removes streams; has images detected."""
    ADMIN = 3
    """Models, settings, tokens."""

    @classmethod
    def named(cls, name: str) -> Role:
        """ValueError for a name that is none."""
        try:
            return cls[name.upper()]
        except KeyError:
            raise ValueError(f"{name!r} is not a role ({', '.join(ROLE_NAMES)})") from None

    @property
    def label(self) -> str:
        return self.name.lower()


ROLE_NAMES = tuple(role.label for role in Role)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever has shown a token. Two are equal if nothing about them has changed."""

    name: str
    role: Role
    streams: frozenset[str] | None = None
    """Ids of the streams that it may see; None: all, those to come too."""
    expires_at: float | None = None
    """Unix seconds."""
    key: str = ""
    """Digest of the token that stands behind it: a new token of the same name is somebody else."""

    def may_see(self, stream: str) -> bool:
        return self.streams is None or stream in self.streams


LOCAL = Principal("local", Role.ADMIN)
"""Whoever sits at this machine, while no token is configured."""
