"""One try at the broker for the doctor: name, connection, TLS, login and rights, without disturbing anybody.

Rules, since a broker may give this connection the session of the device whatever id it asks for (mosquitto's
``use_username_as_clientid``): it is made only while no agent runs; the session is neither cleaned nor shortened if it
was there before; commands that wait in it are not acknowledged, so they come again; there is no will.

A grant proves nothing, mosquitto grants subscriptions that it never serves. So a message makes the round trip on the
one topic that a device may both write and read, its own presence. It is not retained and says what is true and known:
the retained ``offline`` once more. Where ``online`` is retained the agent ended without a word, and this connection
may have kept the broker from saying so; then ``offline`` is said in its place, retained, as the will would have.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters.mqtt_client import connect_properties, make_client
from agent.adapters.tls import RenewingContext, TlsFiles
from agent.contract import reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.adapters.broker import Broker
    from agent.contract.topics import Topics

CONNECT_S = 5.0
ANSWER_S = 5.0
RETAINED_S = 1.0
"""How long a retained message may take after the subscription; it is sent at once."""


class Stage(str, Enum):
    """How far a try came: the stage that failed, or ``done``."""

    NAME = "name"
    CONNECTION = "connection"
    TLS = "tls"
    LOGIN = "login"
    WRITE = "write"
    READ = "read"
    DONE = "done"


@dataclass(frozen=True)
class Trial:
    """What became of a try.

    Attributes:
        stage: what failed, or ``done``.
        detail: the reason in the words of the system or of the broker.
        round_trip_ms: from publishing to receiving.
        certificate_ends: when the broker's certificate does.
    """

    stage: Stage
    detail: str = ""
    round_trip_ms: float | None = None
    certificate_ends: datetime | None = None


def reach(broker: Broker) -> Trial:
    """Try name, connection and TLS, and no word of MQTT: that disturbs no agent that runs."""
    try:
        with socket.create_connection((broker.host, broker.port), CONNECT_S) as plain:
            if not broker.use_tls:
                return Trial(Stage.DONE)
            context = RenewingContext(_files(broker))
            with context.wrap_socket(plain, server_hostname=broker.host) as secure:
                return Trial(Stage.DONE, certificate_ends=_end(secure))
    except OSError as error:
        return _failure(error)


def go(broker: Broker, topics: Topics, boot_id: str, agent: str) -> Trial:
    """Try everything. Only while no agent of this device runs.

    Args:
        broker: where, and how to log in.
        topics: of this device.
        boot_id: for a presence, if there was none.
        agent: likewise.
    """
    reached = reach(broker)
    if reached.stage is not Stage.DONE:
        return reached
    attempt = _Attempt(broker, topics)
    try:
        attempt.connect()
        unknown = reports.presence(
            topics, state="offline", epoch=0, boot_id=boot_id, agent=agent, reason="never connected", at=None
        )
        return replace(attempt.round_trip(unknown.payload), certificate_ends=reached.certificate_ends)
    except _EndError as end:
        return replace(end.trial, certificate_ends=reached.certificate_ends)
    finally:
        attempt.leave()


class _EndError(Exception):
    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.detail)
        self.trial = trial


@dataclass
class _Attempt:
    broker: Broker
    topics: Topics
    _client: Client = field(init=False)
    _answer: ReasonCode | None = None
    _had_session: bool = True
    _is_subscribed: bool = False
    _is_cut: bool = False
    _written: ReasonCode | None = None
    _heard: list[tuple[bytes, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tls = _files(self.broker) if self.broker.use_tls else None
        self._client = make_client(self.broker, f"{self.topics.device}-doctor", tls)
        self._client.connect_timeout = CONNECT_S
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish

    def connect(self) -> None:
        options: dict[str, Any] = {}
        if self.broker.version == "5":
            options = {"clean_start": False, "properties": connect_properties()}
        try:
            self._client.connect(self.broker.host, self.broker.port, 30, **options)
        except OSError as error:
            raise _EndError(_failure(error)) from None
        self._until(lambda: self._answer is not None, ANSWER_S, Stage.LOGIN, "no answer to CONNECT")
        if self._answer is not None and self._answer.is_failure:
            raise _EndError(Trial(Stage.LOGIN, str(self._answer)))

    def round_trip(self, unknown: bytes) -> Trial:
        # QoS 0: commands that wait may fill the window of what is not acknowledged.
        self._client.subscribe(self.topics.presence, qos=0)
        self._until(lambda: self._is_subscribed, ANSWER_S, Stage.READ, "no answer to SUBSCRIBE")
        self._loop(lambda: bool(self._heard), RETAINED_S)
        payload, is_correction = _offline(self._heard[0][0] if self._heard else unknown)
        begin = time.monotonic()
        self._client.publish(self.topics.presence, payload, qos=1, retain=is_correction)
        self._until(lambda: self._written is not None, ANSWER_S, Stage.WRITE, "a message was never acknowledged")
        if self._written is not None and self._written.is_failure:
            raise _EndError(Trial(Stage.WRITE, str(self._written)))
        # What is not retained now is what was just sent, or what another of this device's connections says: not ours.
        self._until(
            lambda: (payload, False) in self._heard, ANSWER_S, Stage.READ, "it was acknowledged, and never came"
        )
        elapsed_ms = round((time.monotonic() - begin) * 1e3, 1)
        return Trial(Stage.DONE, round_trip_ms=elapsed_ms)

    def leave(self) -> None:
        if self._client.is_connected():
            self._client.unsubscribe(self.topics.presence)
        farewell = None
        if (self.broker.version == "5") and not self._had_session:
            farewell = Properties(PacketTypes.DISCONNECT)
            farewell.SessionExpiryInterval = 0
        self._client.disconnect(properties=farewell)
        self._loop(lambda: False, 0.2)

    def _until(self, is_done: Callable[[], bool], limit_s: float, stage: Stage, reason: str) -> None:
        if not self._loop(is_done, limit_s):
            told = "the broker hung up" if self._is_cut else f"{reason} within {limit_s:g} s"
            raise _EndError(Trial(stage, told))

    def _loop(self, is_done: Callable[[], bool], limit_s: float) -> bool:
        end = time.monotonic() + limit_s
        while not is_done() and time.monotonic() < end and not self._is_cut:
            self._is_cut = self._client.loop(min(0.1, limit_s)) != MQTTErrorCode.MQTT_ERR_SUCCESS
        return is_done()

    def _on_connect(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._answer, self._had_session = reason, flags.session_present

    def _on_subscribe(self, *_: Any) -> None:
        self._is_subscribed = True

    def _on_publish(
        self, _client: Client, _data: Any, _mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._written = reason

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        if message.topic == self.topics.presence:
            self._heard.append((bytes(message.payload), bool(message.retain)))


def _offline(payload: bytes) -> tuple[bytes, bool]:
    """Return what to say, and whether it corrects an ``online`` that nobody stands behind."""
    try:
        body = json.loads(payload)
        is_online = body.get("state") == "online"
    except (ValueError, AttributeError):
        return payload, False
    if not is_online:
        return payload, False
    return json.dumps({**body, "state": "offline", "reason": "connection lost"}).encode(), True


def _files(broker: Broker) -> TlsFiles:
    return TlsFiles(broker.ca_file, broker.cert_file, broker.key_file)


def _failure(error: OSError) -> Trial:
    text = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return Trial(Stage.NAME, text)
    if isinstance(error, ssl.SSLError):
        return Trial(Stage.TLS, getattr(error, "verify_message", None) or error.reason or text)
    return Trial(Stage.CONNECTION, text)


def _end(connection: ssl.SSLSocket) -> datetime | None:
    """Return when the certificate at the other end of a connection ends."""
    ends = (connection.getpeercert() or {}).get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(ends)), timezone.utc) if ends else None
