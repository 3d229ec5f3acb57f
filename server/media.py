"""What the `url` of a stream may be: an address of a known kind, a device, a file below a media folder, or a pipeline.

Nothing else is opened, and the server's settings say which of these are. Names of hosts are judged where they are
resolved (`ingest.network`); an address that is written in numbers is refused here already.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from server.addresses import DEVICE_SCHEME, PIPELINE_PREFIX, SOURCE_SCHEMES, is_pipeline
from server.ingest.network import ANYWHERE, Networks
from server.settings import ServerSettings

_DEVICE = re.compile(r"/dev/(?:video\d{1,3}|v4l/by-(?:id|path)/[\w.:+-]+)")
_DEVICE_OPTIONS = {"size": r"\d{1,5}x\d{1,5}", "fps": r"\d{1,3}(?:/\d{1,4})?", "format": r"\w{1,16}"}
_SRT_OPTIONS = {"mode": r"caller", "passphrase": r".{10,79}", "streamid": r".{1,512}", "latency": r"\d{1,5}",
                "pbkeylen": r"0|16|24|32"}  # fmt: skip
_LISTENING = ("udp", "rtp")
_ENDS_IN_APPSINK = re.compile(r"!\s*appsink\b[^!]*$")


class BadAddress(ValueError):
    """The address is refused; the message says why and never holds credentials."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be opened."""

    media: Sequence[Path] = ()
    schemes: Collection[str] = SOURCE_SCHEMES
    networks: Networks = ANYWHERE
    pipelines: bool = False

    @classmethod
    def of(cls, settings: ServerSettings) -> Rules:
        allow = settings.allow_networks
        networks = Networks(None if allow is None else tuple(allow), tuple(settings.deny_networks))
        return cls(settings.media, settings.source_schemes, networks, settings.allow_gstreamer)


def resolve(url: str, rules: Rules) -> str:
    """The address to open: a URL as it is, a device as `v4l2:/dev/...`, a pipeline as `gst: ...`, a file as an absolute
    path with its symbolic links resolved.

    Raises BadAddress for a scheme that is not served (`file:` too: a file is a plain path), a URL that cannot be meant,
    an address in a network where no camera may be, and a path that is not a file below one of the media folders.
    """
    if is_pipeline(url):
        return _pipeline(url, rules)
    scheme, separator, rest = url.partition(":")
    if scheme.lower() == DEVICE_SCHEME or url.startswith("/dev/"):
        return _device(rest if scheme.lower() == DEVICE_SCHEME else url, rules)
    if "://" in url or (separator and scheme.isalnum() and "/" not in scheme and not Path(url).suffix):
        return _network(url, scheme.lower(), rules)
    if not rules.media:
        raise BadAddress("files can be streams only below a media folder, and none is configured (--media DIR)")
    path = Path(url)
    for folder in rules.media:
        root = folder.resolve()
        candidate = (root / path).resolve()  # an absolute path replaces the root
        if candidate.is_relative_to(root) and candidate.is_file():
            return str(candidate)
    raise BadAddress(f"{url!r} is not a file below a media folder")


def is_file(address: str) -> bool:
    """Whether a resolved address is a file."""
    return address.startswith("/")


def _pipeline(url: str, rules: Rules) -> str:
    if not rules.pipelines:
        raise BadAddress("GStreamer pipelines are not allowed on this server (allow_gstreamer)")
    pipeline = url[len(PIPELINE_PREFIX) :].strip()
    if not _ENDS_IN_APPSINK.search(pipeline):
        raise BadAddress("a pipeline must end in `! appsink`")
    return f"{PIPELINE_PREFIX} {pipeline}"


def _device(address: str, rules: Rules) -> str:
    if DEVICE_SCHEME not in rules.schemes:
        raise BadAddress("devices of this machine are not served (source_schemes)")
    path, _, query = address.partition("?")
    if not _DEVICE.fullmatch(path) or ".." in path:
        raise BadAddress("a device is /dev/videoN or one below /dev/v4l/by-id or /dev/v4l/by-path")
    _check_options(query, _DEVICE_OPTIONS)
    return f"{DEVICE_SCHEME}:{address}"


def _network(url: str, scheme: str, rules: Rules) -> str:
    if scheme == "file":
        raise BadAddress("file: addresses are not served; give the plain path of a file below a media folder")
    if scheme not in rules.schemes:
        raise BadAddress(f"scheme {scheme!r} is not served (served: {', '.join(rules.schemes)}, or a file's path)")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise BadAddress("the URL holds blanks or control characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadAddress(f"not a URL: {error}") from None
    if scheme in _LISTENING:
        _check_listening(host, port)
        return url
    if not host:
        raise BadAddress("the URL names no host")
    if scheme == "srt":
        if not port:
            raise BadAddress("the URL names no port")
        _check_options(parts.query, _SRT_OPTIONS)
    _check_literal(host, rules.networks)
    return url


def _check_literal(host: str, networks: Networks) -> None:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return  # a name
    if not networks.permits(host):
        raise BadAddress(f"{host} is in a network where no camera may be (allow_networks, deny_networks)")


def _check_listening(host: str | None, port: int | None) -> None:
    if not port:
        raise BadAddress("the URL names no port to listen on")
    try:
        ipaddress.ip_address(host or "127.0.0.1")
    except ValueError:
        raise BadAddress(
            "the host is where to listen: a multicast group, an address of this machine, or none for all"
        ) from None


def _check_options(query: str, known: dict[str, str]) -> None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise BadAddress(f"option {name!r} is not known (known: {', '.join(known)})")
        if not re.fullmatch(known[name], value):
            raise BadAddress(f"option {name!r} has a value that cannot be used")
