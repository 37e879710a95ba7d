"""An HTTP server for files on loopback that misbehaves on request."""

from __future__ import annotations

import ssl
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass
class Reply:
    """One answer, as far as it differs from serving the file properly.

    Attributes:
        status: sent instead of 200 or 206, with ``headers`` and no file.
        headers: sent besides.
        cut_after: bytes of the body after which the connection is closed.
        stalls: send the headers, then nothing until the server is closed.
        endless: send no length and the file over and over until the client leaves.
        every_s: send the body byte by byte, this far apart, until the client leaves.
        head_every_s: send the headers so.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stalls: bool = False
    endless: bool = False
    every_s: float | None = None
    head_every_s: float | None = None


@dataclass
class FileServer:
    """What a test arranges and reads back.

    Attributes:
        content: the file, at every path.
        etag: its tag, None to send none.
        has_ranges: whether Range is understood.
        has_if_range: whether If-Range is.
        judge: returns the status by which a request is refused, None to answer it.
        replies: used up one a request before the server behaves.
        requests: the headers of every request, with the path as ``:path``.
        sent_bytes: bytes of bodies sent so far.
        before: called at every request, with its number from 1.
    """

    content: bytes
    etag: str | None = '"one"'
    has_ranges: bool = True
    has_if_range: bool = True
    judge: Callable[[str, dict[str, str]], int | None] = lambda _path, _headers: None
    replies: list[Reply] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    before: Callable[[int], None] = lambda _number: None
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def body_from(self, headers: Any) -> int | None:
        """Return the offset that a Range asks for, None for the whole file; If-Range has to match."""
        asked = headers.get("Range")
        if not (self.has_ranges and asked):
            return None
        if self.has_if_range and headers.get("If-Range") not in (None, self.etag):
            return None
        return int(asked.removeprefix("bytes=").rstrip("-"))


@contextmanager
def serve(content: bytes, tls: tuple[Path, Path] | None = None) -> Iterator[FileServer]:
    """Serve ``content`` on a free loopback port until the block ends, over TLS with a certificate and its key."""
    files = FileServer(content)
    httpd = _Server(files)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True, do_handshake_on_connect=False)
    files.url = f"{'https' if tls else 'http'}://127.0.0.1:{httpd.server_address[1]}/kanji.pt"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield files
    finally:
        files.closing.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, files: FileServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(
            sys.exc_info()[1], (ConnectionError, ssl.SSLError)
        ):  # a client may leave in the middle of a body
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        files = self.server.files
        files.requests.append({**dict(self.headers.items()), ":path": self.path})
        files.before(len(files.requests))
        reply = files.replies.pop(0) if files.replies else Reply()
        self.close_connection = True
        refused = files.judge(self.path, dict(self.headers.items()))
        if refused is not None:
            self._begin(refused, {"Content-Length": "0"})
        elif reply.head_every_s is not None:
            self._slowly(b"HTTP/1.1 200 OK\r\nX-Nothing: " + bytes(1 << 16), reply.head_every_s)
        elif reply.status is not None:
            self._begin(reply.status, {"Content-Length": "0", **reply.headers})
        elif reply.endless:
            self._endless()
        else:
            self._file(reply)

    def _file(self, reply: Reply) -> None:
        files = self.server.files
        start = files.body_from(self.headers)
        size = len(files.content)
        if start is not None and start >= size:
            self._begin(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(size - (start or 0))}
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if files.etag:
            headers["ETag"] = files.etag
        headers |= reply.headers
        self._begin(200 if start is None else 206, headers)
        if reply.stalls:
            files.closing.wait(30)
            return
        if reply.every_s is not None:
            self._slowly(files.content[start or 0 :], reply.every_s)
            return
        body = files.content[start or 0 :][: reply.cut_after]
        files.sent_bytes += len(body)  # before they leave: the client may ask as soon as it has them
        self.wfile.write(body)

    def _slowly(self, told: bytes, every_s: float) -> None:
        try:
            for index in range(len(told)):
                if self.server.files.closing.wait(every_s):
                    return
                self.wfile.write(told[index : index + 1])
        except OSError:
            return

    def _endless(self) -> None:
        files = self.server.files
        self._begin(200, {"Connection": "close"})
        try:
            while not files.closing.is_set():
                self.wfile.write(files.content)
                files.sent_bytes += len(files.content)
        except OSError:
            return

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
