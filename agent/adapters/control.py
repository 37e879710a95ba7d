"""HTTP over the server's Unix socket: the OIP repository extension, as the supervisor speaks it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


class Calls:
    """The calls that wait for a server, so that they end when it does.

    The socket is the supervisor's: a connection to a server that is dead is taken by the kernel's backlog, and nothing
    would ever come of it.

    Args:
        is_alive: whether there is a server; asked once a connection is made.
    """

    def __init__(self, is_alive: Callable[[], bool]) -> None:
        self._is_alive = is_alive
        self._lock = threading.Lock()
        self._waiting: set[socket.socket] = set()

    @contextlib.contextmanager
    def watched(self, connection: socket.socket) -> Iterator[None]:
        """Let ``hang_up`` end what is said on a connection; raises ``ControlError`` if there is no server any more."""
        with self._lock:
            self._waiting.add(connection)
        try:
            if not self._is_alive():
                raise ControlError("there is no server to ask")
            yield
        finally:
            with self._lock:
                self._waiting.remove(connection)

    def hang_up(self) -> None:
        """End every call under way; its caller gets a ``ControlError``."""
        with self._lock:
            for connection in self._waiting:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(
    path: Path,
    method: str,
    route: str,
    body: dict[str, Any] | None = None,
    *,
    timeout_s: float = 30.0,
    calls: Calls | None = None,
) -> Any:
    """Send one request and return the parsed JSON answer (None for an empty one).

    Args:
        path: of the server's socket.
        method: of the request.
        route: of the request.
        body: of the request, None for none.
        timeout_s: how long a single wait for the server may take, in seconds.
        calls: ends the call when the server ends.

    Raises:
        ControlError: no connection, no answer in time, or a status other than 200.
    """
    payload = json.dumps(body).encode() if body is not None else None
    status, raw = exchange(path, method, route, payload, timeout_s=timeout_s, calls=calls)
    answer = _parse(raw)
    if status != http.HTTPStatus.OK:
        told = answer if isinstance(answer, dict) else {}
        raise ControlError(str(told.get("error") or f"HTTP {status}"), status, told.get("code"))
    return answer


def exchange(
    path: Path,
    method: str,
    route: str,
    payload: bytes | None = None,
    *,
    timeout_s: float = 30.0,
    calls: Calls | None = None,
    most_bytes: int | None = None,
) -> tuple[int, bytes]:
    """Send one request as it is and return the answer's status and body, whatever they say; arguments as in ``call``.

    Raises:
        ControlError: no connection, no answer in time, or one of more than ``most_bytes``.
    """
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.connect()
        with calls.watched(connection.sock) if calls else contextlib.nullcontext():
            connection.request(method, route, payload, {"Content-Type": "application/json"} if payload else {})
            response = connection.getresponse()
            raw = response.read(None if most_bytes is None else most_bytes + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(f"{method} {route}: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if most_bytes is not None and len(raw) > most_bytes:
        raise ControlError(f"{method} {route}: the answer has more than {most_bytes} bytes")
    return response.status, raw


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None
