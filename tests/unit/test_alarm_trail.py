"""An alarm is told when it begins and when it is over, and not at every look."""

from __future__ import annotations

import pytest

from agent.health.trail import AlarmTrail


class Trail:
    """What was told, and a disk that may be full."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.is_full = False
        self.trail = AlarmTrail(self.tell)

    def tell(self, name: str, reason: str) -> None:
        if self.is_full:
            raise OSError("disk full")
        self.told.append((name, reason))


@pytest.fixture
def subject() -> Trail:
    return Trail()


def test_each_alarm_has_a_line_at_its_begin_and_at_its_end(subject: Trail) -> None:
    for alarms in (
        [],
        ["a.pub: a private key"],
        ["a.pub: a private key", "b.pub: a private key"],
        ["b.pub: a private key"],
    ):
        subject.trail.look(alarms)
        subject.trail.look(alarms)
    assert subject.told == [
        ("alarm", "a.pub: a private key"),
        ("alarm", "b.pub: a private key"),
        ("alarm_ended", "a.pub: a private key"),
    ]


def test_a_count_that_grows_is_the_same_alarm_and_its_end_has_the_last_one(subject: Trail) -> None:
    for count in (2, 3, 12):
        subject.trail.look([f"another client took the session of box-1 over, {count} times of late"])
    subject.trail.look([])
    assert [name for name, _ in subject.told] == ["alarm", "alarm_ended"]
    assert "12 times" in subject.told[-1][1]


def test_an_alarm_with_lines_of_its_own_has_no_others(subject: Trail) -> None:
    subject.trail = AlarmTrail(subject.tell, own=lambda: ("the reserve is broken",))
    subject.trail.look(["the reserve is broken", "x"])
    assert subject.told == [("alarm", "x")]


def test_names_that_differ_by_a_number_are_different_alarms(subject: Trail) -> None:
    subject.trail.look(["key-1.pub has expired", "key-2.pub has expired"])
    assert len(subject.told) == 2


def test_what_could_not_be_written_is_told_at_the_next_look(subject: Trail) -> None:
    subject.is_full = True
    with pytest.raises(OSError, match="full"):
        subject.trail.look(["x"])
    subject.is_full = False
    subject.trail.look(["x"])
    subject.is_full = True
    with pytest.raises(OSError, match="full"):
        subject.trail.look([])
    subject.is_full = False
    subject.trail.look([])
    assert subject.told == [("alarm", "x"), ("alarm_ended", "x")]
