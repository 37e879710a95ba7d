"""The outbox and the connection: a report is handed over once, however slowly the journal forgets it."""

from __future__ import annotations

import json
import queue
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode

from agent.adapters import mqtt
from agent.adapters.broker import Broker
from agent.adapters.mqtt import MAX_WAITING, MqttTransport
from agent.adapters.mqtt_outbox import MAX_IN_FLIGHT
from agent.contract.reports import Report
from agent.contract.topics import Topics
from agent.deployment.inbox import Drained
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.deployment.inbox import Message


class Handed:
    """What ``publish`` returns."""

    rc = MQTTErrorCode.MQTT_ERR_SUCCESS

    def __init__(self, mid: int) -> None:
        self.mid = mid


class Reason:
    is_failure = False


class SlowOutbox:
    """Two reports; while one is being forgotten something else may happen."""

    def __init__(self) -> None:
        self.rows = {1: Report("a", b"1"), 2: Report("b", b"2")}
        self.meanwhile: Callable[[], None] = lambda: None

    def outbox(self, most: int = -1) -> list[tuple[int, Report]]:
        return list(self.rows.items())[: None if most < 0 else most]

    def acknowledged(self, number: int) -> None:
        self.meanwhile()
        del self.rows[number]

    def count(self, name: str) -> int:
        return len(name)


@pytest.fixture
def outbox() -> SlowOutbox:
    return SlowOutbox()


@pytest.fixture
def transport(outbox: SlowOutbox) -> MqttTransport:
    return MqttTransport(
        Broker("127.0.0.1", 1), Topics("edge/v1", "box-1"), outbox, FakeClock(), boot_id="b", agent="0", post=print
    )


def test_a_long_outbox_is_handed_over_in_parts_as_the_broker_takes_them(
    monkeypatch: pytest.MonkeyPatch, outbox: SlowOutbox
) -> None:
    posted: list[Message] = []
    transport = MqttTransport(
        Broker("127.0.0.1", 1),
        Topics("edge/v1", "box-1"),
        outbox,
        FakeClock(),
        boot_id="b",
        agent="0",
        post=posted.append,
    )
    outbox.rows = {number: Report("a", b"%d" % number) for number in range(1000)}
    sent: list[bytes] = []

    def publish(_topic: str, payload: bytes, **_options: Any) -> Handed:
        sent.append(payload)
        return Handed(len(sent))

    monkeypatch.setattr(transport._client, "is_connected", lambda: True)
    transport._is_settled = True
    monkeypatch.setattr(transport._client, "publish", publish)
    transport.flush()
    transport.flush()
    assert len(sent) == MAX_IN_FLIGHT
    acknowledged = 0
    while acknowledged < len(sent):
        acknowledged += 1
        transport._delivery.on_publish(transport._client, None, acknowledged, Reason(), None)  # type: ignore[arg-type]
        assert len(sent) - acknowledged <= MAX_IN_FLIGHT
        if posted:
            assert isinstance(posted.pop(), Drained)
            transport.flush()
    assert sent == [b"%d" % number for number in range(1000)], "all of them, once each, in order"
    assert outbox.rows == {}


def test_a_report_that_is_just_being_forgotten_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, outbox: SlowOutbox, transport: MqttTransport
) -> None:
    sent: list[bytes] = []

    def publish(_topic: str, payload: bytes, **_options: Any) -> Handed:
        sent.append(payload)
        return Handed(len(sent))

    monkeypatch.setattr(transport._client, "is_connected", lambda: True)
    transport._is_settled = True
    monkeypatch.setattr(transport._client, "publish", publish)
    transport.flush()
    outbox.meanwhile = transport.flush
    transport._delivery.on_publish(transport._client, None, 1, Reason(), None)  # type: ignore[arg-type]
    transport._delivery.on_publish(transport._client, None, 2, Reason(), None)  # type: ignore[arg-type]
    transport.flush()
    assert sent == [b"1", b"2"]
    assert outbox.rows == {}


def test_commands_beyond_those_that_wait_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "PATIENCE_S", 60.0)
    posted: queue.SimpleQueue[Any] = queue.SimpleQueue()
    transport = MqttTransport(
        Broker("127.0.0.1", 1),
        Topics("edge/v1", "box-1"),
        SlowOutbox(),
        FakeClock(),
        boot_id="b",
        agent="0",
        post=posted.put,
    )
    acknowledged: list[int] = []
    monkeypatch.setattr(transport._client, "ack", lambda mid, _qos: acknowledged.append(mid))

    def read() -> None:
        for mid in range(1, 201):
            message = MQTTMessage(mid, b"edge/v1/box-1/cmd/status")
            message.qos, message.payload = 1, b"{}"
            transport._on_message(transport._client, None, message)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    first = [posted.get(timeout=10) for _ in range(MAX_WAITING)]
    with pytest.raises(queue.Empty):
        posted.get(timeout=0.05)
    for command in first:
        command.acknowledge()
    for _ in range(200 - MAX_WAITING):
        posted.get(timeout=10).acknowledge()
    reading.join(10)
    assert acknowledged == list(range(1, 201))


def test_nothing_newer_overtakes_what_an_earlier_connection_left(
    monkeypatch: pytest.MonkeyPatch, transport: MqttTransport
) -> None:
    """The library sends that again after CONNACK, from its own thread; the answer to SUBSCRIBE comes after it."""
    sent: list[bytes] = []
    client = transport._client

    def publish(_topic: str, payload: bytes, **_options: Any) -> Handed:
        sent.append(payload)
        return Handed(len(sent))

    monkeypatch.setattr(client, "is_connected", lambda: True)
    monkeypatch.setattr(client, "publish", publish)
    monkeypatch.setattr(client, "subscribe", lambda *_arguments, **_options: (0, 1))
    transport._on_pre_connect(client, None)
    transport._on_connect(client, None, SimpleNamespace(session_present=True), Reason(), None)  # type: ignore[arg-type]
    transport.flush()
    transport.publish(Report("edge/v1/box-1/health", b"{}", qos=0))
    assert sent == []
    transport._on_subscribe(client, None, 1, [Reason()], None)  # type: ignore[list-item]
    transport.flush()
    assert json.loads(sent[0])["state"] == "online"
    assert sent[1:] == [b"1", b"2"]
