"""Basic and Digest authentication for RTSP (RFC 2617, RFC 7616).

Pure but for the client nonce. The strongest scheme that the server offers is used: Digest SHA-256, Digest MD5, Basic.
Neither the password nor anything derived from it is in a repr or an exception.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

_ALGORITHMS: dict[str, tuple[int, str, bool]] = {
    # name: (strength, hashlib's name, session variant)
    "SHA-256": (4, "sha256", False),
    "SHA-256-SESS": (4, "sha256", True),
    "MD5": (2, "md5", False),
    "MD5-SESS": (2, "md5", True),
}
_BASIC_STRENGTH = 1
_TOKEN = re.compile(
    r"""[\s,]*([^\s=,"]+)          # scheme or parameter name
        (?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme of a WWW-Authenticate header."""

    scheme: str
    """Lower case."""
    parameters: dict[str, str]

    @property
    def stale(self) -> bool:
        """The nonce was too old; the password may well be right."""
        return self.parameters.get("stale", "").lower() == "true"

    @property
    def strength(self) -> int:
        """0: not usable."""
        if self.scheme == "basic":
            return _BASIC_STRENGTH
        if self.scheme != "digest" or not self.parameters.get("nonce") or not self._qop_usable:
            return 0
        return _ALGORITHMS.get(self.algorithm, (0, "", False))[0]

    @property
    def algorithm(self) -> str:
        return self.parameters.get("algorithm", "").upper() or "MD5"

    @property
    def qop(self) -> str:
        """`auth`, or "" for the legacy scheme without qop."""
        return "auth" if "auth" in self._qops else ""

    @property
    def _qops(self) -> list[str]:
        return re.split(r"[\s,]+", self.parameters.get("qop", "").strip().lower())

    @property
    def _qop_usable(self) -> bool:
        return self._qops == [""] or "auth" in self._qops


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """All schemes of all WWW-Authenticate headers. What does not parse is left out."""
    challenges: list[Challenge] = []
    for header in headers:
        position = 0
        while match := _TOKEN.match(header, position):
            position = match.end()
            name, quoted, plain = match.groups()
            if quoted is None and plain is None:
                challenges.append(Challenge(name.lower(), {}))
            elif challenges:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                challenges[-1].parameters.setdefault(name.lower(), value)
    return challenges


class Authenticator:
    """Credentials of one camera and the server's last challenge."""

    def __init__(
        self, username: str | None, password: str | None, new_nonce: Callable[[], str] = lambda: secrets.token_hex(8)
    ) -> None:
        self._username = username
        self._password = password or ""
        self._new_nonce = new_nonce
        self._challenge: Challenge | None = None
        self._count = 0

    def __repr__(self) -> str:
        return f"Authenticator(scheme={self.scheme!r})"

    @property
    def has_credentials(self) -> bool:
        return self._username is not None

    @property
    def scheme(self) -> str | None:
        """basic | digest | None before a challenge."""
        return self._challenge.scheme if self._challenge else None

    def challenge(self, headers: list[str]) -> Challenge | None:
        """Take the WWW-Authenticate headers of a 401 answer. The challenge that will be answered, None if there is no
        usable one."""
        usable = [challenge for challenge in parse_challenges(headers) if challenge.strength]
        if not usable:
            return None
        # max() keeps the server's order among equals.
        self._challenge = max(usable, key=lambda challenge: challenge.strength)
        self._count = 0
        return self._challenge

    def authorization(self, method: str, uri: str) -> str | None:
        """Value of the Authorization header; None before a challenge or without credentials."""
        if self._challenge is None or self._username is None:
            return None
        if self._challenge.scheme == "basic":
            pair = f"{self._username}:{self._password}".encode()
            return "Basic " + base64.b64encode(pair).decode()
        return self._digest(self._challenge, method, uri)

    def _digest(self, challenge: Challenge, method: str, uri: str) -> str:
        parameters = challenge.parameters
        _, hash_name, session = _ALGORITHMS[challenge.algorithm]

        def digest(text: str) -> str:
            return hashlib.new(hash_name, text.encode(), usedforsecurity=False).hexdigest()

        realm, nonce, qop = parameters.get("realm", ""), parameters["nonce"], challenge.qop
        self._count += 1
        count = f"{self._count:08x}"
        client_nonce = self._new_nonce() if qop or session else ""
        secret = digest(f"{self._username}:{realm}:{self._password}")
        if session:
            secret = digest(f"{secret}:{nonce}:{client_nonce}")
        request = digest(f"{method}:{uri}")
        middle = f"{nonce}:{count}:{client_nonce}:{qop}" if qop else nonce
        fields = [
            f"username={_quote(self._username or '')}",
            f"realm={_quote(realm)}",
            f"nonce={_quote(nonce)}",
            f"uri={_quote(uri)}",
            f'response="{digest(f"{secret}:{middle}:{request}")}"',
        ]
        if "algorithm" in parameters:
            fields.append(f"algorithm={parameters['algorithm']}")
        if "opaque" in parameters:
            fields.append(f"opaque={_quote(parameters['opaque'])}")
        if qop:
            fields += [f"qop={qop}", f"nc={count}"]
        if client_nonce:
            fields.append(f"cnonce={_quote(client_nonce)}")
        return "Digest " + ", ".join(fields)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
