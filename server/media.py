"""What the `url` of a stream may be: a network address, or a file below a media folder. Nothing else is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from server.streams import NETWORK_SCHEMES


class BadAddress(ValueError):
    """The address is refused; the message says why and never holds credentials."""


def resolve(url: str, media: Sequence[Path]) -> str:
    """The address to open: a network URL as it is, a file as an absolute path with its symbolic links resolved.

    Raises BadAddress for a scheme that is not served (`file:` too: a file is a plain path), a URL without a host, and
    a path that is not a file below one of the `media` folders.
    """
    scheme, separator, _ = url.partition(":")
    if "://" in url or (separator and scheme.isalnum() and "/" not in scheme and not Path(url).suffix):
        return _network(url, scheme.lower())
    if not media:
        raise BadAddress("files can be streams only below a media folder, and none is configured (--media DIR)")
    path = Path(url)
    for folder in media:
        root = folder.resolve()
        candidate = (root / path).resolve()  # an absolute path replaces the root
        if candidate.is_relative_to(root) and candidate.is_file():
            return str(candidate)
    raise BadAddress(f"{url!r} is not a file below a media folder")


def is_file(address: str) -> bool:
    """Whether a resolved address is a file."""
    return "://" not in address


def _network(url: str, scheme: str) -> str:
    if scheme == "file":
        raise BadAddress("file: addresses are not served; give the plain path of a file below a media folder")
    if scheme not in NETWORK_SCHEMES:
        raise BadAddress(f"scheme {scheme!r} is not served (served: {', '.join(NETWORK_SCHEMES)}, or a file's path)")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BadAddress(f"not a URL: {error}") from None
    if not host:
        raise BadAddress("the URL names no host")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise BadAddress("the URL holds blanks or control characters")
    return url
