"""Leads the RTSP conversation until video flows: OPTIONS, DESCRIBE, SETUP, PLAY; and ends it.

Over TCP frames come interleaved on the connection, over UDP on a pair of ports. `auto` asks for TCP, which loses
nothing and passes every firewall, and for UDP where the camera refuses TCP. Nothing here connects a second time, but
for redirects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.ingest.network import ANYWHERE, Networks
from server.ingest.rtsp.address import Address, parse_address
from server.ingest.rtsp.auth import Authenticator
from server.ingest.rtsp.client import DEFAULT_SESSION_TIMEOUT_S, RtspClient
from server.ingest.rtsp.messages import Headers, Response, decimal
from server.ingest.rtsp.sdp import SdpError, UnsupportedMedia, VideoTrack, select_video
from server.ingest.rtsp.sockets import Datagrams, connect
from server.ingest.source import Reason, SourceError

MAX_REDIRECTS = 3

_REASONS = {401: Reason.AUTH, 403: Reason.AUTH, 407: Reason.AUTH, 404: Reason.NOT_FOUND, 410: Reason.NOT_FOUND}
_REDIRECTS = (301, 302, 303, 305, 307, 308)
_TRANSPORT_REFUSED = (400, 406, 415, 451, 461, 501)
"""461 is the right answer to a transport that a server does not have; the others are seen as well."""
_NO_AGGREGATE = (404, 459, 460)
_INVALID_RANGE = 457


@dataclass(slots=True)
class Session:
    """A camera that is playing."""

    client: RtspClient
    track: VideoTrack
    rtp_channel: int = 0
    rtcp_channel: int = 1
    datagrams: Datagrams | None = None
    """None: interleaved over TCP."""
    server_ports: tuple[int, int] | None = None
    """Where the server listens for RTP and RTCP; None: it did not say."""

    @property
    def transport(self) -> str:
        return "tcp" if self.datagrams is None else "udp"

    def send_rtcp(self, data: bytes) -> None:
        """A report to the server; lost in silence where it cannot be sent."""
        if self.datagrams is None:
            self.client.send_frame(self.rtcp_channel, data)
        elif self.server_ports is not None:
            self.datagrams.send(self.client.stream.peer, self.server_ports[1], rtcp=data)

    def close(self) -> None:
        """TEARDOWN and close everything. Takes half a second at most."""
        self.client.teardown(self.track.aggregate)
        self.client.close()
        if self.datagrams is not None:
            self.datagrams.close()


@dataclass(frozen=True, slots=True)
class Options:
    """How to reach the camera."""

    url: str
    username: str | None
    password: str | None
    transport: str
    """tcp | udp | auto"""
    tls_verify: bool
    networks: Networks = ANYWHERE

    def __repr__(self) -> str:
        return f"Options(transport={self.transport!r})"


def start(options: Options, deadline: float) -> Session:
    """Connect and play, until `deadline` (monotonic). Raises SourceError."""
    address, username, password = parse_address(options.url)
    if options.username is not None:
        username, password = options.username, options.password
    first_host = address.host
    for _ in range(MAX_REDIRECTS + 1):
        # A password is for the camera that it was given for, wherever that may send us.
        known = address.host == first_host
        authenticator = Authenticator(username if known else None, password if known else None)
        client = RtspClient(connect(address, deadline, options.tls_verify, options.networks), authenticator)
        try:
            outcome = _converse(client, address, options.transport, deadline)
        except BaseException:
            client.close()
            raise
        if isinstance(outcome, Session):
            return outcome
        client.close()
        address = outcome
    raise SourceError(Reason.PROTOCOL, f"the camera redirects more than {MAX_REDIRECTS} times")


def _converse(client: RtspClient, address: Address, transport: str, deadline: float) -> Session | Address:
    public = client.request("OPTIONS", address.url, deadline).headers.get_all("Public")
    methods = {method.strip().upper() for line in public for method in line.split(",")}
    description = client.request("DESCRIBE", address.url, deadline, {"Accept": "application/sdp"})
    if description.status in _REDIRECTS:
        return _redirect(address, description.headers.get("Location"))
    _demand_ok(description, "DESCRIBE")
    base = description.headers.get("Content-Base") or description.headers.get("Content-Location")
    try:
        track = select_video(description.body, address.url, base)
    except UnsupportedMedia as error:
        raise SourceError(Reason.CODEC, str(error)) from None
    except SdpError as error:
        raise SourceError(Reason.PROTOCOL, str(error)) from None
    if address.tcp_only or (address.tls and transport == "auto"):
        transport = "tcp"  # over UDP the video would not be encrypted
    session = _set_up(client, track, transport, deadline)
    try:
        client.set_keep_alive(track.aggregate, methods)
        _play(session, deadline)
    except BaseException:
        if session.datagrams is not None:
            session.datagrams.close()
        raise
    return session


def _redirect(address: Address, location: str | None) -> Address:
    if location is None:
        raise SourceError(Reason.PROTOCOL, "the camera redirects without saying where to")
    target, _, _ = parse_address(location)
    if target.tls != address.tls:
        raise SourceError(Reason.PROTOCOL, "the camera redirects to another scheme")
    return target


def _set_up(client: RtspClient, track: VideoTrack, transport: str, deadline: float) -> Session:
    """SETUP with the first transport that the camera has."""
    response: Response | None = None
    if transport in ("tcp", "auto"):
        offer = "RTP/AVP/TCP;unicast;interleaved=0-1"
        response = client.request("SETUP", track.control, deadline, {"Transport": offer})
        chosen = _chosen_transport(response.headers)
        if response.status == 200 and "TCP" in chosen.get("", "RTP/AVP/TCP"):
            _take_session(client, response.headers)
            rtp, rtcp = _pair(chosen.get("interleaved"), 255) or (0, 1)
            client.reader.allow_channels(rtp, rtcp)
            return Session(client, track, rtp, rtcp)
        if transport == "tcp" or response.status not in (200, *_TRANSPORT_REFUSED):
            _demand_ok(response, "SETUP")
            raise SourceError(Reason.REFUSED, "the camera does not send over TCP")
    datagrams = _open_datagrams(client)
    try:
        rtp, rtcp = datagrams.ports
        offer = f"RTP/AVP;unicast;client_port={rtp}-{rtcp}"
        response = client.request("SETUP", track.control, deadline, {"Transport": offer})
        _demand_ok(response, "SETUP")
        chosen = _chosen_transport(response.headers)
        if "TCP" in chosen.get("", "") or "multicast" in chosen:
            raise SourceError(Reason.REFUSED, "the camera does not send over unicast UDP")
        _take_session(client, response.headers)
        datagrams.allow(client.stream.peer, *([chosen["source"]] if chosen.get("source") else []))
    except BaseException:
        datagrams.close()
        raise
    return Session(client, track, datagrams=datagrams, server_ports=_pair(chosen.get("server_port"), 65_535))


def _open_datagrams(client: RtspClient) -> Datagrams:
    try:
        datagrams = Datagrams(*client.stream.local)
    except OSError as error:
        raise SourceError(Reason.ERROR, f"no pair of UDP ports is free: {error.strerror or error}") from None
    client.watch(datagrams.rtp, datagrams.rtcp)
    return datagrams


def _play(session: Session, deadline: float) -> None:
    client, track = session.client, session.track
    if session.datagrams is not None and session.server_ports is not None:
        # Opens the way through a firewall or an address translation on our side.
        session.datagrams.punch(client.stream.peer, session.server_ports)
    response = client.request("PLAY", track.aggregate, deadline, {"Range": track.play_range})
    if response.status == _INVALID_RANGE:
        response = client.request("PLAY", track.aggregate, deadline)
    if response.status in _NO_AGGREGATE and track.control != track.aggregate:
        response = client.request("PLAY", track.control, deadline, {"Range": track.play_range})
    _demand_ok(response, "PLAY")
    _take_session(client, response.headers)


def _demand_ok(response: Response, method: str) -> None:
    if response.status == 200:
        return
    # Everything that is no matter of rights or names is the camera's refusal: too many clients, no bandwidth, ...
    reason = _REASONS.get(response.status, Reason.REFUSED)
    raise SourceError(reason, f"the camera answers {method} with {response.status} {response.reason}".rstrip())


def _take_session(client: RtspClient, headers: Headers) -> None:
    value = headers.get("Session")
    if value is None:
        return
    identifier, *parameters = value.split(";")
    client.session = identifier.strip()
    for parameter in parameters:
        name, _, text = parameter.partition("=")
        if name.strip().lower() == "timeout":
            client.session_timeout_s = decimal(text) or DEFAULT_SESSION_TIMEOUT_S


def _chosen_transport(headers: Headers) -> dict[str, str]:
    """Parameters of the Transport header, names in lower case; the protocol stands under "" (upper case)."""
    value = headers.get("Transport")
    if value is None:
        return {}
    protocol, *parameters = value.split(",")[0].split(";")
    pairs = (parameter.partition("=") for parameter in parameters)
    return {"": protocol.strip().upper()} | {name.strip().lower(): text.strip() for name, _, text in pairs}


def _pair(text: str | None, highest: int) -> tuple[int, int] | None:
    """`6000-6001` or `6000`."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", (text or "").strip(), re.ASCII)
    if match is None:
        return None
    first = int(match[1])
    second = int(match[2]) if match[2] else first + 1
    return (first, second) if 0 <= first <= highest and 0 <= second <= highest else None
