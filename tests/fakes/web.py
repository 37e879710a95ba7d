"""An HTTP server on loopback whose answers are a function; what a stand-in for a service is made of."""

from __future__ import annotations

import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message
    from pathlib import Path


class Asked(NamedTuple):
    """One request."""

    method: str
    url: SplitResult
    headers: Message


class Answered(NamedTuple):
    """One answer; its length is told, unless ``headers`` say how it is sent."""

    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    body: bytes = b""


@dataclass
class Web:
    """Where it is, and what it was asked."""

    url: str
    answer: Callable[[Asked], Answered]
    requests: list[Asked] = field(default_factory=list)

    @property
    def host(self) -> str:
        """Its address and port."""
        return urlsplit(self.url).netloc

    def paths(self) -> list[str]:
        """Return the paths that were asked for, in order."""
        return [asked.url.path for asked in self.requests]


@contextmanager
def web(answer: Callable[[Asked], Answered], tls: tuple[Path, Path] | None = None) -> Iterator[Web]:
    """Serve on a free port of 127.0.0.1 until the block ends, over TLS with a certificate and its key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = Asked(self.command, urlsplit(self.path), self.headers)
            site.requests.append(asked)
            status, headers, body = site.answer(asked)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the standard library's name

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site = Web(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
