"""When states of old operations are cleared at a broker that keeps them for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.adapters.mqtt_expiry import EVERY_S, MOST, SOON_S, ExpiredStates
from agent.contract.topics import Topics
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

TOPICS = Topics("edge/v1", "box")


class States:
    def __init__(self, left: int) -> None:
        self.left = left
        self.asked: list[str] = []
        self.error: Exception | None = None

    def clear(self, before: str, most: int, topic: Callable[[str], str]) -> int:
        assert topic("d-1") == "edge/v1/box/op/d-1"
        self.asked.append(before)
        if self.error is not None:
            raise self.error
        cleared = min(most, self.left)
        self.left -= cleared
        return cleared


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_they_are_cleared_in_portions_and_then_looked_for_every_hour(clock: FakeClock) -> None:
    states = States(MOST + 1)
    expired = ExpiredStates(states, TOPICS, clock, is_owed=True)
    assert [expired.look(), expired.look()] == [True, False]
    clock.advance(SOON_S)
    assert expired.look()
    clock.advance(EVERY_S - 1)
    assert not expired.look()
    assert len(states.asked) == 2
    clock.advance(1)
    assert not expired.look()
    assert len(states.asked) == 3
    assert states.asked[-1] > states.asked[0]


def test_where_the_broker_does_it_or_the_time_is_not_known_nothing_is_cleared(clock: FakeClock) -> None:
    states = States(1)
    assert not ExpiredStates(states, TOPICS, clock, is_owed=False).look()
    clock.synchronised = False
    assert not ExpiredStates(states, TOPICS, clock, is_owed=True).look()
    assert states.asked == []


def test_a_journal_that_fails_is_asked_again_later(clock: FakeClock) -> None:
    states = States(1)
    states.error = OSError("disk")
    expired = ExpiredStates(states, TOPICS, clock, is_owed=True)
    assert not expired.look()
    states.error = None
    clock.advance(EVERY_S)
    assert expired.look()
