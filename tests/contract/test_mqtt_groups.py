"""The transport and groups: halts are asked for before documents, and an echo says when both were told."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from agent.adapters.broker import Broker
from agent.adapters.mqtt import MqttTransport
from agent.contract.desired import OWN, DesiredMessage, HaltMessage
from agent.contract.topics import Topics
from agent.deployment.inbox import Connected, Echoed
from tests.fakes.clock import FakeClock

TOPICS = Topics("edge/v1", "box-1")
OK = SimpleNamespace(is_failure=False)


class Client:
    """What the transport needs of paho's client."""

    def __init__(self) -> None:
        self.is_up = True
        self.asked: list[str] = []
        self.births: list[bytes] = []
        self.acknowledged: list[int] = []

    def is_connected(self) -> bool:
        return self.is_up

    def will_set(self, *_arguments: Any, **_options: Any) -> None:
        """Nothing to remember."""

    def subscribe(self, filters: Any) -> tuple[int, int]:
        self.asked += [name for name, _ in filters]
        return 0, 1

    def publish(self, _topic: str, payload: bytes, **_options: Any) -> Any:
        self.births.append(payload)
        return SimpleNamespace(rc=0, mid=1)

    def ack(self, mid: int, _qos: int) -> None:
        self.acknowledged.append(mid)


class Subject:
    """A transport of a device in two groups."""

    def __init__(self) -> None:
        self.posted, self.client, numbers = list[Any](), Client(), iter(range(7, 99))
        self.transport = MqttTransport(
            Broker("localhost", 1),
            TOPICS,
            SimpleNamespace(outbox=lambda _most: [], acknowledged=print, count=lambda _name: next(numbers)),
            FakeClock(),
            boot_id="b",
            agent="0",
            groups=("lab", "all"),
            post=self.posted.append,
        )
        self.transport._client = self.client  # type: ignore[assignment]

    def connect(self) -> None:
        client: Any = self.client
        self.transport._on_pre_connect(client, None)
        flags: Any = SimpleNamespace(session_present=True)
        self.transport._on_connect(client, None, flags, OK, None)  # type: ignore[arg-type]
        self.transport._on_subscribe(client, None, 0, [OK], None)  # type: ignore[list-item]

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        message: Any = SimpleNamespace(topic=topic, payload=payload, retain=retain, mid=5, qos=1, properties=None)
        self.transport._on_message(self.client, None, message)  # type: ignore[arg-type]


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_halts_are_subscribed_to_before_any_document(subject: Subject) -> None:
    subject.connect()
    first_document = min(subject.client.asked.index(name) for name in subject.client.asked if name.endswith("desired"))
    halts = [subject.client.asked.index(TOPICS.group_halt(group)) for group in ("lab", "all")]
    assert max(halts) < first_document
    assert len(subject.client.asked) == len(set(subject.client.asked)) == 7


def test_documents_and_halts_come_with_whose_they_are_and_their_connection(subject: Subject) -> None:
    subject.connect()
    subject.deliver(TOPICS.group_halt("lab"), b"", retain=False)
    subject.deliver(TOPICS.group_desired("all"), b"{}", retain=True)
    subject.deliver(TOPICS.desired, b"{}")
    kinds = [(type(each), each.source, each.payload, each.is_replayed, each.connection) for each in subject.posted[1:]]
    assert kinds == [
        (HaltMessage, "lab", b"", False, 7),
        (DesiredMessage, "all", b"{}", True, 7),
        (DesiredMessage, OWN, b"{}", False, 7),
    ]
    assert subject.client.acknowledged == []
    subject.posted[1].acknowledge()
    assert subject.client.acknowledged == [5]


def test_its_own_birth_that_comes_back_is_an_echo_of_its_connection_alone(subject: Subject) -> None:
    subject.connect()
    birth = subject.client.births[-1]
    other = {**json.loads(birth), "boot_id": "another"}
    subject.deliver(TOPICS.presence, json.dumps(other).encode(), retain=True)
    assert subject.posted == [Connected()]
    subject.deliver(TOPICS.presence, birth)
    assert subject.posted == [Connected(), Echoed(7)]
    subject.connect()
    subject.deliver(TOPICS.presence, birth, retain=True)  # of the connection before
    assert subject.posted[2:] == [Connected()]
    subject.deliver(TOPICS.presence, subject.client.births[-1])
    assert subject.posted[3:] == [Echoed(8)]


def test_without_a_connection_it_has_no_number(subject: Subject) -> None:
    subject.connect()
    assert subject.transport.connection == 7
    subject.client.is_up = False
    assert subject.transport.connection is None
