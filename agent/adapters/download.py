"""Fetching files over https, http and file, resuming what is there already; built on urllib3.

Rules: a scheme or host that the configuration does not allow is refused before a connection is made, at every
redirect again; a name is resolved once and that address is connected to, so it cannot change in between; never more
bytes than announced are written; a 4xx is final; everything else is tried again with growing pauses. Query strings
never reach a log or an error, since presigned URLs carry their secret there.

Not done here: hashing. The store hashes the whole file before it admits it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from urllib3 import BaseHTTPResponse

    from agent.deployment.ports import Watch

CHUNK = 256 * 1024
MAX_REDIRECTS = 3
MAX_TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429)


@dataclass(frozen=True)
class Policy:
    """Where files may come from.

    Attributes:
        schemes: allowed URL schemes.
        hosts: allowed hosts; empty means every host with a public address. Hosts named here may be private.
        connect_s, stall_s: how long a connection may take, and a single read.
        ca_file: certificate authorities, or None for the system's.
    """

    schemes: frozenset[str] = frozenset({"https"})
    hosts: frozenset[str] = frozenset()
    connect_s: float = 10.0
    stall_s: float = 30.0
    ca_file: str | None = None


class _TransientError(Exception):
    """Worth another try, not before ``pause_s``."""

    def __init__(self, detail: str, pause_s: float = 0.0) -> None:
        super().__init__(detail)
        self.pause_s = pause_s


class Downloader:
    """Fetches one file at a time."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def fetch(self, url: str, destination: Path, size: int | None, watch: Watch) -> None:
        """Fetch ``url`` into ``destination``, going on where an earlier try stopped.

        Args:
            url: where from.
            destination: the partial file; ``destination`` plus ``.meta`` remembers which entity it is a part of.
            size: bytes that the file must have, or None if unknown.
            watch: for progress, and for the wish to stop.

        Raises:
            StepError: ``forbidden_source`` or ``download_failed``, with the numbers and whether retrying can help.
            InterruptedStepError: the partial file is kept.
        """
        parts = self._allow(url)
        if parts.scheme == "file":
            self._copy(parts, destination, size, watch)
            return
        pause = FIRST_PAUSE_S
        for attempt in range(1, MAX_TRIES + 1):
            watch.check()
            try:
                with _translated(url):
                    self._get(url, destination, size, watch)
            except _TransientError as error:
                if attempt == MAX_TRIES:
                    raise StepError(
                        ErrorCode.DOWNLOAD_FAILED,
                        f"{redact(url)}: {error} ({attempt} tries, {_length(destination)} bytes so far)",
                        "check that the device reaches the host; sent again, the download goes on where it stopped",
                        retryable=True,
                    ) from None
                watch.wait(max(error.pause_s, pause * random.uniform(0.5, 1.5)))  # noqa: S311 - jitter, not a secret
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                return

    def _get(self, url: str, destination: Path, size: int | None, watch: Watch) -> None:
        meta = destination.with_name(destination.name + ".meta")
        have, tag = _resumable(destination, meta, url)
        if size is not None and have == size:
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "nibbled"}
        if have and tag:
            headers |= {"Range": f"bytes={have}-", "If-Range": tag}
        response = self._open(url, headers)
        try:
            if response.status == 416:  # noqa: PLR2004 - nothing lies there: what is kept is not a part of this entity
                meta.unlink(missing_ok=True)
            start = _start(response, have, url)
            meta.write_text(json.dumps({"url": url, "etag": _strong_etag(response)}), encoding="utf-8")
            _receive(response, destination, start, size=size, watch=watch, name=redact(url))
        finally:
            response.close()

    def _open(self, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        for _ in range(MAX_REDIRECTS + 1):
            parts = self._allow(url)
            response = self._request(parts, headers)
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = urljoin(url, location)
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{redact(url)}: more than {MAX_REDIRECTS} redirects")

    def _request(self, parts: SplitResult, headers: dict[str, str]) -> BaseHTTPResponse:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = self._resolve(host, port)
        timeout = urllib3.Timeout(connect=self._policy.connect_s, read=self._policy.stall_s)
        pool: urllib3.HTTPConnectionPool
        if parts.scheme == "https":
            pool = urllib3.HTTPSConnectionPool(
                address,
                port,
                timeout=timeout,
                cert_reqs="CERT_REQUIRED",
                ca_certs=self._policy.ca_file,
                server_hostname=host,
                assert_hostname=host,
            )
        else:
            pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {**headers, "Host": parts.netloc.rpartition("@")[2]}
        return pool.urlopen("GET", target, headers=sent, redirect=False, retries=False, preload_content=False)

    def _allow(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            (host or "").encode("ascii").decode().encode("idna")  # what the resolver and the Host header can carry
        except ValueError as error:
            raise StepError(ErrorCode.FORBIDDEN_SOURCE, f"not a usable URL: {error}") from None
        allowed = ", ".join(sorted(self._policy.schemes))
        if parts.scheme not in self._policy.schemes:
            raise StepError(
                ErrorCode.FORBIDDEN_SOURCE,
                f"scheme {parts.scheme!r} of {redact(url)} is not allowed here; allowed: {allowed}",
                "add it to downloads.allowed_schemes, if that is meant",
            )
        if parts.scheme != "file" and (not host or (self._policy.hosts and host not in self._policy.hosts)):
            raise StepError(
                ErrorCode.FORBIDDEN_SOURCE,
                f"host {host!r} is not in downloads.allowed_hosts ({', '.join(sorted(self._policy.hosts)) or 'empty'})",
                "add it there, or serve the file from an allowed host",
            )
        return parts

    def _resolve(self, host: str, port: int) -> str:
        """Return one address of ``host``; hosts that are not named must have public addresses only."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _TransientError(f"{host} cannot be resolved: {error.strerror or error}") from None
        addresses = [str(item[4][0]) for item in found]
        private = [text for text in addresses if not ipaddress.ip_address(text.partition("%")[0]).is_global]
        if private and host not in self._policy.hosts:
            raise StepError(
                ErrorCode.FORBIDDEN_SOURCE,
                f"{host} has the private address {private[0]}, and private hosts must be named",
                f'add "{host}" to downloads.allowed_hosts',
            )
        return addresses[0]

    def _copy(self, parts: SplitResult, destination: Path, size: int | None, watch: Watch) -> None:
        path = unquote(parts.path)
        try:
            with open(path, "rb") as source, destination.open("wb") as target:  # noqa: PTH123 - a URL's path
                length = os.fstat(source.fileno()).st_size
                if size is not None and length != size:
                    raise _wrong_size(redact(parts.geturl()), length, size)
                watch.progress(0, length, "bytes")
                shutil.copyfileobj(source, target, CHUNK)
                watch.progress(length, length, "bytes")
        except OSError as error:
            raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{path}: {error.strerror}", retryable=True) from None


def redact(url: str) -> str:
    """Return ``url`` without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn urllib3's and the socket's errors into this module's, also while a body is being read."""
    try:
        yield
    except (HTTPError, TimeoutError, ConnectionError) as error:
        raise _TransientError(f"{type(error).__name__} while talking to {urlsplit(url).hostname}") from None
    except OSError as error:
        code = ErrorCode.INSUFFICIENT_DISK if error.errno == 28 else ErrorCode.INTERNAL  # noqa: PLR2004 - ENOSPC
        raise StepError(code, f"{redact(url)}: {error.strerror}", retryable=True) from None


def _resumable(destination: Path, meta: Path, url: str) -> tuple[int, str | None]:
    """Return how much is there of the same entity, and the tag that proves it."""
    try:
        known = json.loads(meta.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0, None
    if known.get("url") != url or not known.get("etag"):
        return 0, None
    return _length(destination), known["etag"]


def _start(response: BaseHTTPResponse, have: int, url: str) -> int:
    """Return the offset at which the body begins."""
    status = response.status
    if status == 200:  # noqa: PLR2004 - OK: the whole entity, whatever was asked
        return 0
    if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):  # noqa: PLR2004
        return have
    if status >= 500 or status in _BUSY or status in (206, 416):  # noqa: PLR2004 - server errors and odd ranges
        raise _TransientError(f"HTTP {status}", _retry_after(response))
    raise StepError(
        ErrorCode.DOWNLOAD_FAILED, f"{redact(url)}: HTTP {status}", "check the URL and the rights of its credentials"
    )


def _receive(
    response: BaseHTTPResponse, destination: Path, start: int, *, size: int | None, watch: Watch, name: str
) -> None:
    announced = response.headers.get("Content-Length", "")
    total = start + int(announced) if announced.isdecimal() else size
    if size is not None and total != size:
        raise _wrong_size(name, total or 0, size)
    done = start
    with destination.open("r+b" if start else "wb") as target:
        target.truncate(start)
        target.seek(start)
        for chunk in response.stream(CHUNK, decode_content=False):
            watch.check()
            done += len(chunk)
            if size is not None and done > size:
                raise _wrong_size(name, done, size)
            target.write(chunk)
            watch.progress(done, total, "bytes")
    if total is not None and done < total:
        raise _TransientError(f"the connection ended after {done} of {total} bytes")


def _wrong_size(name: str, length: int, size: int) -> StepError:
    return StepError(
        ErrorCode.DOWNLOAD_FAILED,
        f"{name} has {length} bytes or more, {size} were announced",
        "compare the file with its manifest",
    )


def _strong_etag(response: BaseHTTPResponse) -> str | None:
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _retry_after(response: BaseHTTPResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), 300.0) if value.isdecimal() else 0.0


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
