"""TLS: REST and WebSockets over it, files that do not fit, and a certificate that is renewed."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import httpx
import pytest
import websockets
from certificates import Pair, self_signed
from fake_runtime import FakeRuntime, detection
from live_server import live_server, until

from server.delivery.serve import ServeError
from server.delivery.tls import Certificate, TlsError

TOKEN = "a-token-of-some-length"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return self_signed(tmp_path)


def trusting(*pairs: Pair) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for pair in pairs:
        context.load_verify_locations(pair.certificate)
    return context


def settings(pair: Pair) -> dict[str, object]:
    return {"tls_certificate": pair.certificate, "tls_key": pair.key, "token": TOKEN}


async def test_rest_and_websockets_over_tls(pair: Pair) -> None:
    runtime = FakeRuntime()
    runtime.add("door")
    async with live_server(runtime, **settings(pair)) as server:
        assert server.http.startswith("https://127.0.0.1:")
        context = trusting(pair)
        async with httpx.AsyncClient(base_url=server.http, verify=context) as client:
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            answer = await client.get("/streams", headers=bearer)
            assert answer.status_code == 200
            assert "max-age" in answer.headers["strict-transport-security"]
            login = await client.post("/session", json={"token": TOKEN}, headers={"Origin": server.http})
            assert "secure" in login.headers["set-cookie"].lower()
            assert (await client.get("/session")).json()["role"] == "admin"
        async with websockets.connect(f"{server.ws}/detections", additional_headers=bearer, ssl=context) as socket:
            await until(lambda: len(runtime.hub) == 1)
            runtime.see("door", *[detection()] * 2000)  # more than a TLS record and the transport's buffer hold
            assert json.loads(await socket.recv())["type"] == "state"
            assert len(json.loads(await socket.recv())["detections"]) == 2000


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_versions_are_refused(pair: Pair, version: ssl.TLSVersion) -> None:
    context = trusting(pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    async with live_server(FakeRuntime(), **settings(pair)) as server:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection("127.0.0.1", server.port, ssl=context)


async def test_plain_http_to_a_tls_port_gets_nothing(pair: Pair) -> None:
    async with live_server(FakeRuntime(), **settings(pair)) as server:
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{server.port}/healthz")
        async with httpx.AsyncClient(verify=trusting(pair)) as client:
            assert (await client.get(f"{server.http}/healthz")).status_code == 200


def test_files_that_do_not_fit_are_named(pair: Pair, tmp_path: Path) -> None:
    other, locked = self_signed(tmp_path, "other"), self_signed(tmp_path, "locked", b"secret")
    nothing, garbage = tmp_path / "none.pem", tmp_path / "garbage.pem"
    garbage.write_text("not PEM")
    cases = [
        ((nothing, pair.key), f"{nothing}: No such file"),
        ((pair.certificate, nothing), f"{nothing}: No such file"),
        ((tmp_path, pair.key), f"{tmp_path}: Is a directory"),
        ((pair.certificate, other.key), f"{other.key}: is not the key of {pair.certificate}"),
        ((garbage, pair.key), f"{garbage}, {pair.key}: not a certificate and its key in PEM"),
        ((pair.certificate, garbage), f"{pair.certificate}, {garbage}: not a certificate"),
        ((pair.key, pair.certificate), "not a certificate and its key"),
        (locked, f"{locked.key}: is encrypted; a key without a passphrase is needed"),
    ]
    for (certificate, key), said in cases:
        with pytest.raises(TlsError) as caught:
            Certificate(certificate, key)
        assert said in str(caught.value)


async def test_a_server_does_not_start_with_files_that_do_not_fit(pair: Pair, tmp_path: Path) -> None:
    pair.key.unlink()
    with pytest.raises(ServeError, match=rf"^TLS: {pair.key}: No such file"):
        async with live_server(FakeRuntime(), **settings(pair)):
            pass


async def served_by(port: int, *pairs: Pair) -> str:
    """Common name of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(*pairs))
    subject = dict(part[0] for part in writer.get_extra_info("peercert")["subject"])
    writer.close()
    return str(subject["commonName"])


async def test_a_renewed_certificate_is_taken_over(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*pair)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=certificate.context)
    port = server.sockets[0].getsockname()[1]
    renewed = self_signed(tmp_path, "renewed")
    async with server:
        assert not certificate.refresh()
        assert await served_by(port, pair, renewed) == "server"
        old = tmp_path / "old.pem"
        pair.certificate.rename(old)
        renewed.certificate.rename(pair.certificate)
        assert not certificate.refresh()  # the key is still the old one
        assert "stays as it was" in caplog.text
        trusted = (Pair(old, pair.key), pair)
        assert await served_by(port, *trusted) == "server"
        renewed.key.replace(pair.key)
        assert certificate.refresh()
        assert await served_by(port, *trusted) == "renewed"
