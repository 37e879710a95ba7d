"""Whether a request comes from the page itself, or from another site that a browser has open. Pure.

Loopback keeps other machines out and browsers in: any site may send requests to 127.0.0.1, and one whose name changes
its address (DNS rebinding) passes for the page. So ``Host`` has to be an address or a name that is known here, which no
stranger's name is, and what ``Origin`` and ``Sec-Fetch-Site`` say has to be this very page. What is no browser sends
neither.
"""

from __future__ import annotations

import ipaddress
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from agent.health.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection
    from email.message import Message

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_OWN = ("same-origin", "none")


def check(headers: Message, names: Collection[str], *, is_navigation: bool = False) -> None:
    """Let a request pass.

    Args:
        headers: of the request.
        names: hosts that are known here besides addresses and ``localhost``, in small letters.
        is_navigation: whether it may be a page that is opened, as from a link elsewhere.

    Raises:
        RefusedError: 421 for a host that is not known, 403 for a request that another site made a browser send.
    """
    host = headers.get("Host", "")
    if not is_known(host, names):
        raise RefusedError(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"the host {host[:128]!r} is not known here: use an address, or add the name to status.allowed_hosts",
        )
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "none")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise RefusedError(HTTPStatus.FORBIDDEN, f"a page of {origin[:128]!r} may not ask here")
    if site not in _OWN and not (is_navigation and headers.get("Sec-Fetch-Mode") == "navigate"):
        raise RefusedError(HTTPStatus.FORBIDDEN, "a page of another site may not ask here")


def is_known(host: str, names: Collection[str]) -> bool:
    """Return whether a ``Host`` is an address, ``localhost``, or one of ``names``."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["name"].strip("[]").lower()
    return name == "localhost" or name in names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
