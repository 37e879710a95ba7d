"""TLS to the broker: certificates read again at every connection, and words for what is wrong with them.

A long-lived process must not be restarted for a certificate that was renewed, and must not end over one that was not:
files that cannot be read, or do not fit together, are an ``OSError`` of the one connection that was tried. The files of
the server's own port are only looked at here, before it starts.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from datetime import datetime

    from cryptography import x509

EARLIEST_WARNING = timedelta(days=30)
"""How long before its end a certificate is spoken of; for one that lives less than 90 days, a third of its life."""


@dataclass(frozen=True)
class TlsFiles:
    """Where the certificates lie; without ``ca_file`` the system's authorities count."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context from the files as they are now.

        Raises:
            OSError: one of them cannot be read, or they do not fit together (``ssl.SSLError``).
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def problem(self, now: datetime | None) -> str | None:
        """Return what is wrong with the files, or soon will be, in a sentence; None when nothing is.

        Args:
            now: wall time, None when the clock is not synchronised: then no date is judged.
        """
        try:
            self.context()
            certificate = self._certificate()
        except (OSError, ValueError) as error:
            return f"the certificates for the broker ({self._names()}) cannot be used: {error}"
        return None if certificate is None or now is None else _lateness(certificate, now, str(self.cert_file))

    def validity(self) -> tuple[datetime, datetime] | None:
        """Return when the client certificate begins and ends to be valid; None without one.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no certificate.
        """
        certificate = self._certificate()
        return None if certificate is None else (certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    def common_name(self) -> str | None:
        """Return the first common name of the client certificate's subject; None without a certificate or a name.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no certificate.
        """
        certificate = self._certificate()
        if certificate is None:
            return None
        from cryptography.x509.oid import NameOID  # noqa: PLC0415 - as below

        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if found else None

    def _certificate(self) -> x509.Certificate | None:
        if self.cert_file is None:
            return None
        from cryptography import x509  # noqa: PLC0415 - 1.5 MiB that a device without a certificate does not need

        return x509.load_pem_x509_certificate(Path(self.cert_file).read_bytes())

    def _names(self) -> str:
        return ", ".join(name for name in (self.ca_file, self.cert_file, self.key_file) if name) or "the system's"


class RenewingContext:
    """Stands where paho expects an ``ssl.SSLContext``: every connection is wrapped by a fresh one."""

    check_hostname = True

    def __init__(self, files: TlsFiles) -> None:
        self._files = files

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        """Wrap one connection.

        Raises:
            OSError: the files cannot be used; paho tries again later, as after every other ``OSError``.
        """
        try:
            context = self._files.context()
        except ValueError as error:  # what no connection can mend must not end paho's thread either
            raise ssl.SSLError(str(error)) from None
        return context.wrap_socket(sock, **options)


def check_server_files(cert_file: Path, key_file: Path) -> None:
    """Raise ``OSError`` if a server could not be started with these files."""

    def no_password() -> str:
        raise ssl.SSLError("the key is encrypted")

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password=no_password)


def _lateness(certificate: x509.Certificate, now: datetime, path: str) -> str | None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    who = f"the client certificate {certificate.subject.rfc4514_string()} (serial {certificate.serial_number:x})"
    if now >= end:
        return f"{who} expired at {end:%Y-%m-%d %H:%M} UTC; put a renewed one at {path}, it is read at the next try"
    if now < begin:
        return f"{who} is valid from {begin:%Y-%m-%d %H:%M} UTC only"
    if end - now <= min(EARLIEST_WARNING, (end - begin) / 3):
        hours = (end - now).total_seconds() / 3600
        left = f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"  # noqa: PLR2004 - two days
        return f"{who} expires in {left}, at {end:%Y-%m-%d %H:%M} UTC; put a renewed one at {path}"
    return None
