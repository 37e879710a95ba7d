"""Who gets what from the page's port: other sites in a browser, tokens, and those who send or read too slowly."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent.health import handler
from agent.health.access import PageAccess
from agent.health.acting import MAX_WAITING, Acting
from agent.health.handler import Offer
from agent.tokens import TokenFile
from tests.fakes import page
from tests.fakes.page import Shown, ask, site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.deployment.intake import CommandMessage
    from agent.health.web import StatusSite

OWN, INFERENCE = "own-" + "o" * 32, "inference-" + "i" * 32
COMMAND = {"model": "kanji", "method": "nf4"}
HEAD = (
    b"POST /commands/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + OWN.encode() + b"\r\n"
)


def tokens(path: Path, token: str) -> TokenFile:
    path.write_text(token)
    path.chmod(0o600)
    return TokenFile(path)


@pytest.fixture(scope="module")
def inbox() -> list[CommandMessage]:
    return []


@pytest.fixture
def sent(inbox: list[CommandMessage]) -> list[CommandMessage]:
    inbox.clear()
    return inbox


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, inbox: list[CommandMessage]) -> Iterator[StatusSite]:
    folder = tmp_path_factory.mktemp("tokens")
    access = PageAccess(tokens(folder / "own", OWN), tokens(folder / "inference", INFERENCE))
    offer = Offer(access, Shown().board(), acting=Acting(inbox.append), names=frozenset({"box.example"}))
    with site(offer) as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/script.js", "/status.json", "/metrics", "/healthz", "/nothing"])
def test_every_answer_keeps_the_browser_from_guessing_framing_and_telling(served: StatusSite, path: str) -> None:
    _, _, headers = ask(served, "GET", path)
    policy = {part.strip() for part in headers["Content-Security-Policy"].split(";")}
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= policy
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= policy
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert (headers["Cross-Origin-Resource-Policy"], headers["X-Frame-Options"]) == ("same-origin", "DENY")
    assert headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9002", "localhost:8002", "[::1]:8002", "10.0.0.7", "BOX.example:80"]
)
def test_an_address_localhost_and_a_configured_name_are_known_hosts(served: StatusSite, host: str) -> None:
    assert ask(served, "GET", "/status.json", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8002", "localhost.evil.example", "box", "", "[::1", "a b"]
)
def test_a_name_that_a_stranger_may_own_is_none_whatever_its_address_is(served: StatusSite, host: str) -> None:
    status, told, _ = ask(served, "GET", "/status.json", Host=host)
    assert status == 421
    assert "status.allowed_hosts" in told["error"]


FOREIGN: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/events"), ("GET", "/status.json"), ("POST", "/commands/set_method")]
)
def test_what_another_site_makes_a_browser_send_is_refused(
    served: StatusSite, sent: list[CommandMessage], method: str, path: str, headers: dict[str, str]
) -> None:
    body = COMMAND if method == "POST" else None
    assert ask(served, method, path, body, Authorization=f"Bearer {OWN}", **headers)[0] == 403
    assert sent == []


def test_the_page_may_be_opened_from_a_link_elsewhere_and_asks_as_itself(served: StatusSite) -> None:
    host = "{}:{}".format(*page.address(served))
    assert ask(served, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert ask(served, "GET", "/status.json", Origin=f"http://{host}", Sec_Fetch_Site="same-origin")[0] == 200
    sending = {"Authorization": f"Bearer {OWN}", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(served, "POST", "/commands/set_method", COMMAND, **sending)[0] == 403


def test_a_command_with_a_token_enters_as_those_from_the_broker_do(
    served: StatusSite, sent: list[CommandMessage]
) -> None:
    status, told, _ = ask(
        served, "POST", "/commands/set_method", {**COMMAND, "id": "x", "gate": {}}, Authorization=f"bearer {OWN}"
    )
    (message,) = sent
    message.acknowledge()
    assert (status, message.name, message.origin, message.is_retained) == (202, "set_method", "page", False)
    assert json.loads(message.payload) == {"schema": 1, "id": told["id"], **COMMAND}


def test_commands_that_the_journal_does_not_hold_yet_are_few(served: StatusSite, sent: list[CommandMessage]) -> None:
    token = f"Bearer {OWN}"
    for _ in range(MAX_WAITING):
        assert ask(served, "POST", "/commands/set_method", COMMAND, Authorization=token)[0] == 202
    assert ask(served, "POST", "/commands/set_method", COMMAND, Authorization=token)[0] == 503
    for message in (*sent, *sent):  # a message that is handled again is acknowledged again
        message.acknowledge()
    assert ask(served, "POST", "/commands/set_method", COMMAND, Authorization=token)[0] == 202
    sent[-1].acknowledge()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {OWN[:-1]}"}, 401),
        ({"Authorization": f"Basic {OWN}"}, 401),
        ({"Authorization": f"Bearer {INFERENCE}"}, 403),
        ({"Authorization": "Bearer \xe9"}, 401),
    ],
)
def test_without_the_right_token_nothing_changes(
    served: StatusSite, sent: list[CommandMessage], headers: dict[str, str], status: int
) -> None:
    found, _, answer = ask(served, "POST", "/commands/rollback", {"model": "kanji"}, **headers)
    assert found == status
    assert (answer["WWW-Authenticate"] == "Bearer") is (status == 401)
    assert sent == []


def test_a_token_says_what_it_is_good_for(served: StatusSite) -> None:
    assert ask(served, "GET", "/access")[1] == {"ask": False, "command": False}
    assert ask(served, "GET", "/access", Authorization=f"Bearer {OWN}")[1] == {"ask": True, "command": True}
    assert ask(served, "GET", "/access", Authorization=f"Bearer {INFERENCE}")[1] == {"ask": True, "command": False}
    assert ask(served, "GET", "/access", Authorization="Bearer unknown")[0] == 401


def test_without_a_file_of_tokens_the_page_only_shows(sent: list[CommandMessage]) -> None:
    with site(Offer(PageAccess(is_open=True), acting=Acting(sent.append))) as served:
        status, told, _ = ask(served, "POST", "/commands/rollback", {"model": "kanji"}, Authorization="Bearer x")
    assert (status, sent) == (403, [])
    assert "status.token_file" in told["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/commands/deploy", COMMAND, 404),
        ("/commands/set_method", b"[1]", 400),
        ("/commands/set_method", b"{", 400),
        ("/commands/set_method", b"{" + b" " * 5000 + b"}", 413),
        ("/commands", COMMAND, 404),
        ("/", COMMAND, 404),
    ],
)
def test_what_is_no_command_is_refused_with_a_reason(
    served: StatusSite, sent: list[CommandMessage], path: str, body: Any, status: int
) -> None:
    found, told, _ = ask(served, "POST", path, body, Authorization=f"Bearer {OWN}")
    assert found == status
    assert told["error"]
    assert sent == []


def test_a_form_of_another_site_could_not_be_sent_as_a_command(served: StatusSite, sent: list[CommandMessage]) -> None:
    found, _, _ = ask(
        served, "POST", "/commands/rollback", COMMAND, Authorization=f"Bearer {OWN}", Content_Type="text/plain"
    )
    assert (found, sent) == (415, [])


@contextlib.contextmanager
def raw(served: StatusSite, text: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(page.address(served), timeout=page.WAIT_S) as connection:
        connection.sendall(text)
        yield connection


def reply(connection: socket.socket) -> bytes:
    """Return everything up to the end of the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


