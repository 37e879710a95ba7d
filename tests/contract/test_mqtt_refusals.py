"""Reports that a broker refuses: for good they are given up, for a quota they wait, and people are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.adapters.broker import Broker
from agent.adapters.mqtt import MqttTransport
from agent.adapters.refusals import FIRST_PAUSE_S, LONGEST_PAUSE_S, QUOTA_EXCEEDED, REMEMBERED_S, Refusals
from agent.contract.reports import Report
from agent.contract.topics import Topics
from tests.fakes.clock import FakeClock


class Reason:
    """A reason code as paho has it."""

    def __init__(self, value: int, words: str) -> None:
        self.value = value
        self.is_failure = value >= 0x80
        self._words = words

    def __str__(self) -> str:
        return self._words


TAKEN, QUOTA, FORBIDDEN = Reason(0, "Success"), Reason(QUOTA_EXCEEDED, "Quota exceeded"), Reason(0x87, "Not authorized")


class Subject:
    """A transport whose connection takes everything, and whose broker answers as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.rows = {1: Report("a", b"1"), 2: Report("b", b"2")}
        self.sent: list[bytes] = []
        self.meanwhile: Any = lambda _mid: None
        outbox: Any = SimpleNamespace(outbox=lambda _most: list(self.rows.items()), acknowledged=self.rows.pop)
        self.transport = MqttTransport(
            Broker("127.0.0.1", 1),
            Topics("edge/v1", "box-1"),
            outbox,
            self.clock,
            boot_id="b",
            agent="0",
            post=lambda _message: None,
        )
        monkeypatch.setattr(self.transport._client, "is_connected", lambda: True)
        monkeypatch.setattr(self.transport._client, "publish", self.publish)
        self.transport._is_settled = True

    def publish(self, _topic: str, payload: bytes, **_options: Any) -> Any:
        self.sent.append(payload)
        self.meanwhile(len(self.sent))
        return SimpleNamespace(rc=0, mid=len(self.sent))

    def answer(self, mid: int, reason: Reason) -> None:
        self.transport._delivery.on_publish(self.transport._client, None, mid, reason, None)  # type: ignore[arg-type]


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    return Subject(monkeypatch)


def test_what_the_device_may_not_publish_is_given_up_and_is_an_alarm_for_a_while(subject: Subject) -> None:
    subject.transport.flush()
    subject.answer(1, FORBIDDEN)
    subject.answer(2, TAKEN)
    assert subject.rows == {}
    (alarm,) = subject.transport.alarms
    assert "refused 1 reports of late, the last as Not authorized: let the device write its own topics" in alarm
    subject.clock.advance(REMEMBERED_S)
    assert subject.transport.alarms == ()


def test_what_a_quota_forbids_waits_and_is_sent_again_after_pauses_that_double(subject: Subject) -> None:
    subject.transport.flush()
    for mid in (1, 2):
        subject.answer(mid, QUOTA)
    assert len(subject.rows) == 2
    subject.transport.flush()
    assert len(subject.sent) == 2, "no tight loop"
    (alarm,) = subject.transport.alarms
    assert "refused 2 reports of late, the last as Quota exceeded: they wait" in alarm

    subject.clock.advance(FIRST_PAUSE_S)
    subject.transport.publish(Report("health", b"telemetry"))
    assert subject.sent[2:] == [b"1", b"2", b"telemetry"], "it goes along with the next telemetry"
    for mid in (3, 4):
        subject.answer(mid, QUOTA)
    subject.clock.advance(2 * FIRST_PAUSE_S - 0.1)
    subject.transport.flush()
    assert len(subject.sent) == 5
    subject.clock.advance(0.1)
    subject.transport.flush()
    for mid in (6, 7):
        subject.answer(mid, TAKEN)
    assert subject.rows == {}


@pytest.mark.parametrize(("reason", "left"), [(TAKEN, []), (FORBIDDEN, []), (QUOTA, [1, 2])])
def test_an_answer_that_overtakes_the_return_of_publish_counts_as_well(
    subject: Subject, reason: Reason, left: list[int]
) -> None:
    subject.meanwhile = lambda mid: subject.answer(mid, reason)
    subject.transport.flush()
    assert list(subject.rows) == left
    assert subject.transport._delivery._in_flight == {}
    if left:
        subject.meanwhile = lambda mid: subject.answer(mid, TAKEN)
        subject.clock.advance(FIRST_PAUSE_S)
        subject.transport.publish(Report("health", b"telemetry"))
        assert subject.rows == {}


def test_pauses_grow_to_the_longest_and_begin_anew_once_a_report_is_taken() -> None:
    refusals, now, pauses = Refusals(), 0.0, []
    for _ in range(12):
        assert refusals.refused(QUOTA_EXCEEDED, "Quota exceeded", now)
        begin = now
        while refusals.is_pausing(now):
            now += 0.5
        pauses.append(now - begin)
    assert pauses[:4] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert max(pauses) == LONGEST_PAUSE_S
    refusals.taken()
    refusals.refused(QUOTA_EXCEEDED, "Quota exceeded", now)
    assert not refusals.is_pausing(now + FIRST_PAUSE_S)
