"""The listening sockets that the supervisor owns and the server inherits.

They outlive any server: while one is replaced, new connections wait in the kernel's backlog. When the agent ends, the
server's copies are the last.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKLOG = 512
"""Connections that wait at most (capped by net.core.somaxconn)."""
CONTROL_BACKLOG = 16


def listen_tcp(host: str, port: int) -> socket.socket:
    """Open the socket for clients.

    Raises:
        OSError: the address is taken, or is not one of this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(listener, (host, port), BACKLOG)


def listen_unix(path: Path) -> socket.socket:
    """Open the control socket, to which only this process's user can connect; a path left over is replaced.

    Raises:
        OSError: the path is too long (108 bytes on Linux), or its directory cannot be written.
    """
    path.unlink(missing_ok=True)
    with _umask(0o177):
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path), CONTROL_BACKLOG)


def _bound(listener: socket.socket, address: tuple[str, int] | str, backlog: int) -> socket.socket:
    try:
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
