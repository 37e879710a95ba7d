"""HTTP over the server's Unix socket: the OIP repository extension, as the supervisor speaks it."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class ControlError(Exception):
    """The server could not be reached, or answered with an error.

    Attributes:
        status: HTTP status, or None when there was no answer.
        code: the server's error code, or None.
    """

    def __init__(self, detail: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(path: Path, method: str, route: str, body: dict[str, Any] | None = None, *, timeout_s: float = 30.0) -> Any:
    """Send one request and return the parsed JSON answer (None for an empty one).

    Raises:
        ControlError: no connection, no answer in time, or a status other than 200.
    """
    connection = _UnixConnection(path, timeout_s)
    try:
        payload = json.dumps(body).encode() if body is not None else None
        connection.request(method, route, payload, {"Content-Type": "application/json"} if payload else {})
        response = connection.getresponse()
        raw = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(f"{method} {route}: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    answer = _parse(raw)
    if response.status != http.HTTPStatus.OK:
        told = answer if isinstance(answer, dict) else {}
        raise ControlError(str(told.get("error") or f"HTTP {response.status}"), response.status, told.get("code"))
    return answer


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None
