"""What the agent's own port answers, and to whom.

Looking needs nothing but the port. Asking a model needs what inference needs, a command a token; a request that another
site makes a browser send is refused. What is shown goes out as JSON or as a file of the page, which writes text alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import select
import socket
import time
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from agent.health import framing, origin
from agent.health.access import PageAccess
from agent.health.board import FullError
from agent.health.exposition import CONTENT_TYPE, exposition
from agent.health.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.health.acting import Acting
    from agent.health.board import Board
    from agent.health.trying import Trying

IDLE_S, BODY_S, WRITE_S = 15.0, 20.0, 15.0
"""What a request's head, its body and each write of an answer may take."""
MAX_HEAD_BYTES, MAX_INPUT_BYTES, MAX_COMMAND_BYTES, MAX_UNREAD_BYTES = 65_536, 2 * 2**20, 4096, 16 * 2**20
CHUNK_BYTES = 65_536
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
_TAKING = re.compile(r"/models/[^/]+/(?:infer|compare)|/commands/[^/]+")
_FILE = re.compile(r"[a-z-]+(\.(?:html|js|css|svg))")
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Offer:
    """What the page offers besides a look.

    Attributes:
        access: who may do more.
        board: what is streamed, None for no stream.
        trying: asks the models, None where they are not asked.
        acting: takes commands, None where none are taken.
        names: hosts that this port is known by, besides addresses and ``localhost``.
    """

    access: PageAccess = field(default_factory=PageAccess)
    board: Board | None = None
    trying: Trying | None = None
    acting: Acting | None = None
    names: frozenset[str] = frozenset()


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection.

    Attributes:
        status: returns the body of ``status.json``.
        offer: see there.
        due: by when a connection has to have sent what it is sending, monotonic seconds; shared by all.
    """

    status: Callable[[], dict[str, Any]]
    offer: Offer
    due: dict[socket.socket, float]
    raw_requestline: bytes
    timeout = WRITE_S
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # what cannot be read is answered with a status line too
    server_version = "nibbled"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer who looks."""
        self._answer(self._look)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self._answer(self._look)

    def do_POST(self) -> None:
        """Answer who asks for something."""
        self._answer(self._do)

    def do_PUT(self) -> None:
        """Say which methods there are: here are none of the others that HTTP knows."""
        self._answer(self._allow)

    do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = do_CONNECT = do_PUT  # noqa: N815 - the standard library's

    def parse_request(self) -> bool:
        """Read a head, and refuse what another could read otherwise; returns whether there is a request to answer."""
        self.requestline, self.command, self.request_version = "", "", self.default_request_version
        try:
            fields = self._fields()
            framing.check(self.raw_requestline, fields)
        except RefusedError as error:
            self.send_error(error.status, str(error))
            return False
        source, self.rfile = self.rfile, io.BytesIO(b"".join((*fields, b"\r\n")))
        try:
            return super().parse_request()
        finally:
            self.rfile = source

    def _fields(self) -> list[bytes]:
        """Return the lines of the headers; raises ``RefusedError`` for more than are taken."""
        found: list[bytes] = []
        left = MAX_HEAD_BYTES
        while (line := self.rfile.readline(left + 1)) not in (b"\r\n", b"\n"):
            left -= len(line)
            if left < 0:
                raise RefusedError(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers of more than {MAX_HEAD_BYTES} bytes"
                )
            if not line:
                raise ConnectionResetError("the head was cut off")
            found.append(line)
        return found

    def _answer(self, answer: Callable[[str], None]) -> None:
        self.due.pop(self.connection, None)  # the head is here
        path = self.path.partition("?")[0]
        try:
            origin.check(self.headers, self.offer.names, is_navigation=answer == self._look)
            answer(path)
        except RefusedError as error:
            self._refuse(error)
        self.due[self.connection] = time.monotonic() + IDLE_S

    def _look(self, path: str) -> None:
        if path == "/status.json":
            self._send_json(self.status())
        elif path == "/metrics":
            self._send(HTTPStatus.OK, exposition(self.status()["health"]).encode(), CONTENT_TYPE)
        elif path == "/healthz":
            state = self.status()["health"]["status"]
            failing = state in ("failing", "starting")
            self._send_json({"status": state}, HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK)
        elif path == "/access":
            self._send_json(asdict(self.offer.access.rights(self.headers.get("Authorization"))))
        elif path == "/events":
            self._stream()
        elif path.startswith("/models/") and self.offer.trying is not None:
            self._send_json(self.offer.trying.describe(path.removeprefix("/models/")))
        else:
            self._send_file(path.removeprefix("/") or "index.html")

    def _do(self, path: str) -> None:
        offer, authorization = self.offer, self.headers.get("Authorization")
        match path.split("/"):
            case ["", "models", model, "infer" | "compare" as verb] if offer.trying is not None:
                offer.access.may_ask(authorization)
                with offer.trying.place():
                    body = self._body(MAX_INPUT_BYTES)
                    if verb == "infer":
                        self._send(*offer.trying.infer(model, body), JSON)
                    else:
                        self._send_json(offer.trying.compare(model, body))
            case ["", "commands", name] if offer.acting is not None:
                offer.access.may_command(authorization)
                operation_id = offer.acting.command(name, self._body(MAX_COMMAND_BYTES))
                self._send_json({"id": operation_id}, HTTPStatus.ACCEPTED)
            case _:
                raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")

    def _allow(self, path: str) -> None:
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"no {self.command} of {path[:64]} here")

    def _stream(self) -> None:
        if self.offer.board is None or self.command == "HEAD":
            raise RefusedError(HTTPStatus.NOT_FOUND, "no stream here")
        try:
            with self.offer.board.listening(self.headers.get("Last-Event-ID")) as frames:
                self.close_connection = True
                self._head(HTTPStatus.OK, EVENTS, {"Connection": "close", "X-Accel-Buffering": "no"})
                for frame in frames:
                    if self._has_left():
                        return
                    self.wfile.write(frame)
        except FullError as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None

    def _has_left(self) -> bool:
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        return bool(poller.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)

    def _send_file(self, name: str) -> None:
        match = _FILE.fullmatch(name)
        try:
            content = (files("agent.health") / "page" / name).read_bytes() if match else None
        except OSError:
            content = None
        if match is None or content is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")
        self._send(HTTPStatus.OK, content, f"{_KINDS[match[1]]}; charset=utf-8")

    def _body(self, most: int) -> bytes:
        """Read the request's body; raises ``RefusedError`` for one that is too large, too slow, or not JSON's type."""
        if self.headers.get_content_type() != JSON:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"this takes {JSON}")
        length = self._length()
        if length is None:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "this needs a Content-Length")
        if length > most:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, at most {most} are taken here")
        self.due[self.connection] = time.monotonic() + BODY_S
        body = self.rfile.read(length)
        self.due.pop(self.connection, None)
        del self.headers["Content-Length"]  # nothing is left to be read
        if len(body) < length:
            raise ConnectionResetError("the body was cut off")
        return body

    def _length(self) -> int | None:
        told = self.headers.get("Content-Length")
        return None if told is None else int(told)  # a number: see framing

    def _refuse(self, error: RefusedError) -> None:
        unread = self._length() or 0
        more = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
        if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
            more["Retry-After"] = "5"
        if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
            more["Allow"] = "POST" if _TAKING.fullmatch(self.path.partition("?")[0]) else "GET, HEAD"
        if unread or "Transfer-Encoding" in self.headers:
            more["Connection"] = "close"
            self.close_connection = True
        self._send_json({"error": str(error)}, error.status, more)
        if self.close_connection and unread <= MAX_UNREAD_BYTES:
            self._read_away(unread)

    def _read_away(self, count: int) -> None:
        """Take what is still coming, and keep nothing of it: who is cut off while sending reads no answer."""
        self.due[self.connection] = time.monotonic() + BODY_S
        while count > 0 and (chunk := self.rfile.read1(min(count, CHUNK_BYTES))):
            count -= len(chunk)

    def _send_json(self, body: Any, status: HTTPStatus = HTTPStatus.OK, more: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), JSON, more)

    def _send(self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(body)), **(more or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **more, **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request to this port in its own form; the standard library's is a page of HTML."""
        del explain
        self.close_connection = True
        self._send(
            code, json.dumps({"error": message or HTTPStatus(code).phrase}).encode(), JSON, {"Connection": "close"}
        )
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._read_away(MAX_UNREAD_BYTES)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: page views are not events."""
