"""The running agent, asked at its own port; and whether there is one at all."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 5.0
MAX_BYTES = 16 * 2**20
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound; a listener on all is asked on one


class NoAgentError(Exception):
    """Nobody answers, or not as an agent does; the text says where and why."""


def url(host: str, port: int) -> str:
    """Return the address of the agent's own port, as it is reached from this box."""
    name = _ANY.get(host, host)
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


def status(address: str) -> dict[str, Any]:
    """Return the body of ``status.json``.

    Raises:
        NoAgentError: nobody answers there within five seconds, or something else does.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}status.json", timeout=TIMEOUT_S) as response:
            body = json.loads(response.read(MAX_BYTES))
            return {**body, "health": dict(body["health"]), "device_id": str(body["device_id"])}
    except (ValueError, KeyError, TypeError, http.client.HTTPException):
        raise NoAgentError(f"{address} is not an agent's: its answer is no status") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise NoAgentError(f"no agent answers at {address}: {getattr(reason, 'strerror', None) or reason}") from None


def is_running(control: Path) -> bool | None:
    """Return whether an agent listens on its control socket; None if this user may not look.

    The connection is closed at once, which the agent's server takes for a client that went away.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(TIMEOUT_S)
            probe.connect(str(control))
    except PermissionError:
        return None
    except OSError:
        return False
    return True
