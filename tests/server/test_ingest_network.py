"""Addresses that sources may have, and that nothing but a checked address is connected to."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtsp_script import ScriptedServer, camera, status

from server.ingest import network
from server.ingest.network import ANYWHERE, Networks, connect, resolve
from server.ingest.rtsp.source import RtspSource
from server.ingest.source import Reason, SourceError
from server.settings import NO_SOURCES

NO_METADATA = Networks.parse(None, map(str, NO_SOURCES))


@pytest.mark.parametrize(
    ("address", "permitted"),
    [("192.0.2.1", True), ("169.254.169.254", False), ("::ffff:169.254.169.254", False), ("fe80::1%eth0", False),
     ("64:ff9b::a9fe:a9fe", False), ("fd00:ec2::254", False), ("2001:db8::1", True), ("127.0.0.1", True),
     ("not an address", False), ("", False)],
)  # fmt: skip
def test_metadata_services_are_out_of_reach_in_every_way_of_writing(address: str, permitted: bool) -> None:
    assert NO_METADATA.permits(address) is permitted


def test_deny_is_stronger_than_allow_and_allow_is_all_there_is() -> None:
    networks = Networks.parse(["10.0.0.0/8"], ["10.1.0.0/16"])
    assert [networks.permits(a) for a in ("10.2.0.1", "10.1.0.1", "192.0.2.1", "::1")] == [True, False, False, False]
    assert ANYWHERE.permits("192.0.2.1")


def test_the_unspecified_address_is_this_machine() -> None:
    no_loopback = Networks.parse(None, ["127.0.0.0/8", "::1/128"])
    assert not no_loopback.permits("0.0.0.0")
    assert not no_loopback.permits("::")


@given(st.ip_addresses(v=4))
def test_ipv4_is_the_same_address_however_ipv6_carries_it(address: object) -> None:
    networks = Networks.parse(["0.0.0.0/1"], ["10.0.0.0/8"])
    number = int(address)  # type: ignore[call-overload]
    carried = [f"::ffff:{address}", socket.inet_ntop(socket.AF_INET6, bytes.fromhex("0064ff9b") + bytes(8) +
                                                     number.to_bytes(4, "big"))]  # fmt: skip
    for text in carried:
        assert networks.permits(text) is networks.permits(str(address))


def test_of_several_addresses_the_permitted_ones_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [["169.254.169.254", "192.0.2.7", "10.0.0.1"]])
    found = resolve("cam.example", 554, time.monotonic() + 1, Networks.parse(None, ["10.0.0.0/8", "169.254.0.0/16"]))
    assert [target[0] for _, target in found] == ["192.0.2.7"]


def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_that_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS rebinding: a second look-up would give another address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        answers(monkeypatch, [["127.0.0.1"], ["169.254.169.254"]])
        with connect("rebinding.example", port, time.monotonic() + 2, NO_METADATA) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)


@pytest.mark.parametrize("url", ["rtsp://127.0.0.1:{}/x", "rtsp://localhost:{}/x", "rtsp://0.0.0.0:{}/x"])
def test_nothing_is_sent_to_an_address_that_is_forbidden(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        source = RtspSource(
            url.format(listener.getsockname()[1]), networks=Networks.parse(None, ["127.0.0.0/8", "::1/128"])
        )
        with pytest.raises(SourceError) as caught:
            source.open()
        assert caught.value.reason is Reason.FORBIDDEN
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_redirect_of_rtsp_leads_to_permitted_addresses_only() -> None:
    moved = status("302 Moved", Location="rtsp://169.254.169.254/x")
    with ScriptedServer(camera({"DESCRIBE": moved})) as server:
        source = RtspSource(server.url, networks=NO_METADATA, open_timeout_s=2)
        with pytest.raises(SourceError) as caught:
            source.open()
    assert caught.value.reason is Reason.FORBIDDEN


def answers(monkeypatch: pytest.MonkeyPatch, rounds: list[list[str]]) -> None:
    """A resolver that gives these addresses, one list for each look-up."""
    left: Iterator[list[str]] = iter(rounds)

    def lookup(host: str, port: int, kind: object, flags: int = 0) -> list[tuple[int, object]]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        return [(socket.AF_INET, (address, port)) for address in next(left)]

    monkeypatch.setattr(network, "_lookup", lookup)
