"""RTSP addresses: where to connect, and what to write into requests. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from server.ingest.source import Reason, SourceError

_PORTS = {"rtsp": 554, "rtspt": 554, "rtsps": 322}


@dataclass(frozen=True, slots=True)
class Address:
    tls: bool
    host: str
    """Without the brackets of an IPv6 address."""
    port: int
    url: str
    """For requests: without user information, path and query exactly as given."""
    tcp_only: bool = False
    """The scheme was `rtspt`."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str) -> tuple[Address, str | None, str | None]:
    """(address, user name, password) of `rtsp://[user:password@]host[:port]/path`; also rtsps and rtspt.

    Raises SourceError(ERROR) without repeating the address, which may hold a password.
    """
    match = re.fullmatch(r"([a-z]+)://([^/?#]*)([^#\s]*)(?:#\S*)?", url.strip(), re.I)
    if match is None or match[1].lower() not in _PORTS:
        raise SourceError(Reason.ERROR, "this is no rtsp://, rtspt:// or rtsps:// address")
    scheme = match[1].lower()
    user_info, at, authority = match[2].rpartition("@")
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise SourceError(Reason.ERROR, "the address names no valid host and port")
    user, colon, password = user_info.partition(":")
    written = "rtsps" if scheme == "rtsps" else "rtsp"
    address = Address(
        tls=scheme == "rtsps",
        host=host,
        port=port or _PORTS[scheme],
        url=f"{written}://{authority}{match[3] or '/'}",
        tcp_only=scheme == "rtspt",
    )
    return address, unquote(user) if at else None, unquote(password) if colon else None
