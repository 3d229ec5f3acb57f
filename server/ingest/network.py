"""Which addresses of the network a source may reach, and connections to those alone.

A name is resolved here, each of its addresses is checked, and the connection goes to the very address that was checked:
a name that resolves differently a moment later (DNS rebinding) leads nowhere else. The same holds for redirects and
for what playlists name, since all of them come through `connect`.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from server.ingest.source import Reason, SourceError

Network = IPv4Network | IPv6Network
_NAT64 = IPv6Network("64:ff9b::/96")
"""A translator sends what goes there to the IPv4 address in the last four bytes."""


@dataclass(frozen=True, slots=True)
class Networks:
    """Addresses that sources may have: inside `allow` (None: everywhere), but never inside `deny`."""

    allow: tuple[Network, ...] | None = None
    deny: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, allow: Iterable[str] | None, deny: Iterable[str]) -> Networks:
        """From CIDR texts. Raises ValueError."""
        allowed = None if allow is None else tuple(ipaddress.ip_network(text) for text in allow)
        return cls(allowed, tuple(ipaddress.ip_network(text) for text in deny))

    def permits(self, address: str) -> bool:
        """Whether a source may be at this IP address. What is no IP address is not permitted."""
        try:
            parsed = plain_address(address)
        except ValueError:
            return False
        if any(parsed in network for network in self.deny):
            return False
        return self.allow is None or any(parsed in network for network in self.allow)


ANYWHERE = Networks()


def plain_address(text: str) -> IPv4Address | IPv6Address:
    """The address that packets will really go to: without a scope, IPv4 as IPv4 even where IPv6 carries it, and the
    unspecified address as the loopback address, which is where Linux connects to then. Raises ValueError."""
    parsed = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if isinstance(parsed, IPv6Address) and parsed in _NAT64:
        parsed = IPv4Address(parsed.packed[-4:])
    if parsed.is_unspecified:
        return IPv4Address("127.0.0.1") if parsed.version == 4 else IPv6Address("::1")
    return parsed


class Patience:
    """Until when reads may wait, and what is raised then. One for all reads of a source."""

    def __init__(self) -> None:
        self._deadline = 0.0
        self._late = SourceError(Reason.TIMEOUT, "no answer within the time-out")

    def allow_until(self, deadline: float, late: SourceError) -> None:
        """`deadline`: monotonic seconds."""
        self._deadline, self._late = deadline, late

    @property
    def deadline(self) -> float:
        return self._deadline

    def left_s(self) -> float:
        """Raises the error once nothing is left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.late()
        return left

    def late(self) -> SourceError:
        return SourceError(self._late.reason, self._late.detail)


def resolve(
    host: str, port: int, deadline: float, networks: Networks = ANYWHERE, kind: socket.SocketKind = socket.SOCK_STREAM
) -> list[tuple[int, Any]]:
    """(family, socket address) of each permitted address of a host, until `deadline` (monotonic).

    Raises SourceError: UNREACHABLE if the name does not resolve, FORBIDDEN if all its addresses are.
    """
    try:
        found = _lookup(host, port, kind, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        found = _lookup_in_time(host, port, kind, deadline)
    permitted = [(family, target) for family, target in found if networks.permits(target[0])]
    if not permitted:
        raise SourceError(Reason.FORBIDDEN, f"{host} is in a network where no camera may be (allow_, deny_networks)")
    return permitted


def connect(
    host: str, port: int, deadline: float, networks: Networks = ANYWHERE, tls: ssl.SSLContext | None = None
) -> socket.socket:
    """A TCP connection (with `tls`: encrypted) to the first permitted address that answers, until `deadline`
    (monotonic). Raises SourceError."""
    peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    candidates = resolve(host, port, deadline, networks)
    failure: SourceError | None = None
    for index, (family, target) in enumerate(candidates):
        share = (deadline - time.monotonic()) / (len(candidates) - index)
        if share <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(share)
            sock.connect(target)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                return tls.wrap_socket(sock, server_hostname=host)
            return sock
        except OSError as error:
            sock.close()
            failure = failure or _connect_error(peer, error)
    raise failure or SourceError(Reason.TIMEOUT, f"{peer} does not answer")


def tls_context(verify: bool) -> ssl.SSLContext:
    """Cameras have self-signed certificates: without `verify` the connection is encrypted, and that is all."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _connect_error(peer: str, error: OSError) -> SourceError:
    if isinstance(error, TimeoutError):
        return SourceError(Reason.TIMEOUT, f"{peer} does not answer")
    if isinstance(error, ConnectionRefusedError):
        return SourceError(Reason.REFUSED, f"{peer} refuses the connection")
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceError(Reason.PROTOCOL, f"the certificate of {peer} is not valid: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return SourceError(Reason.PROTOCOL, f"{peer} does not speak TLS that we understand ({error.reason})")
    if isinstance(error, ConnectionError):
        return SourceError(Reason.REFUSED, f"{peer} closed the connection at once")
    return SourceError(Reason.UNREACHABLE, f"{peer} cannot be reached: {error.strerror or error}")


def _lookup_in_time(host: str, port: int, kind: socket.SocketKind, deadline: float) -> list[tuple[int, Any]]:
    """The resolver knows no time-out of ours, so it works in a thread that may be left behind."""
    answer: queue.SimpleQueue[list[tuple[int, Any]] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(_lookup(host, port, kind))
        except (OSError, UnicodeError) as error:
            answer.put(error if isinstance(error, OSError) else OSError("not a host name"))

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        found = answer.get(timeout=max(0.001, deadline - time.monotonic()))
    except queue.Empty:
        raise SourceError(Reason.UNREACHABLE, f"the name {host} did not resolve in time") from None
    if isinstance(found, OSError):
        why = found.strerror or str(found)
        raise SourceError(Reason.UNREACHABLE, f"the name {host} does not resolve: {why}") from None
    return found


def _lookup(host: str, port: int, kind: socket.SocketKind, flags: int = 0) -> list[tuple[int, Any]]:
    found = socket.getaddrinfo(host, port, type=kind, flags=flags)
    return [(family, target) for family, _, _, _, target in found]
