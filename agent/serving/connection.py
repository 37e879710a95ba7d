"""One HTTP connection: uvicorn's, with the limits and the error form that it lacks.

Rules: what is no HTTP gets the protocol's error object; a request's head has a deadline and a size; a reply has to be
read; there is a limit to how many connections one socket has. Nothing is written between the lines of a reply that
is still due: a mistake behind a complete request ends the connection after its answer. Offers of other protocols are
not taken up, and cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from agent.serving.limits import DEFAULT, Limits

if TYPE_CHECKING:
    import asyncio
    from collections import Counter
    from typing import Any

    from uvicorn import Config
    from uvicorn.server import ServerState

CONTINUE = b"HTTP/1.1 100 "
MOST_JOINED = 64 * 1024
"""Bytes of a body that are copied behind the head; a larger one is sent by itself."""


class Joining:
    """A transport that keeps the head of one reply until its body comes: one packet, and one call to the system."""

    __slots__ = ("_head", "_is_sent", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._is_sent = False

    def write(self, data: bytes) -> None:
        """Keep the head, send everything else at once; "go on" is no head."""
        if self._is_sent or data.startswith(CONTINUE):
            self._transport.write(data)
        elif not self._head:
            self._head = data
        else:
            self._is_sent = True
            self._transport.write(self._head + data if len(data) <= MOST_JOINED else self._head)
            if len(data) > MOST_JOINED:
                self._transport.write(data)

    def is_closing(self) -> bool:
        """Return whether the connection ends."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close, with a head that nothing followed sent before."""
        if self._head and not self._is_sent:
            self._transport.write(self._head)
        self._transport.close()


class Connection(HttpToolsProtocol):
    """A connection as uvicorn's parser callbacks see it.

    Args:
        config, server_state, app_state, _loop: uvicorn's.
        limits: see there.
        responses: replies by status; those that never reach the application are counted here.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits = DEFAULT,
        responses: Counter[int] | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._responses = responses
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._tail_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._half_closed_timer: asyncio.TimerHandle | None = None
        self._ends = False
        self._is_resuming = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it at once when there are too many."""
        super().connection_made(transport)
        most = self._limits.max_connections
        if len(self.connections) > most:
            self._refuse(503, f"{most} connections are open, no more are taken")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, as long as a head does not grow without end."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        left = data
        while left:
            left = self._parse(left)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse(431, f"the request's headers have more than {self._limits.max_head_bytes} bytes")

    def _parse(self, data: bytes) -> bytes:
        """Read ``data``, or up to an offer of another protocol, and return what is left."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP request")
        return b""

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that closed its end only, if that does not take long; return whether it may."""
        # TLS knows no half-closed connections.
        if self.scheme == "https" or not self._end("the body ended before it was complete"):
            return None
        self._half_closed_timer = self.loop.call_later(self._limits.half_closed_s, self.transport.close)
        return True

    def pause_writing(self) -> None:
        """Begin to wait until the client reads on."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Begin to wait for a request's headers."""
        if self._is_resuming:
            return
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        if self._is_resuming:
            return
        self._stop_head_timer()
        super().on_headers_complete()
        if self.scope["method"] == "POST":  # its replies have a body, always
            self.cycle.transport = Joining(self.transport)  # type: ignore[assignment]  # what a cycle uses of one

    def on_response_complete(self) -> None:
        """Go on with the next request, if there may be one."""
        is_last = self._ends and not self.pipeline
        is_read = not self.cycle.more_body or bool(self.pipeline)
        super().on_response_complete()
        if is_last:
            self.transport.close()
        elif not is_read and not self.transport.is_closing():
            # Refused before its body was read: the rest of it is let pass, for a while.
            self._tail_timer = self.loop.call_later(self._limits.head_s, self.transport.close)

    def on_message_complete(self) -> None:
        """Take note of the end of a body."""
        if self.parser.should_upgrade() and self._framing():
            return  # the parser believes that what follows is another protocol; see _ignore_upgrade
        if self._tail_timer is not None:
            self._tail_timer.cancel()
            self._tail_timer = None
        super().on_message_complete()

    def on_url(self, url: bytes) -> None:
        """Collect a request's target."""
        if not self._is_resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        if not self._is_resuming:
            super().on_header(name, value)

    def _framing(self) -> list[bytes]:
        """Return the headers that announce a body, as lines."""
        names = (b"content-length", b"transfer-encoding")
        return [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name in names]

    def _ignore_upgrade(self) -> None:
        """Read on as HTTP/1.1: clients that offer another protocol send the request's body all the same.

        The parser stops behind the headers of such a request, so a new one is told of the body that is to come.
        """
        framing = self._framing()
        self.parser = httptools.HttpRequestParser(self)
        if framing:
            self._is_resuming = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
            self._is_resuming = False

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read."""
        if not self._is_busy():
            self._refuse(400, msg)
        else:
            self._end(msg)

    def _end(self, text: str) -> bool:
        """Take no more requests; return whether answers to complete ones are still due.

        An incomplete request is refused with ``text`` if it is its turn, and forgotten behind others.
        """
        self._stop_head_timer()
        if not self._is_busy() or self.transport.is_closing():
            return False
        if not self.pipeline:
            if self.cycle.more_body:
                self._refuse(400, text)
                return False
            self.cycle.keep_alive = False
        elif self.cycle.more_body:
            self.pipeline.popleft()
        self._ends = True
        return True

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._limits.head_s, self._end_head)

    def _end_head(self) -> None:
        if self._is_busy():
            # A request that was sent ahead: reading is paused, so its lateness is not the client's.
            self._head_timer = self.loop.call_later(self._limits.head_s, self._end_head)
            return
        self._refuse(408, f"the request's headers were not complete after {self._limits.head_s:g} s")

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        for timer in (self._tail_timer, self._write_timer, self._half_closed_timer):
            if timer is not None:
                timer.cancel()

    def _refuse(self, status: int, text: str) -> None:
        self._stop_head_timer()
        if self.transport.is_closing():
            return
        if self._is_busy() and self.cycle.response_started:
            self.transport.close()
            return
        if self._responses is not None:
            self._responses[status] += 1
        body = orjson.dumps({"error": text})
        retry = b"retry-after: 1\r\n" if status == 503 else b""  # noqa: PLR2004 - the status that is meant to be retried
        head = b"content-type: application/json\r\nconnection: close\r\n" + retry
        self.transport.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], head, len(body), body))
        self.transport.close()
