"""The agent's own port: the page, the same facts as JSON and as a stream, ``/metrics`` and ``/healthz``.

Served by the standard library on threads of its own: a page that people look at now and then is not worth a web
framework's memory in a process that has to stay small. Connections are few, each with a deadline for what it sends and
for what it takes, so that neither a slow browser nor many of them reach anything else. Loopback by default; what a
request may do is decided in `agent.health.handler`.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
from dataclasses import replace
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import structlog

from agent.health.handler import IDLE_S, Handler, Offer

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger("page")
CONNECTIONS = 32
BACKLOG = 32
LOOK_S = 0.5
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: application/json\r\n"
    b'Connection: close\r\nContent-Length: 32\r\n\r\n{"error":"too many connections"}'
)


class StatusSite:
    """Serves the page.

    Args:
        host, port: where to listen; port 0 takes a free one.
        status: returns the body of ``status.json``.
        offer: what is offered besides.
        connections: how many may be open at a time.

    Raises:
        OSError: when the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        status: Callable[[], dict[str, Any]],
        offer: Offer | None = None,
        *,
        connections: int = CONNECTIONS,
    ) -> None:
        class Bound(Handler):
            pass

        offer = offer or Offer()
        Bound.status, Bound.due = staticmethod(status), {}
        Bound.offer = replace(offer, names=offer.names | {host.lower()})
        self._server = _Server((host, port), Bound, connections)
        self._board = offer.board
        self._thread = threading.Thread(target=self._server.serve_forever, args=(LOOK_S,), name="page", daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def start(self) -> None:
        """Start serving."""
        if self._board is not None:
            self._board.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._board is not None:
            self._board.close()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are few, and none waits for its client for ever."""

    daemon_threads = True
    request_queue_size = BACKLOG

    def __init__(self, address: tuple[str, int], handler: type[Handler], connections: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = threading.BoundedSemaphore(connections)
        self._due = handler.due
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking the resolver for the host's name, which can take long where there is none."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.send(_FULL)
            self.shutdown_request(request)
            return
        self._due[request] = time.monotonic() + IDLE_S
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def service_actions(self) -> None:
        """End what is late: a timeout of the socket begins anew with every byte that drips in."""
        now = time.monotonic()
        for connection, due in list(self._due.items()):
            if now >= due:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what is a fault here; a client that left, or was too slow, is none."""
        del request, client_address
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("page_failed", at="request", exc_info=error)

    def _leave(self, request: Any) -> None:
        self._due.pop(request, None)
        self._places.release()
