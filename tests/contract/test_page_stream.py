"""The stream of the page over real HTTP: what is sent and when, who may listen, and who comes back."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from agent.health.handler import Offer
from tests.fakes import page
from tests.fakes.page import Listener, Shown, event, operation, progress, site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.health.board import Board
    from agent.health.web import StatusSite

SECTIONS = ("about", "health", "memory", "models", "operations", "live", "progress")


@pytest.fixture
def facts() -> Shown:
    return Shown()


@pytest.fixture
def board(facts: Shown) -> Board:
    return facts.board(listeners=2, look_s=0.05, keep_alive_s=0.2)


@pytest.fixture
def served(board: Board) -> Iterator[StatusSite]:
    with site(Offer(board=board)) as found:
        yield found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + page.WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def listening(served: StatusSite, **headers: str) -> Iterator[Listener]:
    with contextlib.closing(Listener(served, **headers)) as listener:
        assert (listener.status, listener.kind) == (200, "text/event-stream; charset=utf-8")
        yield listener


def test_who_comes_is_told_everything_and_then_what_changes(served: StatusSite, facts: Shown) -> None:
    with listening(served) as listener:
        assert listener.next()[0] == "hello"
        assert {listener.next()[0] for _ in SECTIONS} == set(SECTIONS)
        facts.body = page.status(health={"status": "failing", "reasons": ["no disk"]})
        name, told, _ = listener.next()
        assert (name, told) == ("health", {"status": "failing", "reasons": ["no disk"]})


def test_nothing_is_looked_up_while_nobody_listens(served: StatusSite, facts: Shown, board: Board) -> None:
    for name in ("one", "two"):  # once the second is taken up, the round of the first has ended
        board.hear(event(name))
        until(lambda: not board._heard)
    assert facts.looks == 0
    with listening(served) as listener:
        listener.next("live")
    assert facts.looks > 0


def test_the_progress_of_an_open_operation_comes_without_the_operation(
    served: StatusSite, facts: Shown, board: Board
) -> None:
    facts.body = page.status(operations=[operation("d-1"), operation("d-0", phase=None, state="succeeded")])
    with listening(served) as listener:
        listener.next("progress")
        board.hear(progress("d-0", 41))  # late: it has ended
        board.hear(progress("d-1", 17))
        name, told, _ = listener.next()
        assert (name, told) == (
            "progress",
            {"d-1": {"phase": "building", "done": 17, "total": 41, "unit": "tensors"}},
        )
        board.hear(progress("d-1", None))
        assert listener.next()[:2] == ("progress", {})


def test_who_comes_back_gets_the_events_since_the_last_one_and_a_stranger_all(facts: Shown) -> None:
    board = facts.board()
    with site(Offer(board=board)) as served:
        for name in ("one", "two", "three"):
            board.hear(event(name))
        with listening(served) as listener:
            assert listener.next("hello")[1]["resumes"] is False
            told = [listener.next("event") for _ in range(3)]
        assert [body["event"] for _, body, _ in told] == ["one", "two", "three"]
        board.hear(event("four"))
        with listening(served, Last_Event_ID=str(told[1][2])) as listener:
            assert listener.next("hello")[1]["resumes"] is True
            assert [listener.next("event")[1]["event"] for _ in range(2)] == ["three", "four"]
        for unknown in ("0000dead-2", "garbage", f"{told[0][2]}999"):
            with listening(served, Last_Event_ID=unknown) as listener:
                assert listener.next("hello")[1]["resumes"] is False
                assert listener.next("event")[1]["event"] == "one"


def test_a_large_event_is_told_without_its_details(served: StatusSite, board: Board) -> None:
    board.hear(event("config_changed", config="x" * 5000))
    with listening(served) as listener:
        assert listener.next("event")[1] == {"event": "config_changed", "at": "2026-11-23T10:40:00.000Z"}


def test_one_listener_too_many_is_told_to_come_back(served: StatusSite) -> None:
    with listening(served) as first, listening(served) as second:
        first.next(), second.next()
        with contextlib.closing(Listener(served)) as refused:
            assert refused.status == 503


def test_the_place_of_one_who_left_is_free_again_though_nothing_is_to_be_told(facts: Shown) -> None:
    board = facts.board(listeners=1, keep_alive_s=3600.0)
    with site(Offer(board=board)) as served:
        with listening(served) as listener:
            listener.next("live")

        def is_free() -> bool:
            with contextlib.closing(Listener(served)) as again:
                return again.status == 200

        until(is_free)


def test_a_silent_stream_shows_that_it_is_alive(served: StatusSite) -> None:
    with listening(served) as listener:
        for _ in SECTIONS:
            listener.next()
        listener.next()
        assert listener.line() == ": still here\n"
        assert listener.next("still")[1] == {}


def test_a_look_that_fails_is_survived_and_costs_no_event(served: StatusSite, facts: Shown, board: Board) -> None:
    with listening(served) as listener:
        listener.next("live")
        facts.error = RuntimeError("the journal is locked")
        facts.body = page.status(device_id="other")
        board.hear(event("one"))
        told = [listener.next("about", "event")[1] for _ in range(2)]
    assert {each.get("device_id") or each["event"] for each in told} == {"one", "other"}


def test_a_listener_that_does_not_read_holds_up_nobody(board: Board, facts: Shown) -> None:
    facts.body = page.status(models={"m": {"version": "x" * 2_000_000}})
    with site(Offer(board=board)) as served, socket.create_connection(page.address(served)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert deaf.recv(16).startswith(b"HTTP/1.1 200")
        with listening(served) as listener:
            for number in range(20):
                board.hear(event(f"number {number}"))
            assert [listener.next("event")[1]["event"] for _ in range(20)] == [f"number {n}" for n in range(20)]


def test_the_end_of_the_agent_ends_the_stream(board: Board) -> None:
    with site(Offer(board=board)) as served:
        listener = Listener(served)
        listener.next()
    while listener.line():
        pass
    listener.close()
