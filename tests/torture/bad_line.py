"""A file server on loopback whose line breaks where it is told to, and which counts what it sent.

The count is an upper bound of what was fetched: it includes what was still in the sender's and the receiver's buffers
when the line broke.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUT, RESET, STALL, KILL = "cut", "reset", "stall", "kill"
KINDS = (CUT, RESET, STALL, KILL)
PIECE = 32 * 1024
_SEND_BUFFER = 32 * 1024
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Break:
    """Where in the file the line breaks, and how."""

    offset: int
    kind: str


@dataclass
class Line:
    """What a campaign arranges and reads back.

    Attributes:
        content: the file.
        breaks: in the order of their offsets; used up from the front.
        rate: bytes/s that are sent.
        kill: called where a process is to be killed.
        sent: bytes of the file sent so far.
        furthest: end of what was sent.
        lost: for each break that came, bytes sent before it that were asked for again.
    """

    content: bytes
    rate: int
    breaks: list[Break] = field(default_factory=list)
    kill: Callable[[], None] = lambda: None
    sent: int = 0
    furthest: int = 0
    lost: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""
    _broken: str | None = None
    _is_over: threading.Event = field(default_factory=threading.Event)

    def asked(self, start: int) -> None:
        """Note that the file is asked for from ``start`` on."""
        if self._broken is not None:
            self.lost.append((self._broken, self.furthest - start))
            self._broken = None

    def send(self, connection: socket.socket, start: int) -> None:
        """Send the file from ``start`` on, as far as the line holds."""
        began, first = time.monotonic(), start
        while start < len(self.content):
            following = self.breaks[0] if self.breaks else None
            end = min(start + PIECE, len(self.content))
            if following is not None and start < following.offset <= end:
                end = following.offset
            connection.sendall(memoryview(self.content)[start:end])
            self.sent += end - start
            start = self.furthest = end
            if following is not None and end == following.offset:
                self.breaks.pop(0)
                self._break(connection, following.kind)
                return
            self._is_over.wait(max(0.0, began + (end - first) / self.rate - time.monotonic()))

    def _break(self, connection: socket.socket, kind: str) -> None:
        self._broken = kind
        if kind == KILL:
            self.kill()
        elif kind == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            os.close(connection.detach())  # at once: an orderly end would come first otherwise
        elif kind == STALL:
            connection.settimeout(30.0)
            connection.recv(1)  # until the other side leaves


@contextmanager
def bad_line(content: bytes, rate: int) -> Iterator[Line]:
    """Serve ``content`` until the block ends."""
    line = Line(content, rate)

    class Handler(_Handler):
        pass

    Handler.line = line
    httpd = _Server(("127.0.0.1", 0), Handler)
    line.url = f"http://127.0.0.1:{httpd.server_address[1]}/file"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield line
    finally:
        line._is_over.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
        line.content = b""  # what still hangs on to the line needs it no more


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients are killed here."""


class _Handler(BaseHTTPRequestHandler):
    line: Line
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        size = len(self.line.content)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.line.asked(start)
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"file"')
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.line.send(self.connection, start)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
