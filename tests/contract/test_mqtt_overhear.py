"""The transport reads a device's own operations when it is asked to, on one connection, and nothing else of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.adapters.broker import Broker
from agent.adapters.mqtt import MqttTransport
from agent.contract.topics import Topics
from agent.deployment.inbox import Connected, Overhearing, Remembered
from tests.fakes.clock import FakeClock

TOPICS = Topics("edge/v1", "box-1")
OK = SimpleNamespace(is_failure=False)
REFUSED = SimpleNamespace(is_failure=True)


class Client:
    """What the transport needs of paho's client, connected; it numbers its subscriptions from 1."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.given_up: list[str] = []

    def is_connected(self) -> bool:
        return True

    def subscribe(self, filters: Any, qos: int = 1) -> tuple[int, int]:
        self.asked.append((filters, qos))
        return 0, len(self.asked)

    def unsubscribe(self, topic: str) -> None:
        self.given_up.append(topic)

    def publish(self, *_arguments: Any, **_options: Any) -> Any:
        return SimpleNamespace(rc=0, mid=1)

    def ack(self, *_arguments: Any) -> None:
        """Nothing to remember."""


class Subject:
    """A transport with a client that does nothing."""

    def __init__(self) -> None:
        self.is_owed, self.posted, self.client = True, list[Any](), Client()
        self.transport = MqttTransport(
            Broker("localhost", 1),
            TOPICS,
            SimpleNamespace(outbox=lambda _most: [], acknowledged=print, count=len),
            FakeClock(),
            boot_id="b",
            agent="0",
            overhears=lambda: self.is_owed,
            post=self.posted.append,
        )
        self.transport._client = self.client  # type: ignore[assignment]

    def connect(self) -> None:
        self.transport._on_connect(self.client, None, SimpleNamespace(session_present=True), OK, None)  # type: ignore[arg-type]
        self.transport._on_subscribe(self.client, None, 0, [OK], None)  # type: ignore[arg-type, list-item]

    def granted(self, mid: int, reason: Any) -> None:
        self.transport._on_subscribe(self.client, None, mid, [reason], None)  # type: ignore[arg-type]

    def deliver(self, topic: str, *, retain: bool) -> None:
        message = SimpleNamespace(topic=topic, payload=b"{}", retain=retain, mid=0, qos=0, properties=None)
        self.transport._on_message(self.client, None, message)  # type: ignore[arg-type]


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_operations_are_asked_for_last_and_only_what_was_retained_is_handed_on(subject: Subject) -> None:
    subject.connect()
    assert subject.client.asked[-1] == (TOPICS.operations, 0)
    subject.granted(1, OK)
    subject.granted(2, OK)
    subject.deliver(TOPICS.operation("d-1"), retain=True)
    subject.deliver(TOPICS.operation("d-2"), retain=False)
    subject.deliver("edge/v1/box-2/op/d-3", retain=True)
    subject.deliver("edge/v1/box-1/op/d/4", retain=True)
    assert subject.posted == [Connected(), Overhearing(is_granted=True), Remembered("d-1", b"{}")]
    assert subject.client.given_up == []
    assert subject.transport._room._inside == 1, "a device that is flooded reads no more of them than of commands"
    subject.posted[-1].acknowledge()
    assert subject.transport._room._inside == 0
    subject.transport.overhear_no_more()
    assert subject.client.given_up == [TOPICS.operations]


def test_a_refusal_is_handed_on(subject: Subject) -> None:
    subject.connect()
    subject.granted(2, REFUSED)
    assert subject.posted == [Connected(), Overhearing(is_granted=False)]


def test_without_a_loss_nothing_is_asked_and_a_subscription_that_was_left_over_is_given_up(subject: Subject) -> None:
    subject.is_owed = False
    subject.connect()
    assert all(filters != TOPICS.operations for filters, _ in subject.client.asked)
    subject.deliver(TOPICS.operation("d-1"), retain=False)
    assert subject.client.given_up == [TOPICS.operations]
    assert subject.posted == [Connected()]
