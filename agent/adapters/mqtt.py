"""The broker, through paho-mqtt: commands in, reports out.

Rules: MQTT 5 with a session that outlives the connection; a command is acknowledged only when the journal holds it
(manual acknowledgement); reports with QoS 1 come from the outbox and leave it when the broker has acknowledged them;
every CONNECT has a new epoch, in will and birth alike; certificates are read again at every connect.

The network thread is paho's own. It only hands messages on and never waits for anybody. No error ends it: reports
stay in the outbox until they are acknowledged, and commands that are not acknowledged come again.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import structlog

from agent.adapters.contention import Contention
from agent.adapters.mqtt_client import (
    command_of,
    connect_properties,
    make_client,
    publish_properties,
    sources,
    subscriptions,
    wait_next,
    will_properties,
)
from agent.adapters.mqtt_outbox import Delivery
from agent.adapters.room import Room
from agent.adapters.survived import survived
from agent.adapters.tls import TlsFiles
from agent.contract import reports
from agent.deployment.inbox import Connected, Echoed, Overhearing, Remembered
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.adapters.broker import Broker, Outbox
    from agent.contract.reports import Report
    from agent.contract.topics import Topics
    from agent.deployment.inbox import Message
    from agent.deployment.ports import Clock

log = structlog.get_logger("mqtt")

MAX_FILTERS = 4
"""Filters in one SUBSCRIBE; AWS IoT Core takes eight, others fewer."""
KEEPALIVE_S = 30
MAX_WAITING, PATIENCE_S = 64, 5.0
"""Messages that wait for the engine before no more are read, and for how long; below what a broker's ping allows."""


