"""The camera's side of Basic and Digest authentication (RFC 7617, RFC 7616), as RTSP servers do it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import random
import re
from typing import Literal

Scheme = Literal["basic", "digest", "digest-sha256", "digest-qop", "any"]
"""digest: MD5 without qop, as most cameras have it; digest-sha256 and digest-qop: SHA-256 or MD5 with qop=auth;
any: MD5 Digest and Basic are both offered."""
_REALM = "camera"
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


class Guard:
    """Checks the Authorization header of requests against one user."""

    def __init__(self, username: str, password: str, scheme: Scheme, rng: random.Random) -> None:
        self._username = username
        self._password = password
        self._scheme = scheme
        self._rng = rng
        self.renew_nonce()

    def renew_nonce(self) -> None:
        """Answers to the old nonce are stale from now on: clients must compute anew with the one of the next 401."""
        self._nonce = f"{self._rng.getrandbits(128):032x}"

    def challenges(self, stale: bool = False) -> list[str]:
        """Values of the WWW-Authenticate headers of a 401."""
        basic = f'Basic realm="{_REALM}"'
        if self._scheme == "basic":
            return [basic]
        digest = f'Digest realm="{_REALM}", nonce="{self._nonce}"'
        if self._scheme == "digest-sha256":
            digest += ', algorithm=SHA-256, qop="auth"'
        elif self._scheme == "digest-qop":
            digest += ', algorithm=MD5, qop="auth"'
        if stale:
            digest += ", stale=true"
        return [digest, basic] if self._scheme == "any" else [digest]

    def check(self, method: str, header: str) -> Literal["ok", "wrong", "stale"]:
        """Judge the value of an Authorization header sent with `method`."""
        kind, _, rest = header.partition(" ")
        if kind.lower() == "basic" and self._scheme in ("basic", "any"):
            return self._check_basic(rest)
        if kind.lower() == "digest" and self._scheme != "basic":
            return self._check_digest(method, rest)
        return "wrong"

    def _check_basic(self, encoded: str) -> Literal["ok", "wrong"]:
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            return "wrong"
        return "ok" if hmac.compare_digest(given, f"{self._username}:{self._password}".encode()) else "wrong"

    def _check_digest(self, method: str, rest: str) -> Literal["ok", "wrong", "stale"]:
        given = {match[1].lower(): match[2] or match[3] or "" for match in _PARAMETER.finditer(rest)}
        digest = _sha256 if self._scheme == "digest-sha256" else _md5
        ha1 = digest(f"{self._username}:{_REALM}:{self._password}")
        ha2 = digest(f"{method}:{given.get('uri', '')}")
        nonce = given.get("nonce", "")
        if self._scheme in ("digest-sha256", "digest-qop"):
            if given.get("qop") != "auth":
                return "wrong"
            middle = f"{nonce}:{given.get('nc', '')}:{given.get('cnonce', '')}:auth"
        else:
            middle = nonce
        expected = digest(f"{ha1}:{middle}:{ha2}")
        right = given.get("username") == self._username and hmac.compare_digest(
            expected.encode(), given.get("response", "").encode()
        )
        if not right:
            return "wrong"
        return "ok" if nonce == self._nonce else "stale"


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
