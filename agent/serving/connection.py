"""One HTTP connection: uvicorn's, with the limits and the error form that it lacks.

Rules: what is no HTTP gets the protocol's error object; a request's head has a deadline and a size; a reply has to be
read; there is a limit to how many connections one socket has. Nothing is written between the lines of a reply that
is still due: a mistake behind a complete request ends the connection after its answer. Offers of other protocols are
not taken up, and cost nothing. Ordinary inference does not go through the application, see ``direct``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from agent.serving.direct import PATIENCE_S, DirectInference
from agent.serving.head import RefusedHeadError, check_head
from agent.serving.limits import DEFAULT, Limits

if TYPE_CHECKING:
    import asyncio
    from collections import Counter
    from collections.abc import Sequence

    from uvicorn import Config
    from uvicorn.server import ServerState

    from agent.serving.direct import Direct
    from agent.serving.replies import Header

CONTINUE = b"HTTP/1.1 100 "
SHORTEST_LINE = b"GET  HTTP/1.1\r\n"
"""What a request's line has beside its target, at least."""
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
        direct: answers ordinary inference, None leaves all to the application.
    """

    cycle: Any
    """The request that is answered, and what is written of its answer: uvicorn's, or a ``DirectInference``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits = DEFAULT,
        responses: Counter[int] | None = None,
        direct: Direct | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._limits = limits
        self._responses = responses
        self._direct = direct
        self._inference: DirectInference | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._pending_bytes = 0
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
        if self._inference is not None:  # others may have been sent ahead behind it
            self._inference.leave()

    def data_received(self, data: bytes) -> None:
        """Parse what came, as long as a head does not grow without end."""
        if self.transport.is_closing():
            return
        awaited = self._head_timer
        left = data
        while left:
            left = self._parse(left)
        if self._patience is None and isinstance(self.cycle, DirectInference) and self.cycle.more_body:
            self._patience = self.loop.call_later(PATIENCE_S, self._hand_over)
        if awaited is not None and awaited is self._head_timer:
            # All of it belongs to one head, whose lines may have no end: those are not told of by the parser.
            self._pending_bytes += len(data)
            if self._pending_bytes > self._limits.max_head_bytes:
                self._refuse(*self._too_long())

    def _parse(self, data: bytes) -> bytes:
        """Read ``data``, or up to an offer of another protocol, and return what is left."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            refused = error.__context__
            if isinstance(refused, RefusedHeadError):
                self._refuse_in_turn(refused.status, str(refused))
            else:
                self.send_400_response(f"this is no HTTP request: {error}")
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
        # Not for any bytes that come: lines without a request, and what is left of a refused body, leave it idle.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._head_bytes = 0
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        if self._is_resuming:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()  # set by the end of an answer, if this request had begun before it
        names = dict(self.headers)
        if b"host" not in names or len(names) != len(self.headers) or b"transfer-encoding" in names:
            check_head(self.headers, self.parser.get_http_version())
        self._stop_head_timer()
        direct = self._begin_direct()
        if direct is None:
            self._begin()
        else:
            self.cycle = self._inference = direct

    def _begin(self) -> None:
        super().on_headers_complete()
        if self.scope["method"] == "POST":  # its replies have a body, always
            self.cycle.transport = Joining(self.transport)

    def _begin_direct(self) -> Any:
        """Return an inference that does not need the application, or None."""
        is_plain = self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1"
        if self._direct is None or not is_plain or self._is_busy() or self._ends or self.flow.write_paused:
            return None
        return self._direct.begin(self, self.url, self.headers, keep_alive=self.parser.should_keep_alive())

    def _hand_over(self) -> None:
        """Let the application go on with what was begun without it."""
        begun = self.cycle
        self._stop_patience()
        if self.transport.is_closing():
            return
        self.cycle = None  # as before the first request: nothing is due
        self._begin()
        self.cycle.body += b"".join(begun.parts)
        self.cycle.more_body = begun.more_body
        self.cycle.message_event.set()

    def on_body(self, body: bytes) -> None:
        """Collect a part of a body."""
        if isinstance(self.cycle, DirectInference):
            self.cycle.parts.append(body)
        else:
            super().on_body(body)

    def finish(self, inference: DirectInference, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Write the whole answer to an inference that the application knows nothing of."""
        if inference.disconnected:
            return
        lines = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        head = b"".join((STATUS_LINE[status], *lines, b"\r\n"))
        inference.response_started = inference.response_complete = True
        if len(body) <= MOST_JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        if not inference.keep_alive:
            self.transport.close()
        self.on_response_complete()

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
        if not isinstance(self.cycle, DirectInference):
            super().on_message_complete()
            return
        self._stop_patience()
        if not self.cycle.ask():
            self._hand_over()

    def on_url(self, url: bytes) -> None:
        """Collect a request's target."""
        if not self._is_resuming:
            super().on_url(url)
            self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; what comes behind the body is counted and forgotten (RFC 9110, 6.5.1)."""
        if self._is_resuming:
            return
        self._count_head(len(name) + len(value))
        if self._head_timer is not None:
            super().on_header(name, value)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            raise RefusedHeadError(*self._too_long())

    def _too_long(self) -> tuple[int, str]:
        """Return what is said of a head over its limit: whether the target alone is to blame is looked at only here."""
        most = self._limits.max_head_bytes
        if len(SHORTEST_LINE) + len(self.url) > most:
            return 414, f"the request's first line has more than {most} bytes: send in the body what is long"
        return 431, f"the request's headers have more than {most} bytes"

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
        self._refuse_in_turn(400, msg)

    def _refuse_in_turn(self, status: int, text: str) -> None:
        """Refuse a request, unless answers before it are still due: those are the last then."""
        if not self._is_busy():
            self._refuse(status, text)
        else:
            self._end(text, status)

    def _end(self, text: str, status: int = 400) -> bool:
        """Take no more requests; return whether answers to complete ones are still due.

        An incomplete request is refused with ``text`` if it is its turn, and forgotten behind others.
        """
        self._stop_head_timer()
        if not self._is_busy() or self.transport.is_closing():
            return False
        if not self.pipeline:
            if self.cycle.more_body:
                self._refuse(status, text)
                return False
            self.cycle.keep_alive = False
        elif self.cycle.more_body:
            self.pipeline.popleft()
        self._ends = True
        return True

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._pending_bytes = 0
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

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        self._stop_patience()
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
