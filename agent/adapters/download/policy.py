"""What may be reached, and how much patience and room a download has. Pure: names are resolved elsewhere, judged here.

A scheme or host that is not allowed is refused before a connection is made, at every redirect again. Hosts that are not
named must have public addresses only: no loopback, no link-local, no private network. Query strings never reach a log
or an error, since presigned URLs carry their secret there.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

WEB = frozenset({"http", "https"})
STORES = frozenset({"s3", "gs", "az"})
"""Object stores, by the scheme that their own tools use."""


@dataclass(frozen=True)
class Policy:
    """Where files may come from, and the limits of fetching them.

    Attributes:
        schemes: allowed URL schemes.
        hosts: allowed hosts; empty means every host with a public address. Hosts named here may be private.
        connect_s: how long a connection to one address may take.
        head_s: how long an answer may take to begin, handshake and headers included.
        stall_s: how long nothing may come.
        min_bytes_per_s, slow_s: what has to come on average in each ``slow_s`` of reading; 0 for anything.
        max_bytes: no file may be larger, whatever was announced.
        reserve_bytes: disk space that stays free, for the journal and the logs.
        ca_file: certificate authorities, or None for the system's; read at each connection.
        token_files: by host, or host:port, the file with its bearer token.
        store_files: by ``s3://bucket`` and the like, the file with its credentials.
    """

    schemes: frozenset[str] = frozenset({"https"})
    hosts: frozenset[str] = frozenset()
    connect_s: float = 10.0
    head_s: float = 60.0
    stall_s: float = 30.0
    min_bytes_per_s: int = 1024
    slow_s: float = 60.0
    max_bytes: int = 64 * 2**30
    reserve_bytes: int = 64 * 2**20
    ca_file: str | None = None
    token_files: Mapping[str, str] = field(default_factory=dict)
    store_files: Mapping[str, str] = field(default_factory=dict)


def allow(url: str, policy: Policy, *, schemes: Collection[str] | None = None) -> SplitResult:
    """Return the parts of ``url`` if it may be asked for.

    Args:
        url: as given, or where a redirect leads.
        policy: what is allowed.
        schemes: what may be asked for instead of the policy's schemes.

    Raises:
        StepError: ``forbidden_source``, naming the setting that would have to allow it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("ascii").decode().encode("idna")  # what the resolver and the Host header can carry
    except ValueError as error:
        raise StepError(ErrorCode.FORBIDDEN_SOURCE, f"not a usable URL: {error}") from None
    allowed = policy.schemes if schemes is None else schemes
    if parts.scheme not in allowed:
        raise StepError(
            ErrorCode.FORBIDDEN_SOURCE,
            f"scheme {parts.scheme!r} of {redact(url)} is not allowed here; allowed: {', '.join(sorted(allowed))}",
            "add it to downloads.allowed_schemes, if that is meant",
        )
    if parts.scheme in WEB and (not host or (policy.hosts and host not in policy.hosts)):
        raise StepError(
            ErrorCode.FORBIDDEN_SOURCE,
            f"host {host!r} is not in downloads.allowed_hosts ({', '.join(sorted(policy.hosts)) or 'empty'})",
            "add it there, or serve the file from an allowed host",
        )
    return parts


def judge_addresses(host: str, addresses: Sequence[str], policy: Policy) -> None:
    """Refuse a host that is not named and has an address that is not public.

    Raises:
        StepError: ``forbidden_source`` with the address.
    """
    private = [text for text in addresses if not _is_public(text)]
    if private and host not in policy.hosts:
        raise StepError(
            ErrorCode.FORBIDDEN_SOURCE,
            f"{host} has the private address {private[0]}, and private hosts must be named",
            f'add "{host}" to downloads.allowed_hosts',
        )


def redact(url: str) -> str:
    """Return ``url`` without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def origin(parts: SplitResult) -> str:
    """Return the host, with the port where that is not the scheme's own."""
    own = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.hostname}" if parts.port in (None, own) else f"{parts.hostname}:{parts.port}"


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return address.is_global and inner.is_global and not address.is_multicast
