"""What libavformat reads from, for each kind of address: files, HTTP and HLS, datagrams, RTMP, RTSP, devices.

Wherever the connection can be ours it is, and goes to checked addresses only. RTMP and (as a fall-back) RTSP are opened
by libavformat itself, at an address that was checked: RTSP as well follows redirects by itself then, so it is not
used where `allow_networks` says where cameras are.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

from server.ingest.datagrams import Datagrams
from server.ingest.gst.source import SrtFile
from server.ingest.http import SCHEMES as HTTP_SCHEMES
from server.ingest.http import HttpClient, HttpFile
from server.ingest.network import ANYWHERE, Networks, resolve
from server.ingest.playlist import MAGIC, Opener, PlaylistOpener, refuse
from server.ingest.source import Reason, SourceError

RTSP_SCHEMES = ("rtsp", "rtsps", "rtspt")
DATAGRAM_SCHEMES = ("udp", "rtp")
_CONTAINERS = "mov,matroska,mpegts,avi,flv,h264,hevc,mpeg,mpegvideo,mjpeg,mpjpeg,ogg,asf,ivf,obu,mxf"
_NOTHING = {"protocol_whitelist": "none"}
"""Its bytes come from us."""
_TS_OPTIONS = _NOTHING | {"format_whitelist": "mpegts", "analyzeduration": "200000"}
_DEFAULT_PORTS = {"rtsp": 554, "rtspt": 554, "rtsps": 322, "rtmp": 1935}
_DEVICE_OPTIONS = {"size": "video_size", "fps": "framerate", "format": "input_format"}


@dataclass(frozen=True, slots=True)
class Opening:
    """Arguments of one call of `av.open`."""

    file: str | io.IOBase
    transport: str
    options: Mapping[str, str]
    format: str | None = None
    io_open: Opener | None = None


class Input(Protocol):
    """Used by one thread; opened again and again."""

    network: bool
    """Not a file and no device: errors are the peer's."""
    live: bool | None
    """None: if the container states no duration."""
    survives_silence: bool
    """libavformat can go on reading after its time-out."""

    def openings(self, deadline: float) -> Iterator[Opening]:
        """To be tried in this order, until one opens or fails for a reason that all share. Raises SourceError."""
        ...

    def allow_until(self, deadline: float, late: SourceError) -> None:
        """From now on, reads may wait until `deadline` (monotonic) and then raise `late`."""
        ...

    def take_lost(self) -> int:
        """Packets lost since the last call."""
        ...

    def close(self) -> None: ...


class _Passive:
    """What most kinds have nothing to say to."""

    network = True
    live: bool | None = None
    survives_silence = False

    def allow_until(self, deadline: float, late: SourceError) -> None:
        pass

    def take_lost(self) -> int:
        return 0

    def close(self) -> None:
        pass


class FileInput(_Passive):
    """No playlists, no concatenation, no session descriptions: they name other files."""

    def __init__(self, path: str) -> None:
        self.network, self.live = False, False
        self._path = path

    def openings(self, deadline: float) -> Iterator[Opening]:
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        yield Opening(self._path, "file", options, io_open=None)


