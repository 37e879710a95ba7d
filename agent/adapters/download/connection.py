"""One request over one connection, built on urllib3: to an address that was judged before, and with an end.

A name is resolved once, and those addresses are connected to, so that the answer cannot change in between. The errors
of urllib3 and of sockets end here, also while a body is being read.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from typing import TYPE_CHECKING

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError, ProtocolError, ReadTimeoutError
from urllib3.util import parse_url

from agent.adapters.download.lifeline import Lifeline
from agent.adapters.download.policy import judge_addresses
from agent.adapters.download.retrying import TransientError
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from urllib.parse import SplitResult

    from urllib3 import BaseHTTPResponse

    from agent.adapters.download.policy import Policy
    from agent.deployment.ports import Watch

_TRANSLATED = (HTTPError, http.client.HTTPException, OSError)


@contextlib.contextmanager
def answer_to(
    parts: SplitResult, headers: Mapping[str, str], policy: Policy, watch: Watch
) -> Iterator[BaseHTTPResponse]:
    """Yield the answer to a GET; its body is read in the block, and the connection ends with it.

    Args:
        parts: of the URL.
        headers: to send.
        policy: the limits.
        watch: whoever waits for it may stop waiting.

    Raises:
        TransientError: the host could not be reached, or the line broke, in the block too.
        StepError: ``forbidden_source``, or authorities that cannot be read.
    """
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = _target(parts)
    lifeline = Lifeline(policy.head_s, watch)
    addresses = _resolve(parts, port, policy)
    connection: _Plain | _Secure
    if parts.scheme == "https":
        connection = _Secure(host, port, timeout=policy.connect_s, ssl_context=_context(policy.ca_file))
    else:
        connection = _Plain(host, port, timeout=policy.connect_s)
    connection.dial = lambda: lifeline.holding(_connect(host, addresses, policy.connect_s))
    try:
        with lifeline, _translated(host, lifeline, policy):
            connection.connect()
            connection.timeout = policy.stall_s
            connection.request("GET", target, headers=headers, preload_content=False, decode_content=False)
            with contextlib.closing(connection.getresponse()) as response:
                lifeline.head_is_here()
                yield response
    finally:
        connection.close()


def judge_spelt(parts: SplitResult, policy: Policy) -> None:
    """Refuse a host that is an address itself, in any spelling (``127.1``), and not a public one. Nobody is asked.

    Raises:
        StepError: ``forbidden_source`` with the address.
    """
    try:
        found = socket.getaddrinfo(parts.hostname, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return  # a name, which is judged when it is resolved to be connected to
    judge_addresses(parts, [str(item[4][0]) for item in found], policy)


class _Dialled:
    """Connects where it is told, not where its name leads."""

    dial: Callable[[], socket.socket]

    def _new_conn(self) -> socket.socket:
        return self.dial()


class _Plain(_Dialled, HTTPConnection):
    pass


class _Secure(_Dialled, HTTPSConnection):
    pass


@contextlib.contextmanager
def _translated(host: str, lifeline: Lifeline, policy: Policy) -> Iterator[None]:
    """Turn urllib3's and the socket's errors into this package's, also while a body is being read."""
    try:
        yield
    except _TRANSLATED as error:
        raise TransientError(f"{lifeline.why or _words(error, policy)} while talking to {host}") from None


def _words(error: Exception, policy: Policy) -> str:
    """Return what went wrong; the text of an error may quote the address, save for those of a certificate."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or next((each for each in cause.args if isinstance(each, BaseException)), None)
    if cause is not None:
        return f"certificate verify failed: {cause.verify_message}"
    if isinstance(error, (ReadTimeoutError, TimeoutError)):
        return f"nothing came for {policy.stall_s:g} s"
    if isinstance(error, ProtocolError):
        return "the connection broke"
    return getattr(error, "strerror", None) or type(error).__name__


def _context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise StepError(
            ErrorCode.DOWNLOAD_FAILED,
            f"downloads.ca_file {ca_file} cannot be used: {error.strerror or error}",
            "put the certificates of the authorities there, as PEM",
            retryable=True,
        ) from None


def _target(parts: SplitResult) -> str:
    try:
        return parse_url(parts.geturl()).request_uri
    except LocationParseError:
        raise StepError(ErrorCode.FORBIDDEN_SOURCE, f"not a usable URL of {parts.hostname}") from None


def _resolve(parts: SplitResult, port: int, policy: Policy) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    """Return the addresses of a URL's host, judged."""
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TransientError(f"{host} cannot be resolved: {error.strerror or error}") from None
    judge_addresses(parts, [str(item[4][0]) for item in found], policy)
    return [(item[0], item[4]) for item in found]


def _connect(
    host: str, addresses: list[tuple[socket.AddressFamily, tuple[object, ...]]], timeout_s: float
) -> socket.socket:
    """Return a socket to the first address that answers."""
    failures = []
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failures.append(f"{address[0]}: {error.strerror or error}")
        else:
            return sock
    raise TransientError(f"{host} cannot be reached ({'; '.join(failures)})")