class MqttTransport:
    """One device's connection.

    Args:
        broker: where to.
        topics: this device's topics.
        outbox: reports that wait, and the epoch counter.
        clock: for the time in a birth message.
        boot_id, agent: for presence.
        groups: whose wanted state counts here, too.
        overhears: whether the broker is to tell what it has of this device's operations; asked at every connect.
        post: takes commands, wanted states, halts, ``Connected`` and ``Echoed``; must not block.
    """

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        outbox: Outbox,
        clock: Clock,
        *,
        boot_id: str,
        agent: str,
        groups: Sequence[str] = (),
        overhears: Callable[[], bool] = lambda: False,
        post: Callable[[Message], None],
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._outbox = outbox
        self._clock = clock
        self._boot_id = boot_id
        self._agent = agent
        self._sources = sources(topics, groups)
        self._overhears = overhears
        self._overhearing: int | None = None
        self._post = post
        self._epoch = 0
        self._is_v5 = broker.version == "5"
        self._delivery = Delivery(outbox, clock, is_v5=self._is_v5, post=post)
        self._is_leaving = False
        self._room = Room(MAX_WAITING, PATIENCE_S)
        self._owes_birth = self._is_settled = False
        self._contention = Contention(topics.device)
        self._tls = TlsFiles(broker.ca_file, broker.cert_file, broker.key_file) if broker.use_tls else None
        self._client = self._make_client()

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        return self._client.is_connected()

    @property
    def _is_open(self) -> bool:
        """Whether what an older connection left, which paho sends after CONNACK, cannot overtake newer states now."""
        return self._is_settled and self._client.is_connected()

    @property
    def is_echoed(self) -> bool:
        """Whether what this connection published came back from the broker: the device has its rights.

        A grant of the broker proves nothing; mosquitto grants subscriptions that it never serves.
        """
        return self._client.is_connected() and self._contention.has_heard_last

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is wrong with the certificates, the session and the device's rights now, a sentence each."""
        contention = self._contention.alarm(self._clock.monotonic())
        problems = (self._certificate_problem(), contention, self._delivery.alarm)
        return tuple(problem for problem in problems if problem)

    @property
    def connection(self) -> int | None:
        """Number of the connection that stands, counted over the life of the device; None without one."""
        return self._epoch if self._client.is_connected() else None

    def start(self) -> None:
        """Connect in the background, again and again until ``stop``."""
        options: dict[str, Any] = {}
        if self._is_v5:
            options = {"clean_start": False, "properties": connect_properties()}
        self._client.connect_async(self._broker.host, self._broker.port, KEEPALIVE_S, **options)
        self._client.loop_start()

    def stop(self, reason: str, timeout_s: float = 5.0) -> None:
        """Send what waits, say goodbye and disconnect, so that the will is not published."""
        self._room.close()
        self._is_leaving = True  # the farewell comes back as an echo, and must not be corrected
        if self._client.is_connected():
            self.flush()
            self._say_offline(reason, timeout_s)
        self._client.disconnect()
        self._client.loop_stop()

    @survived
    def _say_offline(self, reason: str, timeout_s: float) -> None:
        farewell = self._presence("offline", reason)
        with around("mqtt.farewell.publish"):
            info = self._client.publish(farewell.topic, farewell.payload, qos=1, retain=True)
        try:
            info.wait_for_publish(timeout_s)
        except (RuntimeError, ValueError):
            log.warning("farewell_lost")

    @survived
    def publish(self, report: Report) -> None:
        """Send a report that may be lost; without a connection it is dropped. What a flush kept back goes along."""
        if self._is_open:
            if self._delivery.is_behind:
                self.flush()
            properties = publish_properties(report, is_v5=self._is_v5)
            with around("mqtt.telemetry.publish"):
                self._client.publish(report.topic, report.payload, qos=0, retain=report.retain, properties=properties)

    @survived
    def flush(self) -> None:
        """Hand every waiting report to the connection that it does not have yet."""
        self._delivery.is_behind = True
        if self._is_open and not self._delivery.is_pausing:
            if self._owes_birth:
                self._say_online()
            self._delivery.flush(self._client)

    def _make_client(self) -> Client:
        client = make_client(self._broker, self._topics.device, self._tls)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        client.on_message = self._on_message
        client.on_publish = self._delivery.on_publish
        return client

    def _certificate_problem(self) -> str | None:
        if self._tls is None:
            return None
        return self._tls.problem(self._clock.now() if self._clock.is_synchronised() else None)

    def _on_pre_connect(self, client: Client, _data: Any) -> None:
        self._is_settled, self._owes_birth = False, True
        try:
            self._epoch = max(self._outbox.count("epoch"), self._epoch + 1)
        except Exception:
            log.exception("epoch_not_kept")  # a device that cannot write must still be reached
            self._epoch += 1
        will = self._presence("offline", "connection lost", at=False)
        client.will_set(
            will.topic, will.payload, qos=1, retain=True, properties=will_properties() if self._is_v5 else None
        )
        problem = self._certificate_problem()
        if problem:
            log.error("certificate_alarm", detail=problem)

    @survived
    def _on_connect(
        self, client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.error("connect_refused", host=self._broker.host, port=self._broker.port, reason=str(reason))
            return
        log.info("connected", host=self._broker.host, port=self._broker.port, session=flags.session_present)
        self._contention.began(self._clock.monotonic())
        filters = subscriptions(self._topics.commands, [self._topics.presence, *self._sources], is_v5=self._is_v5)
        for first in range(0, len(filters), MAX_FILTERS):
            client.subscribe(filters[first : first + MAX_FILTERS])
        # Last, so that whatever else the broker has comes first. QoS 0 takes no place in the queue of commands.
        self._overhearing = client.subscribe(self._topics.operations, qos=0)[1] if self._overhears() else None

    def _say_online(self) -> None:
        """Publish the birth of this connection; one that fails is owed until the next flush."""
        birth = self._presence("online", None)
        with around("mqtt.birth.publish"):
            self._client.publish(birth.topic, birth.payload, qos=1, retain=True)
        self._owes_birth = False

    @survived
    def _on_subscribe(
        self, _client: Client, _data: Any, mid: int, reasons: Sequence[ReasonCode], _properties: Properties | None
    ) -> None:
        if not self._is_settled:
            self._is_settled = True
            try:
                self._say_online()
            finally:
                self._post(Connected())
        if mid == self._overhearing:
            self._post(Overhearing(not any(reason.is_failure for reason in reasons)))

    @survived
    def overhear_no_more(self) -> None:
        """Have the broker no longer tell this device's own operations."""
        self._overhearing = None
        self._client.unsubscribe(self._topics.operations)

    def _overheard(self, operation_id: str, message: MQTTMessage, acknowledge: Callable[[], None]) -> None:
        if self._overhearing is None:  # left over from a connection that ended in between
            self.overhear_no_more()
        elif message.retain:
            self._room.enter()
            self._post(Remembered(operation_id, bytes(message.payload), acknowledge))

    def _on_disconnect(
        self, client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self._is_leaving:
            log.info("disconnected", reason=str(reason), code=reason.value)
            return
        wait_s = self._contention.ended(self._clock.monotonic(), reason.value)
        wait_next(client, wait_s)
        log.warning("disconnected", reason=str(reason), code=reason.value, next_try_in_s=wait_s and round(wait_s, 1))

    def _on_connect_fail(self, client: Client, _data: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this while it handles what went wrong
        wait_next(client, self._contention.failed())
        log.warning("connect_failed", host=self._broker.host, port=self._broker.port, error=str(error))

    @survived
    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        name, operation_id = self._topics.command_name(message.topic), self._topics.operation_id(message.topic)
        wanted = self._sources.get(message.topic)
        epoch, mid, qos = self._epoch, message.mid, message.qos
        is_done = False

        @survived
        def acknowledge() -> None:
            nonlocal is_done
            if is_done:  # it was handled again; by now its number may be another message's
                return
            is_done = True
            self._room.leave()
            if epoch == self._epoch:  # an older connection's message comes again by itself
                with around("mqtt.puback"):
                    client.ack(mid, qos)

        if wanted is not None:
            self._room.enter()
            self._post(wanted(bytes(message.payload), bool(message.retain), acknowledge, epoch))
        elif name is not None and message.payload:
            self._room.enter()
            self._post(command_of(name, message, acknowledge))
        elif operation_id is not None:
            self._overheard(operation_id, message, acknowledge)
        else:
            with around("mqtt.puback"):
                client.ack(mid, qos)
            if message.topic == self._topics.presence:
                self._correct_presence(bytes(message.payload))
            elif name is not None:
                log.debug("command_cleared", name=name)  # how a retained one is taken back: no command

    def _correct_presence(self, payload: bytes) -> None:
        """Say ``online`` again when an old will, delivered late, says otherwise; note who else says it, or an echo."""
        if self._is_leaving:
            return
        try:
            told = json.loads(payload)
            if told.get("state") == "online":
                self._contention.heard(payload)
                if self._contention.has_heard_last and told.get("epoch") == self._epoch:
                    self._post(Echoed(self._epoch))
            is_stale = told.get("state") == "offline" and int(told.get("epoch", 0)) <= self._epoch
        except (ValueError, TypeError, AttributeError):
            return
        if is_stale:
            self._say_online()

    def _presence(self, state: str, reason: str | None, *, at: bool = True) -> Report:
        report = reports.presence(
            self._topics,
            state=state,
            epoch=self._epoch,
            boot_id=self._boot_id,
            agent=self._agent,
            reason=reason,
            at=self._clock.now() if at else None,
        )
        if state == "online":
            self._contention.said(report.payload)
        return report