@pytest.mark.parametrize(
    "text",
    [
        b"NONSENSE\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_request_here_is_answered_in_json_and_never_as_a_page(served: StatusSite, text: bytes) -> None:
    with raw(served, text) as connection:
        told = reply(connection)
    assert json.loads(told.rpartition(b"\r\n\r\n")[2])["error"]
    assert b"html" not in told.lower()


def test_a_body_without_a_length_is_refused(served: StatusSite) -> None:
    with raw(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") as connection:
        assert reply(connection).startswith(b"HTTP/1.1 411")


def test_a_head_and_a_body_that_drip_are_ended(served: StatusSite, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n", HEAD + b"Content-Length: 4000\r\n\r\n{"):
        monkeypatch.setattr(handler, "IDLE_S", 0.2)
        monkeypatch.setattr(handler, "BODY_S", 0.2)
        monkeypatch.setattr("agent.health.web.IDLE_S", 0.2)
        with raw(served, part) as connection:
            deadline = time.monotonic() + page.WAIT_S
            with contextlib.suppress(ConnectionError):
                while not select.select([connection], [], [], 0.05)[0]:
                    assert time.monotonic() < deadline
                    connection.sendall(b" ")  # a byte now and then: no timeout of a socket sees this


def test_one_connection_too_many_is_told_so_and_a_place_that_is_left_is_free_again() -> None:
    with site(Offer(), connections=2) as served:
        with raw(served, b"GET / HTTP/1.1\r\n"), raw(served, b"GET / HTTP/1.1\r\n"), raw(served, b"") as third:
            assert reply(third).startswith(b"HTTP/1.1 503")
        deadline = time.monotonic() + page.WAIT_S
        while ask(served, "GET", "/healthz")[0] != 200:
            assert time.monotonic() < deadline
