"""TLS of the server itself: TLS 1.2 at least, errors that name the file, and renewed certificates without a restart."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from server.settings import ServerSettings

log = logging.getLogger("yolov9.tls")

CHECK_S = 10.0


class TlsError(Exception):
    """Certificate or key cannot be used. One sentence that names the file."""


class Certificate:
    """Certificate and key as files, which somebody may renew at any time. TlsError if they cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_RENEGOTIATION  # costs the server more than the client that asks for it
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp = self._stamps()
        _load(self.context, certificate, key)

    @classmethod
    def of(cls, settings: ServerSettings) -> Certificate | None:
        """None without TLS. TlsError."""
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key)

    async def watch(self) -> None:
        """Endless: take over what has been renewed."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.refresh()

    def refresh(self) -> bool:
        """Whether new files were taken over; connections that there are go on as they are.

        Files that do not fit (yet: two files are not replaced at once) are logged, and looked at when they change.
        """
        stamp = self._stamps()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._certificate, self._key)  # a trial
            _load(self.context, self._certificate, self._key)
        except TlsError as error:
            log.error("the certificate stays as it was: %s", error)
            return False
        log.info("the certificate was renewed")
        return True

    def _stamps(self) -> list[tuple[int, int] | None]:
        return [_stamp(path) for path in (self._certificate, self._key)]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:  # ssl would not say which of the two
            raise TlsError(f"{path}: {error.strerror}") from None
    asked = False

    def no_passphrase() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(certificate, key, password=no_passphrase)  # else OpenSSL asks at the terminal
    except ssl.SSLError as error:
        if asked:
            raise TlsError(f"{key}: is encrypted; a key without a passphrase is needed") from None
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise TlsError(f"{key}: is not the key of {certificate}") from None
        raise TlsError(f"{certificate}, {key}: not a certificate and its key in PEM ({error.reason})") from None
