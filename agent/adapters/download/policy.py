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

    _Address = ipaddress.IPv4Address | ipaddress.IPv6Address

WEB = frozenset({"http", "https"})
STORES = frozenset({"s3", "gs", "az"})
"""Object stores, by the scheme that their own tools use."""
HUGGING_FACE_ENDPOINT = "https://huggingface.co"
METADATA = frozenset({"fd00:ec2::254", "100.100.100.200", "metadata.google.internal", "metadata.goog"})
"""Where instances of clouds keep their credentials, besides link-local addresses."""
_ELSEWHERE = "serve the file from another host; nothing is to be fetched from there"


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
        token_files: by host, or host:port, the file with its bearer token, or with ``user:password``.
        store_files: by ``s3://bucket`` and the like, the file with its credentials.
        hugging_face_endpoint: where ``hf://`` is asked for, without a slash at the end.
        mlflow_tracking_uri: where ``models:/`` is asked for, likewise; None where there is no such server.
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
    hugging_face_endpoint: str = HUGGING_FACE_ENDPOINT
    mlflow_tracking_uri: str | None = None

    @property
    def web(self) -> frozenset[str]:
        """What may be asked for on the way to a store's or a registry's file: https, and http where it is allowed."""
        return (self.schemes & WEB) | {"https"}


def allow(url: str, policy: Policy, *, schemes: Collection[str] | None = None) -> SplitResult:
    """Return the parts of ``url`` if it may be asked for.

    Args:
        url: as given, or where a redirect leads.
        policy: what is allowed.
        schemes: what may be asked for instead of the policy's schemes.

    Raises:
        StepError: ``forbidden_source``, naming the address without its secrets, and the setting that would have to
            allow it; for link-local addresses and metadata services no setting is advised.
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
            f"host {host!r} of {redact(url)} is not in downloads.allowed_hosts "
            f"({', '.join(sorted(policy.hosts)) or 'empty'})",
            _ELSEWHERE if _is_off_limits(host or "") else "serve the file from an allowed host, or add this one there",
        )
    return parts


def judge_addresses(parts: SplitResult, addresses: Sequence[str], policy: Policy) -> None:
    """Refuse a host that is not named and has an address that is not public.

    Args:
        parts: of the URL that is asked for.
        addresses: what its host has.
        policy: what is allowed.

    Raises:
        StepError: ``forbidden_source``, as ``allow`` does, with the IP address.
    """
    host = parts.hostname or ""
    private = sorted((text for text in addresses if not _is_public(text)), key=_is_off_limits)
    if private and host not in policy.hosts:
        worst = private[-1]
        kind, rule, hint = (
            ("link-local or metadata", "where machines keep credentials", _ELSEWHERE)
            if _is_off_limits(worst)
            else (
                "private",
                "and private hosts must be named",
                f'add "{host}" to downloads.allowed_hosts, if it is meant',
            )
        )
        raise StepError(
            ErrorCode.FORBIDDEN_SOURCE, f"{redact(parts.geturl())} has the {kind} address {worst}, {rule}", hint
        )


def redact(url: str) -> str:
    """Return ``url`` without user, password, query and fragment."""
    parts = urlsplit(url)
    lead = "://" if "://" in url else ":"  # models:/NAME/VERSION has no host
    return f"{parts.scheme}{lead}{parts.netloc.rpartition('@')[2]}{parts.path}"


def origin(parts: SplitResult) -> str:
    """Return the host, with the port where that is not the scheme's own."""
    own = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.hostname}" if parts.port in (None, own) else f"{parts.hostname}:{parts.port}"


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    return address.is_global and _inner(address).is_global and not address.is_multicast


def _is_off_limits(host: str) -> bool:
    """Return whether a host's name or address is one that nobody should be advised to allow."""
    try:
        inner = _inner(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return host in METADATA
    return inner.is_link_local or str(inner) in METADATA


def _inner(address: _Address) -> _Address:
    """Return the address of IPv4 that one of IPv6 stands for, else the address itself."""
    return getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
