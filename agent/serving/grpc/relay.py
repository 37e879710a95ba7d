"""From the inherited TCP socket to the Unix socket of grpcio, which cannot listen on a socket that it did not open.

Bytes are passed on as they are, but for one frame: at the end every client is told to ask elsewhere, while what it has
asked and what is on its way is still answered; grpcio's own farewell cancels the latter. What this gains over a port of
grpcio's own: connections wait in the backlog of the supervisor's socket while the server is replaced, the address is
bound exactly as configured, connections are bounded. Encryption ends here, where that frame can still be put in; it
is that of the HTTP port, with the same certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import structlog

from agent.serving.grpc.frames import GO_AWAY, Boundaries
from agent.serving.tls import HANDSHAKE_S

if TYPE_CHECKING:
    import socket
    import ssl
    from pathlib import Path

log = structlog.get_logger("grpc")
# Three file descriptors each, beside those of HTTP; a client needs one for any number of calls.
MAX_CONNECTIONS = 64
BACKLOG = 512
# For the last bytes to reach clients that take them.
FINISH_S = 1.0


class Relay:
    """Accepts connections and joins each with one to grpcio.

    Args:
        listener: bound and listening.
        path: where grpcio listens.
        tls: what connections are encrypted with, None leaves them plain.
        max_connections: how many there may be; what comes beyond is closed at once.
    """

    def __init__(
        self,
        listener: socket.socket,
        path: Path,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._listener = listener
        self._path = path
        self._tls = tls
        self._max_connections = max_connections
        self._fronts: set[_Front] = set()
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Begin to accept, with what waits in the backlog."""
        bounds: dict[str, Any] = {} if self._tls is None else {"ssl_handshake_timeout": HANDSHAKE_S}
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Front(self), sock=self._listener, ssl=self._tls, backlog=BACKLOG, **bounds
        )

    def stop(self) -> None:
        """Accept no more; whoever comes waits in the backlog for the next server. What is joined stays joined."""
        if self._server is not None:
            self._server.close()

    def send_away(self) -> None:
        """Tell every client to open no more calls on its connection."""
        for front in self._fronts:
            front.send_away()

    async def finish(self) -> None:
        """Return when nothing is joined any more; what grpcio did not end within ``FINISH_S`` is cut off."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), FINISH_S)
        for front in self._fronts:
            front.abort()
        await self._idle.wait()

    def take(self, front: _Front) -> None:
        """Join a new connection with grpcio."""
        if len(self._fronts) >= self._max_connections:
            log.warning("connection_refused", open=len(self._fronts))
            front.abort()
            return
        self._fronts.add(front)
        self._idle.clear()
        back = _Half()
        front.join(back)  # now: the client's first bytes may come before the task below runs
        link = asyncio.get_running_loop().create_task(self._link(front, back))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    def drop(self, front: _Front) -> None:
        """Forget a connection that ended."""
        self._fronts.discard(front)
        if not self._fronts:
            self._idle.set()

    async def _link(self, front: _Half, back: _Half) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: back, str(self._path))
        except OSError as error:
            log.error("relay_failed", error=str(error))  # noqa: TRY400 - a sentence is enough
            front.abort()


class _Half(asyncio.Protocol):
    """One end of a joined connection. Reads only while the other end can take what it reads."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._other: _Half | None = None
        self._early: list[bytes] = []
        self._is_over = False

    def join(self, other: _Half) -> None:
        """Pass what is read here on to ``other``, and the other way round."""
        self._other, other._other = other, self

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.writelines(self._early)
        self._early.clear()
        if self._is_over:
            self._transport.close()
        elif self._other is not None:
            self._other.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            self._other.send(data)

    def send(self, data: bytes) -> None:
        """Send ``data``, or keep it until there is a connection."""
        if self._transport is not None:
            self._transport.write(data)
            return
        self._early.append(data)
        self.pause_writing()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._other is not None:
            self._other.end()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        """Send what is left, and close."""
        self._is_over = True
        if self._transport is not None:
            self._transport.close()

    def pause_reading(self) -> None:
        """Read no more for now."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()


class _Front(_Half):
    """The client's end."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay
        self._boundaries = Boundaries()
        self._is_leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._relay.take(self)

    def send(self, data: bytes) -> None:
        """Send ``data``; the first place in it where that is possible takes the farewell, if there is one to say."""
        place = self._boundaries.follow(data)
        if self._is_leaving and place is not None:
            self._is_leaving = False
            data = data[:place] + GO_AWAY + data[place:]
        super().send(data)

    def send_away(self) -> None:
        """Tell the client to open no more calls here, now or behind the frame that is being sent."""
        self._is_leaving = not self._boundaries.is_at
        if not self._is_leaving:
            super().send(GO_AWAY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.drop(self)
        super().connection_lost(exc)
