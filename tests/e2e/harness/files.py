"""A loopback HTTP file server with ranges that counts bytes, and can hold or cut a body where a test wants it."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
HOLD_S = 120.0
TICK_S = 0.05
_RANGE = re.compile(r"bytes=(\d+)-$")


@dataclass
class Request:
    """One GET: where the body began, and how many bytes of it were handed to the kernel."""

    start: int
    sent: int = 0


@dataclass
class HostedFile:
    """A file on offer.

    Attributes:
        url, content: where and what.
        requests: every GET so far.
        hold_at: offset at which bodies stop until ``released``, or None.
        cut_at: offset at which the next body ends with its connection, or None.
        bytes_per_s: how fast bodies are sent, None for as fast as they are taken.
    """

    url: str
    content: bytes
    requests: list[Request] = field(default_factory=list)
    hold_at: int | None = None
    cut_at: int | None = None
    bytes_per_s: int | None = None
    released: threading.Event = field(default_factory=threading.Event)

    def reference(self) -> dict[str, Any]:
        """Return ``url``, ``sha256`` and ``size`` as commands carry them."""
        return {"url": self.url, "sha256": hashlib.sha256(self.content).hexdigest(), "size": len(self.content)}


class FileServer:
    """Serves what it is given until it is closed."""

    def __init__(self) -> None:
        self._files: dict[str, HostedFile] = {}
        files = self._files

        class Handler(_Handler):
            hosted = files

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="files", daemon=True)
        self._thread.start()

    def host(self, name: str, content: bytes) -> HostedFile:
        """Offer ``content`` under ``name``."""
        file = HostedFile(f"http://{HOST}:{self._server.server_address[1]}/{name}", content)
        self._files[f"/{name}"] = file
        return file

    def close(self) -> None:
        """Let go of every held body and stop."""
        for file in self._files.values():
            file.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hosted: dict[str, HostedFile]

    def do_GET(self) -> None:
        file = self.hosted.get(self.path.partition("?")[0])
        if file is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(file.content).hexdigest()}"'
        match = _RANGE.match(self.headers.get("Range", ""))
        start = int(match[1]) if match and self.headers.get("If-Range") == tag else 0
        request = Request(start)
        file.requests.append(request)
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(file.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        self.end_headers()
        try:
            self._send(file, request)
        except ConnectionError:  # the client is gone, which is what some tests do to it
            self.close_connection = True

    def _send(self, file: HostedFile, request: Request) -> None:
        end, hold, cut = len(file.content), file.hold_at, file.cut_at
        if cut is not None:
            file.cut_at, end = None, cut
        if hold is not None and request.start < hold < end:
            self._write(file, hold, request)
            file.released.wait(HOLD_S)
        self._write(file, end, request)
        self.close_connection = True

    def _write(self, file: HostedFile, end: int, request: Request) -> None:
        while (at := request.start + request.sent) < end:
            rate = file.bytes_per_s
            part = file.content[at : end if rate is None else min(end, at + int(rate * TICK_S))]
            self.wfile.write(part)
            request.sent += len(part)
            if rate is not None:
                time.sleep(TICK_S)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: tests read ``HostedFile.requests``."""
