"""Calls to a server that is dead, or dies: the socket still takes them, and nobody waits for an answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from agent.adapters.control import Calls, ControlError, call, exchange
from agent.adapters.sockets import listen_unix

if TYPE_CHECKING:
    from pathlib import Path

LONG_S = 120.0


def test_a_call_that_is_made_after_the_server_s_death_fails_at_once(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with listen_unix(path), pytest.raises(ControlError, match="no server"):
        call(path, "GET", "/v2/health/live", timeout_s=LONG_S, calls=Calls(lambda: False))


def test_a_call_under_way_ends_when_the_server_does(tmp_path: Path) -> None:
    path, asked, failed = tmp_path / "control.sock", threading.Event(), list[ControlError]()

    def is_alive() -> bool:
        asked.set()
        return True

    calls = Calls(is_alive)

    def ask() -> None:
        with pytest.raises(ControlError) as caught:
            call(path, "POST", "/v2/repository/models/m/canary", {}, timeout_s=LONG_S, calls=calls)
        failed.append(caught.value)

    with listen_unix(path):
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        assert asked.wait(10)
        calls.hang_up()
        asking.join(10)
        assert not asking.is_alive()
    assert failed[0].status is None


def answering(path: Path, reply: bytes) -> threading.Thread:
    """Answer one connection at ``path`` with ``reply`` and keep it open, as a server does."""
    listener = listen_unix(path)

    def serve() -> None:
        connection, _ = listener.accept()
        with listener, connection:
            connection.recv(65536)
            connection.sendall(reply)
            connection.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_an_answer_is_passed_on_as_it_is_also_over_a_connection_that_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    serving = answering(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")
    assert exchange(path, "POST", "/v2/models/m/infer", b"{}", timeout_s=20) == (404, b"none")
    serving.join(20)


def test_an_answer_of_more_bytes_than_are_wanted_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    answering(path, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 11)
    with pytest.raises(ControlError, match="more than 10 bytes"):
        exchange(path, "GET", "/v2", timeout_s=20, most_bytes=10)
