"""One HTTP connection: uvicorn's, with the limits and the error form that it lacks.

Three differences: what is no HTTP gets the protocol's error object, a request's head has a deadline, and there is a
limit to how many connections one socket has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

# An idle connection costs little here, and every client that reconnects pays a round trip.
KEEP_ALIVE_S = 75
# Between the first byte of a request and the end of its headers; also what a silent new connection is granted.
HEAD_TIMEOUT_S = 10.0
# Below the customary 1,024 file descriptors of a process, with room for the supervisor's socket and for files.
MAX_CONNECTIONS = 768


class Connection(HttpToolsProtocol):
    """A connection as uvicorn's parser callbacks see it."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it at once when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, f"{MAX_CONNECTIONS} connections are open, no more are taken")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for a request's headers."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read."""
        self._refuse(400, msg)

    def _await_head(self) -> None:
        text = f"the request's headers were not complete after {HEAD_TIMEOUT_S:.0f} s"
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, 408, text)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, text: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = orjson.dumps({"error": text})
        retry = b"retry-after: 1\r\n" if status == 503 else b""  # noqa: PLR2004 - the status that is meant to be retried
        head = b"content-type: application/json\r\nconnection: close\r\n" + retry
        self.transport.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], head, len(body), body))
        self.transport.close()
