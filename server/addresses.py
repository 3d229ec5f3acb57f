"""Addresses of sources as text: their kinds, the credentials inside them, and what of them may be shown.

Pure, and without pydantic: cameras' processes use it, too.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

MASK = "***"
NETWORK_SCHEMES = ("rtsp", "rtsps", "rtspt", "http", "https", "rtmp", "srt", "udp", "rtp")
DEVICE_SCHEME = "v4l2"
SOURCE_SCHEMES = (*NETWORK_SCHEMES, DEVICE_SCHEME)
PIPELINE_PREFIX = "gst:"
"""Of a GStreamer pipeline: no scheme that a setting could allow by mistake (see `allow_gstreamer`)."""

_LISTENING = ("udp", "rtp")
"""Nobody is asked for anything; `udp://@239.1.1.1:1234` is a way of writing `listen`."""
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(?:%[\w.]+)?\]|[^\s/?#@:\[\]]+)(?P<port>:\d{1,5})?(?=[/?#]|$)")
"""A host and perhaps a port, as they stand before a path."""
_ADDRESS = re.compile(r"\[|\d{1,3}(?:\.\d{1,3}){3}$")


def is_pipeline(url: str) -> bool:
    """Whether it is a GStreamer pipeline instead of an address."""
    return url.lower().startswith(PIPELINE_PREFIX)


def split_credentials(url: str) -> tuple[str, str | None, str | None]:
    """(url without user information, user, password), both percent-decoded.

    A URL as the standard wants it is read by the standard. People also paste passwords as they are, and those may hold
    `@`, `:`, `/`, `?` and `#`: where the standard reading gives no host, or a bare word while an IP address or a port
    stands behind a later `@`, that later `@` ends the password. What has no `://` is a path, returned as it is.
    """
    match = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", url, re.S)
    if match is None:
        return url, None, None
    scheme, rest = match.groups()
    if scheme.lower() in _LISTENING:
        return f"{scheme}://{rest.removeprefix('@')}", None, None
    at = _end_of_user_information(rest)
    if at < 0:
        return url, None, None
    user, colon, password = rest[:at].partition(":")
    return f"{scheme}://{rest[at + 1 :]}", unquote(user), unquote(password) if colon else None


def _end_of_user_information(rest: str) -> int:
    """Index of the `@` that ends the user information in what follows `://`, or -1."""
    authority_end = re.search(r"[/?#]|$", rest)
    end = authority_end.start() if authority_end else len(rest)
    standard = rest.rfind("@", 0, end)
    host = _HOST.match(rest, standard + 1)
    later = [i for i in range(end, len(rest)) if rest[i] == "@" and _HOST.match(rest, i + 1)]
    if not later or ":" not in rest[:end]:
        return standard
    if host is None:
        return later[-1]
    if standard < 0 or host["port"] or "." in host["name"] or host["name"].startswith("["):
        return standard  # well-formed, so the `@` belongs to the path
    certain = [i for i in later if _certain(rest, i + 1)]
    return certain[-1] if certain else standard


def may_hold_a_password(bare: str) -> bool:
    """A host that is a bare word, and a later `@`: the "host" may well be a piece of the password."""
    rest = bare.partition("://")[2]
    host = _HOST.match(rest)
    return "@" in rest and (host is None or not (host["port"] or "." in host["name"] or host["name"].startswith("[")))


def _certain(rest: str, start: int) -> bool:
    """Whether what begins here can hardly be a path: an IP address, or a host with a port."""
    host = _HOST.match(rest, start)
    return host is not None and bool(host["port"] or _ADDRESS.match(host["name"]))


_SECRET_NAMES = "pass|pwd|token|secret|key|auth|sig"
_SECRET_IN_QUERY = re.compile(rf"((?:^|[&;])[^=&;]*(?:{_SECRET_NAMES})[^=&;]*)=[^&;]*", re.I)
_SECRET_IN_PATH = re.compile(r"((?:pass|pwd)[^=/&_]*)=.*?(?=_(?:channel|stream|user|subtype)|[/&;]|$)", re.I)
"""Some recorders take `/user=admin_password=xyz_channel=1_stream=0.sdp`."""


_SECRET_IN_PIPELINE = re.compile(
    r"([\w-]*(?:pass|pwd|token|secret|auth|api-?key|user-(?:pw|id))[\w-]*\s*=\s*)(?:\"[^\"]*\"?|[^\s!]+)", re.I
)
_USER_INFORMATION = re.compile(r"(\w://)[^\s\"]*@")


def masked_url(url: str) -> str:
    """The URL without user information, and with what looks like a secret in path or query masked. In a pipeline:
    user information of URLs inside it, and properties of elements that look like secrets."""
    if is_pipeline(url):
        masked = _USER_INFORMATION.sub(rf"\1{MASK}@", url)
        return _SECRET_IN_PIPELINE.sub(rf"\1{MASK}", masked)
    bare, user, password = split_credentials(url)
    if "://" not in bare:
        return bare
    try:
        parts = urlsplit(bare)
    except ValueError:  # brackets that do not close, and the like
        return f"{bare.partition('://')[0]}://{MASK}"
    netloc = parts.netloc if user is None and password is None else f"{MASK}@{parts.netloc}"
    path = _SECRET_IN_PATH.sub(rf"\1={MASK}", parts.path)
    query = _SECRET_IN_QUERY.sub(rf"\1={MASK}", parts.query)
    return urlunsplit((parts.scheme, netloc, path, query, MASK if parts.fragment else ""))
