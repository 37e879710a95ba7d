"""A journal that fails under the transport: the network thread lives, and what was kept back is sent later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode

from agent.adapters.broker import Broker
from agent.adapters.mqtt import MqttTransport
from agent.contract.reports import Report
from agent.contract.topics import Topics
from agent.deployment.inbox import Connected
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = Report("edge/v1/box-1/op/d-1", b"{}", retain=True)
OK = SimpleNamespace(is_failure=False)


class Client:
    """What the transport needs of paho's client, connected."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.acknowledged: list[int] = []
        self.error: OSError | None = None

    def is_connected(self) -> bool:
        return True

    def ack(self, mid: int, _qos: int) -> None:
        self.acknowledged.append(mid)

    def subscribe(self, _filters: Any) -> None:
        """Nothing to remember."""

    def will_set(self, *_arguments: Any, **_options: Any) -> None:
        """Nothing to remember."""

    def publish(self, topic: str, *_arguments: Any, **_options: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.topics.append(topic)
        return SimpleNamespace(rc=MQTTErrorCode.MQTT_ERR_SUCCESS, mid=len(self.topics))


class Outbox:
    """One report that waits, behind a disk that fails while ``is_full``."""

    def __init__(self) -> None:
        self.is_full = False
        self.waiting = [(1, REPORT)]

    def _write(self) -> None:
        if self.is_full:
            raise OSError("database or disk is full")

    def outbox(self, most: int = -1) -> list[tuple[int, Report]]:
        self._write()
        return self.waiting[: None if most < 0 else most]

    def acknowledged(self, number: int) -> None:
        self._write()
        self.waiting = [each for each in self.waiting if each[0] != number]

    def count(self, _name: str) -> int:
        self._write()
        return 8


class Subject:
    """A transport between a client and an outbox that misbehave."""

    def __init__(self) -> None:
        self.client, self.outbox, self.posted = Client(), Outbox(), list[Any]()
        post: Callable[[Any], None] = self.posted.append
        topics = Topics("edge/v1", "box-1")
        self.transport = MqttTransport(
            Broker("localhost", 1),
            topics,
            self.outbox,
            FakeClock(),
            boot_id="b",
            agent="0",
            post=post,
        )
        self.transport._client = self.client  # type: ignore[assignment]

    def connect(self) -> None:
        self.transport._on_pre_connect(self.client, None)  # type: ignore[arg-type]
        flags: Any = SimpleNamespace(session_present=True)
        self.transport._on_connect(self.client, None, flags, OK, None)  # type: ignore[arg-type]
        self.transport._on_subscribe(self.client, None, 0, [OK], None)  # type: ignore[arg-type, list-item]


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_an_acknowledgement_that_cannot_be_kept_leaves_the_report_to_be_sent_again(subject: Subject) -> None:
    subject.transport._is_settled = True
    subject.transport.flush()
    subject.outbox.is_full = True
    subject.transport._delivery.on_publish(subject.client, None, 1, OK, None)  # type: ignore[arg-type]
    subject.outbox.is_full = False
    subject.transport.flush()
    assert subject.client.topics == [REPORT.topic, REPORT.topic]


def test_reports_that_a_broken_disk_kept_back_go_with_the_next_telemetry(subject: Subject) -> None:
    subject.transport._is_settled = subject.outbox.is_full = True
    subject.transport.flush()
    assert subject.client.topics == []
    subject.outbox.is_full = False
    subject.transport.publish(Report("edge/v1/box-1/health", b"{}"))
    assert subject.client.topics == [REPORT.topic, "edge/v1/box-1/health"]


def test_a_device_that_cannot_count_its_connection_connects_all_the_same_under_a_new_epoch(subject: Subject) -> None:
    subject.connect()
    assert subject.transport.connection == 8
    subject.outbox.is_full = True
    subject.connect()
    assert subject.transport.connection == 9
    subject.outbox.is_full = False
    subject.connect()
    assert subject.transport.connection == 10


def test_a_birth_that_failed_is_said_with_the_next_report_and_the_engine_hears_of_the_connection(
    subject: Subject,
) -> None:
    subject.client.error = OSError("no buffer space")
    subject.connect()
    assert subject.posted == [Connected()]
    subject.client.error = None
    subject.transport.flush()
    assert subject.client.topics == ["edge/v1/box-1/presence", REPORT.topic]


def test_a_message_that_is_handled_again_is_acknowledged_once(subject: Subject) -> None:
    """By the second time the broker may have given its number to another message, which the journal does not hold."""
    subject.connect()
    message = MQTTMessage(7, b"edge/v1/box-1/cmd/status")
    message.qos, message.payload = 1, b"{}"
    subject.transport._on_message(subject.client, None, message)  # type: ignore[arg-type]
    command = subject.posted[-1]
    for _ in range(2):
        command.acknowledge()
    assert subject.client.acknowledged == [7]
