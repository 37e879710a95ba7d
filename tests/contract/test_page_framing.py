"""Where one request to the page's port ends and the next begins: raw bytes, as a proxy in front may pass them on."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from typing import TYPE_CHECKING

import pytest

from agent.health import handler
from agent.health.access import PageAccess
from agent.health.acting import Acting
from agent.health.handler import Offer
from agent.tokens import TokenFile
from tests.fakes import page
from tests.fakes.page import site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.deployment.intake import CommandMessage
    from agent.health.web import StatusSite

TOKEN = b"own-" + b"o" * 32
HOST = b"Host: localhost\r\n"
HIDDEN = b"GET /status.json HTTP/1.1\r\n" + HOST + b"\r\n"
BODY = b'{"model": "kanji"}'
COMMAND = (
    b"POST /commands/rollback HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer " + TOKEN + b"\r\n"
)
CHUNKED = b"12\r\n" + BODY + b"\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def sent() -> list[CommandMessage]:
    return []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sent: list[CommandMessage]) -> Iterator[StatusSite]:
    path = tmp_path_factory.mktemp("tokens") / "own"
    path.write_bytes(TOKEN)
    path.chmod(0o600)
    with site(Offer(PageAccess(TokenFile(path)), acting=Acting(sent.append))) as found:
        yield found


def exchange(served: StatusSite, text: bytes) -> bytes:
    """Send bytes, and return everything that comes until the other end closes."""
    with socket.create_connection(page.address(served), timeout=page.WAIT_S) as connection:
        connection.sendall(text)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found


def statuses(told: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", told)


def length(count: int) -> bytes:
    return b"Content-Length: %d\r\n" % count


GET = b"GET /healthz HTTP/1.1\r\n"
DOUBTFUL = {
    "a look with a body": GET + HOST + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "a look with chunks": GET + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "a length and chunks": COMMAND + HOST + length(len(BODY)) + b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
    "two lengths": COMMAND + HOST + length(len(BODY)) + length(5) + b"\r\n" + BODY,
    "the same length twice": COMMAND + HOST + length(len(BODY)) * 2 + b"\r\n" + BODY,
    "two lengths in one header": COMMAND + HOST + b"Content-Length: 18, 18\r\n\r\n" + BODY,
    "a negative length": COMMAND + HOST + length(-1) + b"\r\n" + HIDDEN,
    "a length with a sign": COMMAND + HOST + b"Content-Length: +18\r\n\r\n" + BODY,
    "a length without end": COMMAND + HOST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + HIDDEN,
    "two hosts": GET + HOST * 2 + b"\r\n",
    "no host": GET + b"\r\n",
    "a space before the colon": COMMAND + HOST + b"Content-Length : 18\r\n\r\n" + BODY,
    "a folded header": COMMAND + HOST + b"Content-Length:\r\n 18\r\n\r\n" + BODY,
    "a carriage return in a value": COMMAND + HOST + b"A: b\rContent-Length: 18\r\n\r\n" + BODY,
    "a null byte": GET + HOST + b"A: \x00\r\n\r\n",
    "a line without a colon": GET + HOST + b"nothing\r\n\r\n",
    "garbage": b"GARBAGE\r\n\r\n",
    "HTTP/0.9": b"GET /status.json\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("text", DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_another_may_read_otherwise_is_answered_once_with_400_and_nothing_after_it(
    served: StatusSite, sent: list[CommandMessage], text: bytes
) -> None:
    told = exchange(served, text + HIDDEN)
    head, _, body = told.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert json.loads(body)["error"]
    assert statuses(told) == [b"400"]
    assert sent == []


@pytest.mark.parametrize("method", [b"DELETE", b"PUT", b"OPTIONS", b"PATCH", b"TRACE"])
@pytest.mark.parametrize(
    ("path", "allowed"), [(b"/status.json", b"GET, HEAD"), (b"/models/kanji/infer", b"POST"), (b"/commands/x", b"POST")]
)
def test_a_method_that_is_not_taken_is_told_those_that_are(
    served: StatusSite, method: bytes, path: bytes, allowed: bytes
) -> None:
    told = exchange(served, method + b" " + path + b" HTTP/1.1\r\n" + HOST + length(len(HIDDEN)) + b"\r\n" + HIDDEN)
    assert b"\r\nAllow: " + allowed + b"\r\n" in told
    assert statuses(told) == [b"405"]  # what was its body is no request


def test_a_method_that_nobody_knows_is_501(served: StatusSite) -> None:
    assert exchange(served, b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 501 ")


def test_requests_that_are_in_order_are_answered_one_after_the_other(
    served: StatusSite, sent: list[CommandMessage]
) -> None:
    last = b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HOST + length(0) + b"\r\n"
    told = exchange(served, HIDDEN + COMMAND + HOST + length(len(BODY)) + b"\r\n" + BODY + last)
    assert statuses(told) == [b"200", b"202", b"200"]
    sent.pop().acknowledge()


def test_http_1_0_needs_no_host_to_be_read_and_gets_none_of_the_page_without(served: StatusSite) -> None:
    assert exchange(served, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    assert exchange(served, b"GET /healthz HTTP/1.0\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_target_and_headers_that_are_too_long_are_told_so(served: StatusSite) -> None:
    assert exchange(served, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 414 ")
    many = b"A: " + b"b" * handler.MAX_HEAD_BYTES + b"\r\n"
    assert exchange(served, GET + HOST + many + b"\r\n").startswith(b"HTTP/1.1 431 ")


def test_a_client_that_never_ends_its_refused_request_is_left(
    served: StatusSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "BODY_S", 0.2)
    with socket.create_connection(page.address(served), timeout=page.WAIT_S) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass
            while True:  # the other end took its leave: what is still sent is refused in the end
                connection.sendall(b"a" * 65536)
