"""TLS on the inference ports: certificates that are renewed without a restart.

Before each handshake a look at the files tells whether they changed; a pair that cannot be used leaves the last good
one in force, since a certificate and its key are not renewed at the same instant. TLS 1.2 at least.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = structlog.get_logger("tls")
LOOK_AGAIN_S = 1.0
HANDSHAKE_S = 10.0
HTTP, HTTP2 = "http/1.1", "h2"


class RenewedContext:
    """Holds what new connections are encrypted with.

    Args:
        cert_file, key_file: PEM; the certificate first, then its chain. As long as they never could be used, every
            handshake fails.
        protocol: what is spoken inside, by its name in ALPN.
        clock: seconds, monotonic.

    Attributes:
        context: what a listening socket is given; it passes each handshake on to the newest certificate.
    """

    def __init__(
        self, cert_file: Path, key_file: Path, protocol: str = HTTP, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = (cert_file, key_file)
        self._protocol = protocol
        self._clock = clock
        self._looked_at = clock()
        self.context = self._newest = _context(protocol)
        self.context.sni_callback = self._choose
        self._renew(self._fingerprint())

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        now = self._clock()
        if now - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = now
            found = self._fingerprint()
            if found != self._seen:
                self._renew(found)
        connection.context = self._newest

    def _renew(self, found: tuple[tuple[int, ...], ...]) -> None:
        self._seen = found
        try:
            self._newest = self._load()
        except OSError as error:
            log.error("certificate_unusable", file=str(self._files[0]), error=str(error))  # noqa: TRY400 - a sentence is enough
        else:
            log.info("certificate_read", file=str(self._files[0]))

    def _load(self) -> ssl.SSLContext:
        context = _context(self._protocol)
        # An encrypted key would ask for its password on the terminal, and wait.
        context.load_cert_chain(*self._files, password=_no_password)
        return context

    def _fingerprint(self) -> tuple[tuple[int, ...], ...]:
        return tuple(_fingerprint(path) for path in self._files)


def _context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    return context


def _fingerprint(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted")
