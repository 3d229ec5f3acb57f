"""Authentication against the vectors of the RFCs, and against the oddities of servers."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.rtsp.auth import Authenticator, parse_challenges

RFC2617 = (
    'Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
    'opaque="5ccc069c403ebaf9f0171e9517f40e41"'
)
RFC7616 = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


def test_rfc2617_vector() -> None:
    auth = Authenticator("Mufasa", "Circle Of Life", lambda: "0a4f113b")
    assert auth.challenge([RFC2617])
    value = auth.authorization("GET", "/dir/index.html")
    assert value is not None
    assert 'response="6629fae49393a05397450978507c4ef1"' in value
    assert "nc=00000001" in value
    assert "qop=auth," in value
    assert 'opaque="5ccc069c403ebaf9f0171e9517f40e41"' in value
    assert "nc=00000002" in (auth.authorization("GET", "/dir/index.html") or ""), "counts the uses of a nonce"


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
    ],
)
def test_rfc7616_vectors(algorithm: str, response: str) -> None:
    auth = Authenticator("Mufasa", "Circle of Life", lambda: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")
    auth.challenge([RFC7616.format(algorithm)])
    value = auth.authorization("GET", "/dir/index.html") or ""
    assert f'response="{response}"' in value
    assert f"algorithm={algorithm}" in value


def test_legacy_without_qop() -> None:
    auth = Authenticator("admin", "p@:/w")
    auth.challenge(['Digest realm="IP Camera(12345)", nonce="abc"'])

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    expected = md5(f"{md5('admin:IP Camera(12345):p@:/w')}:abc:{md5('DESCRIBE:rtsp://c/1')}")
    value = auth.authorization("DESCRIBE", "rtsp://c/1") or ""
    assert f'response="{expected}"' in value
    assert "qop" not in value
    assert "cnonce" not in value
    assert "algorithm" not in value


def test_session_variant_depends_on_the_client_nonce() -> None:
    values = []
    for nonce in ("one", "two"):
        auth = Authenticator("u", "p", [nonce].pop)
        auth.challenge(['Digest realm="r", nonce="n", algorithm=MD5-sess'])
        values.append(auth.authorization("PLAY", "rtsp://c") or "")
    assert all("cnonce" in value for value in values)
    assert values[0].split("response=")[1][:34] != values[1].split("response=")[1][:34]


@pytest.mark.parametrize(
    ("headers", "scheme", "algorithm"),
    [
        (
            ['Basic realm="x"', 'Digest realm="x", nonce="1"', 'Digest realm="x", nonce="2", algorithm=SHA-256'],
            "digest",
            "SHA-256",
        ),
        (['Digest realm="x", nonce="1", algorithm=MD5, Basic realm="y"'], "digest", "MD5"),
        (['Basic realm="a, b", Digest realm="x", nonce="1"'], "digest", "MD5"),
        (['Digest realm="x", nonce="1", algorithm=SHA-512-256', "Basic realm=plain"], "basic", "MD5"),
        (['Digest realm="x", nonce="1", qop="auth-int"', 'Basic realm="x"'], "basic", "MD5"),
        (['Digest realm="no nonce"', 'BASIC realm="x"'], "basic", "MD5"),
    ],
)
def test_the_strongest_usable_scheme(headers: list[str], scheme: str, algorithm: str) -> None:
    challenge = Authenticator("u", "p").challenge(headers)
    assert challenge is not None
    assert (challenge.scheme, challenge.algorithm) == (scheme, algorithm)


def test_nothing_usable() -> None:
    auth = Authenticator("u", "p")
    assert auth.challenge(["Negotiate", "NTLM abc=="]) is None
    assert auth.challenge([]) is None
    assert auth.authorization("PLAY", "rtsp://c") is None


def test_quoted_commas_and_escapes() -> None:
    (challenge,) = parse_challenges([r'Digest realm="a, \"b\" = c", nonce="n,=", stale=TRUE'])
    assert challenge.parameters["realm"] == 'a, "b" = c'
    assert challenge.parameters["nonce"] == "n,="
    assert challenge.stale


def test_basic_takes_any_character() -> None:
    auth = Authenticator("ü:ser", 'p"ä,ss\\')
    auth.challenge(['Basic realm="x"'])
    value = auth.authorization("PLAY", "rtsp://c") or ""
    assert base64.b64decode(value.removeprefix("Basic ")).decode() == 'ü:ser:p"ä,ss\\'


def test_names_are_quoted_in_digest() -> None:
    auth = Authenticator('a"b\\c', "p")
    auth.challenge(['Digest realm="r", nonce="n"'])
    assert (auth.authorization("PLAY", "rtsp://c") or "").startswith('Digest username="a\\"b\\\\c", ')


def test_no_secret_in_repr() -> None:
    auth = Authenticator("user-name", "pass-word")
    auth.challenge(['Basic realm="x"'])
    assert "name" not in repr(auth)
    assert "word" not in repr(auth)


@given(st.lists(st.text(max_size=100), max_size=4))
def test_arbitrary_challenges_never_raise(headers: list[str]) -> None:
    auth = Authenticator("u", "p")
    challenge = auth.challenge([f"Digest {header}" for header in headers] + headers)
    assert (auth.authorization("PLAY", "rtsp://c") is None) == (challenge is None)
