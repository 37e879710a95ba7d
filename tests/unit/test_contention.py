"""Two devices with one id: each waits longer after every time that it was thrown out, and says so."""

from __future__ import annotations

import pytest

from agent.adapters.contention import FORGOTTEN_S, SHORT_S, SUSPICIOUS, TAKEN_OVER, Contention

ENDED = 0x80


def longest(_least: float, most: float) -> float:
    return most


@pytest.fixture
def contention() -> Contention:
    return Contention("box-1", draw=longest)


def waits(contention: Contention, stood_s: float, reason: int, times: int) -> list[float | None]:
    """Let connections of ``stood_s`` seconds follow each other at once; return the waits."""
    found = []
    for number in range(times):
        contention.began(number * stood_s)
        found.append(contention.ended((number + 1) * stood_s, reason))
    return found


def test_every_takeover_doubles_the_wait_up_to_a_quarter_of_an_hour(contention: Contention) -> None:
    found = waits(contention, 10.0, TAKEN_OVER, 12)
    assert found[:4] == [5.0, 10.0, 20.0, 40.0]
    assert found[-1] == 900.0


def test_two_devices_with_one_id_come_to_rest() -> None:
    """Played against each other for a day: who waits longest is thrown out next."""
    sides = [Contention("box-1"), Contention("box-1")]
    at, connections = 0.0, 0
    while at < 86_400:
        holder, other = sides[connections % 2], sides[(connections + 1) % 2]
        holder.began(at)
        wait = other.ended(at, TAKEN_OVER) or 1.0
        connections += 1
        at += wait
    assert connections < 86_400 / 400


def test_a_session_that_stood_for_long_was_not_disputed(contention: Contention) -> None:
    waits(contention, 10.0, TAKEN_OVER, 6)
    assert waits(contention, FORGOTTEN_S, TAKEN_OVER, 1) == [5.0]


def test_takeovers_that_nobody_names_are_waited_for_too(contention: Contention) -> None:
    assert waits(contention, SHORT_S - 1, ENDED, 8) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert waits(contention, SHORT_S, ENDED, 1) == [3.0]


def test_a_refused_connection_has_not_ended(contention: Contention) -> None:
    assert contention.ended(5.0, ENDED) is None
    assert contention.alarm(5.0) is None


def test_people_are_told_until_it_is_long_ago(contention: Contention) -> None:
    waits(contention, 10.0, TAKEN_OVER, 2)
    assert "session of box-1 over, 2 times" in (contention.alarm(21.0) or "")
    assert contention.alarm(20.0 + FORGOTTEN_S) is None


def test_people_are_told_of_many_short_connections_but_not_of_one(contention: Contention) -> None:
    waits(contention, 10.0, ENDED, SUSPICIOUS[1] - 1)
    assert contention.alarm(50.0) is None
    waits(contention, 10.0, ENDED, 1)
    assert "device_id box-1" in (contention.alarm(50.0) or "")


def test_a_birth_of_somebody_else_shows_a_takeover_that_nobody_names(contention: Contention) -> None:
    contention.heard(b"an earlier process's")
    contention.said(b"mine")
    contention.heard(b"mine")
    assert waits(contention, 100.0, ENDED, 1) == [3.0]
    found: list[float | None] = []
    for _ in range(3):
        contention.heard(b"another's")
        contention.said(b"mine again")
        contention.heard(b"mine again")
        found += waits(contention, 100.0, ENDED, 1)
    assert found == [5.0, 10.0, 20.0]
    assert "3 times" in (contention.alarm(101.0) or "")


def test_births_of_an_earlier_process_and_its_own_show_nothing(contention: Contention) -> None:
    contention.heard(b"an earlier process's")
    for birth in (b"first", b"second"):
        contention.said(birth)
        contention.heard(birth)
    contention.heard(b"first")
    assert waits(contention, 100.0, ENDED, 1) == [3.0]
    assert contention.alarm(101.0) is None


def test_two_wait_differently(contention: Contention) -> None:
    contention.draw = lambda least, _most: least
    assert waits(contention, 10.0, TAKEN_OVER, 2) == [2.5, 5.0]


def test_only_the_last_birth_s_return_proves_that_this_connection_may_write_and_read() -> None:
    contention = Contention("box")
    proofs = []
    for birth, returns in ((b"1", [b"1"]), (b"2", [b"1", b"somebody else's"]), (b"3", [b"3", b"somebody else's"])):
        contention.said(birth)
        for each in returns:
            contention.heard(each)
        proofs.append(contention.has_heard_last)
    assert proofs == [True, False, True]


def test_a_fleet_that_lost_its_broker_comes_back_scattered() -> None:
    fleet = [Contention(f"box-{number}") for number in range(200)]
    for box in fleet:
        box.began(0.0)
    first = [box.ended(100.0, ENDED) for box in fleet]
    assert all(wait is not None and 0.5 <= wait <= 3.0 for wait in first)
    assert len(set(first)) > len(fleet) / 2


def test_each_connection_that_fails_doubles_the_wait_up_to_a_minute(contention: Contention) -> None:
    assert [contention.failed() for _ in range(7)] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    contention.began(0.0)
    assert contention.failed() == 2.0