class HttpInput(_Passive):
    """A file, a live stream, a series of JPEGs or a playlist, as the answer says."""

    def __init__(self, url: str, username: str | None, password: str | None, networks: Networks) -> None:
        self._url = url
        self._client = HttpClient(url, username, password, networks)
        self._file: io.RawIOBase | None = None

    def allow_until(self, deadline: float, late: SourceError) -> None:
        self._client.patience.allow_until(deadline, late)

    def openings(self, deadline: float) -> Iterator[Opening]:
        answer = self._client.get(self._url)
        try:
            begin = self._client.read_exactly(answer, len(MAGIC))
        except SourceError:
            answer.close()
            raise
        options = {"analyzeduration": "1000000", "format_whitelist": f"{_CONTAINERS},live_flv"}
        if begin == MAGIC:
            # Keeping connections is libavformat's own affair: it would look for one of its own behind our files.
            # What a segment is called says nothing, where nothing but http can be opened.
            options |= {
                "http_persistent": "0",
                "http_multiple": "0",
                "extension_picky": "0",
                "protocol_whitelist": "http,https,crypto",
                "format_whitelist": f"{_CONTAINERS},hls",
            }
            opener = PlaylistOpener(self._client, answer, begin)
            yield Opening(answer.url, "hls", options, "hls", opener)
            return
        kind = (answer.response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        self._file = HttpFile(self._client, answer, begun=begin)
        container = "mpjpeg" if kind.startswith("multipart/") else None
        yield Opening(self._file, "http", options | _NOTHING, container, refuse)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class DatagramInput(_Passive):
    """MPEG-TS in UDP datagrams, with or without RTP."""

    def __init__(self, parts: SplitResult, networks: Networks) -> None:
        self.live = True
        self._datagrams = Datagrams(parts.hostname or "", parts.port or 0, parts.scheme == "rtp", networks)
        self._scheme = parts.scheme

    def allow_until(self, deadline: float, late: SourceError) -> None:
        self._datagrams.allow_until(deadline, late)

    def take_lost(self) -> int:
        return self._datagrams.take_lost()

    def openings(self, deadline: float) -> Iterator[Opening]:
        self._datagrams.open()
        yield Opening(self._datagrams, self._scheme, _TS_OPTIONS, "mpegts", refuse)

    def close(self) -> None:
        self._datagrams.close()


class SrtInput(_Passive):
    """MPEG-TS over SRT; we call the peer. A password is the passphrase of the encryption."""

    def __init__(self, parts: SplitResult, password: str | None, networks: Networks) -> None:
        self.live = True
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._networks = networks
        options: dict[str, str | int | bool] = dict(parse_qsl(parts.query))
        for name in ("latency", "pbkeylen"):
            if name in options:
                options[name] = int(options[name])
        if password is not None:
            options["passphrase"] = password
        options.pop("mode", None)
        # A lost connection is told instead of being made again behind our back.
        self._properties = options | {"auto-reconnect": False}
        self._file: SrtFile | None = None

    def allow_until(self, deadline: float, late: SourceError) -> None:
        self._patience = deadline, late
        if self._file is not None:
            self._file.allow_until(deadline, late)

    def openings(self, deadline: float) -> Iterator[Opening]:
        peer = next(_peers(self._host, self._port, deadline, self._networks, socket.SOCK_DGRAM))
        self._file = SrtFile(f"srt://{peer}?mode=caller", self._properties)
        self._file.allow_until(*self._patience)
        self._file.open()
        yield Opening(self._file, "srt", _TS_OPTIONS, "mpegts", refuse)

    def take_lost(self) -> int:
        return 0 if self._file is None else self._file.take_lost()

    def close(self) -> None:
        if self._file is not None:
            self._file.shut()


class RtspInput(_Passive):
    """libavformat's own RTSP client."""

    def __init__(
        self, url: str, username: str | None, password: str | None, transport: str, networks: Networks
    ) -> None:
        self.live, self.survives_silence = True, True
        self._address = url, username, password
        self._transports = {"auto": ("tcp", "udp")}.get(transport, (transport,))
        if url.lower().startswith("rtspt:"):
            self._transports = ("tcp",)
        self._networks = networks

    def openings(self, deadline: float) -> Iterator[Opening]:
        if self._networks.allow is not None:
            raise SourceError(Reason.FORBIDDEN, "rtsp_client libav cannot be held to allow_networks")
        options = {
            "protocol_whitelist": "rtsp,rtsps,rtp,udp,tcp,tls",
            "format_whitelist": "rtsp,mpegts",
            "analyzeduration": "200000",  # opens in .3 s and without a backlog, instead of 1.9 s with 27 frames
        }
        for url in _numeric(*self._address, deadline, self._networks):
            for transport in self._transports:
                yield Opening(url, transport, options | {"rtsp_transport": transport})


class RtmpInput(_Passive):
    """A stream that an RTMP server plays."""

    def __init__(self, url: str, username: str | None, password: str | None, networks: Networks) -> None:
        self.live = True
        self._address = url, username, password
        self._networks = networks

    def openings(self, deadline: float) -> Iterator[Opening]:
        parts = urlsplit(self._address[0])
        # The server is told the name that was asked for, as virtual hosts need it.
        names = [name for name in parts.path.split("/") if name]
        application = "/".join(names[: 2 if len(names) > 2 else 1])
        options = {
            "protocol_whitelist": "rtmp,tcp",
            "format_whitelist": "flv,live_flv",
            "rtmp_live": "live",
            "rtmp_tcurl": f"rtmp://{parts.netloc}/{application}",
            "analyzeduration": "200000",
        }
        for url in _numeric(*self._address, deadline, self._networks):
            yield Opening(url, "rtmp", options)


class DeviceInput(_Passive):
    """A camera of this machine, through Video4Linux."""

    def __init__(self, url: str) -> None:
        self.network, self.live = False, True
        self._path, _, query = url.removeprefix("v4l2:").partition("?")
        self._options = {_DEVICE_OPTIONS[name]: value for name, value in parse_qsl(query) if name in _DEVICE_OPTIONS}

    def openings(self, deadline: float) -> Iterator[Opening]:
        yield Opening(self._path, "v4l2", {"protocol_whitelist": "none", **self._options}, "v4l2")


def input_for(
    url: str,
    username: str | None = None,
    password: str | None = None,
    transport: str = "auto",
    networks: Networks = ANYWHERE,
) -> Input:
    """Raises SourceError(ERROR) for an address that is not served; the address is not repeated."""
    if url.startswith("/"):
        return FileInput(url)
    if url.startswith("v4l2:"):
        return DeviceInput(url)
    parts = urlsplit(url)
    if parts.netloc and parts.hostname:
        if parts.scheme in RTSP_SCHEMES:
            return RtspInput(url, username, password, transport, networks)
        if parts.scheme in HTTP_SCHEMES:
            return HttpInput(url, username, password, networks)
        if parts.scheme == "rtmp":
            return RtmpInput(url, username, password, networks)
        if parts.scheme == "srt" and parts.port:
            return SrtInput(parts, password, networks)
    if parts.scheme in DATAGRAM_SCHEMES and parts.port:
        return DatagramInput(parts, networks)
    raise SourceError(Reason.ERROR, "not an address that is served")


def _numeric(
    url: str, username: str | None, password: str | None, deadline: float, networks: Networks
) -> Iterator[str]:
    """The URL with each checked IP address in place of the host's name, and with credentials, percent-encoded."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    written = "rtsp" if parts.scheme == "rtspt" else parts.scheme
    for peer in _peers(parts.hostname or "", port, deadline, networks):
        if username is not None:
            user_info = quote(username, safe="") + (f":{quote(password, safe='')}" if password is not None else "")
            peer = f"{user_info}@{peer}"
        yield urlunsplit((written, peer, parts.path, parts.query, ""))


def _peers(
    host: str, port: int, deadline: float, networks: Networks, kind: socket.SocketKind = socket.SOCK_STREAM
) -> Iterator[str]:
    """`address:port` for each checked address. Raises SourceError."""
    for family, target in resolve(host, port, deadline, networks, kind):
        yield f"[{target[0]}]:{port}" if family == socket.AF_INET6 else f"{target[0]}:{port}"
