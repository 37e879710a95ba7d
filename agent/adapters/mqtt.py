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
import threading
from typing import TYPE_CHECKING, Any

import structlog
from paho.mqtt.enums import MQTTErrorCode

from agent.adapters.contention import Contention
from agent.adapters.mqtt_client import (
    RECONNECT_S,
    connect_properties,
    make_client,
    publish_properties,
    subscriptions,
    will_properties,
)
from agent.adapters.refusals import Refusals
from agent.adapters.room import Room
from agent.adapters.survived import survived
from agent.adapters.tls import TlsFiles
from agent.contract import reports
from agent.contract.desired import OWN, DesiredMessage
from agent.deployment.inbox import Connected, Drained, Overhearing, Remembered
from agent.deployment.intake import CommandMessage
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.adapters.broker import Broker, Outbox
    from agent.contract.reports import Report
    from agent.contract.topics import Topics
    from agent.deployment.ports import Clock

log = structlog.get_logger("mqtt")

MAX_FILTERS = 4
"""Filters in one SUBSCRIBE; AWS IoT Core takes eight, others fewer."""
KEEPALIVE_S = 30
MAX_IN_FLIGHT = 256
"""Reports that a connection holds without an acknowledgement; the others wait in the journal, and take no memory."""
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
        post: takes commands, wanted states and ``Connected``; must not block.
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
        post: Callable[[CommandMessage | DesiredMessage | Connected | Drained | Overhearing | Remembered], None],
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._outbox = outbox
        self._clock = clock
        self._boot_id = boot_id
        self._agent = agent
        self._sources = {topics.desired: OWN, **{topics.group_desired(group): group for group in groups}}
        self._overhears = overhears
        self._overhearing: int | None = None
        self._post = post
        self._epoch = 0
        self._is_v5 = broker.version == "5"
        self._in_flight: dict[int, int] = {}
        self._early: dict[int, bool] = {}
        self._refusals = Refusals()
        self._is_leaving = False
        self._room = Room(MAX_WAITING, PATIENCE_S)
        self._is_behind = self._owes_birth = False
        self._contention = Contention(topics.device)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._tls = TlsFiles(broker.ca_file, broker.cert_file, broker.key_file) if broker.use_tls else None
        self._client = self._make_client()

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        return self._client.is_connected()

    @property
    def is_echoed(self) -> bool:
        """Whether what this connection published came back from the broker: the device has its rights.

        A grant of the broker proves nothing; mosquitto grants subscriptions that it never serves.
        """
        return self._client.is_connected() and self._contention.has_heard_last

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is wrong with the certificates, the session and the device's rights now, a sentence each."""
        now = self._clock.monotonic()
        problems = (self._certificate_problem(), self._contention.alarm(now), self._refusals.alarm(now))
        return tuple(problem for problem in problems if problem)

    @property
    def epoch(self) -> int:
        """Number of the current connection, counted over the life of the device."""
        return self._epoch

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
        if self._client.is_connected():
            if self._is_behind:
                self.flush()
            properties = publish_properties(report, is_v5=self._is_v5)
            with around("mqtt.telemetry.publish"):
                self._client.publish(report.topic, report.payload, qos=0, retain=report.retain, properties=properties)

    @survived
    def flush(self) -> None:
        """Hand every waiting report to the connection that it does not have yet."""
        self._is_behind = True
        if not self._client.is_connected() or self._refusals.is_pausing(self._clock.monotonic()):
            return
        if self._owes_birth:
            self._say_online()
        with self._flushing:
            sent, oldest = set(self._in_flight.values()), self._outbox.outbox(MAX_IN_FLIGHT)
            for number, report in oldest:
                if number not in sent and not self._send(number, report):
                    break
            else:
                self._is_behind = len(oldest) == MAX_IN_FLIGHT
            self._early.clear()

    def _send(self, number: int, report: Report) -> bool:
        """Publish one report of the outbox; return whether the connection took it.

        paho calls ``_on_publish`` with a lock of its own held that ``publish`` takes too, so nothing may be locked
        here while publishing; an acknowledgement that overtakes the return of ``publish`` waits in ``_early``, with
        whether the broker wants it again.
        """
        properties = publish_properties(report, is_v5=self._is_v5)
        with around("mqtt.report.publish"):
            info = self._client.publish(
                report.topic, report.payload, qos=1, retain=report.retain, properties=properties
            )
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            return False
        with self._lock:
            is_wanted_again = self._early.get(info.mid)
            if is_wanted_again is None:
                self._in_flight[info.mid] = number
        if is_wanted_again is False:
            self._outbox.acknowledged(number)
        return not is_wanted_again

    def _make_client(self) -> Client:
        client = make_client(self._broker, self._topics.device, self._tls)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _certificate_problem(self) -> str | None:
        if self._tls is None:
            return None
        return self._tls.problem(self._clock.now() if self._clock.is_synchronised() else None)

    def _on_pre_connect(self, client: Client, _data: Any) -> None:
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
        self._owes_birth = True
        try:
            self._say_online()
        finally:
            self._post(Connected())

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
        if wait_s is not None:
            client.reconnect_delay_set(wait_s, max(wait_s, RECONNECT_S[1]))  # type: ignore[arg-type]  # it only adds
        log.warning("disconnected", reason=str(reason), code=reason.value, next_try_in_s=wait_s and round(wait_s, 1))

    def _on_connect_fail(self, _client: Client, _data: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this while it handles what went wrong
        log.warning("connect_failed", host=self._broker.host, port=self._broker.port, error=str(error))

    @survived
    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        name, operation_id = self._topics.command_name(message.topic), self._topics.operation_id(message.topic)
        source = self._sources.get(message.topic)
        properties: Any = message.properties
        epoch, mid, qos = self._epoch, message.mid, message.qos

        @survived
        def acknowledge() -> None:
            self._room.leave()
            if epoch == self._epoch:  # an older connection's message comes again by itself
                with around("mqtt.puback"):
                    client.ack(mid, qos)

        if source is not None:
            self._room.enter()
            self._post(DesiredMessage(source, bytes(message.payload), bool(message.retain), acknowledge))
        elif name is not None and message.payload:
            self._room.enter()
            self._post(
                CommandMessage(
                    name,
                    bytes(message.payload),
                    is_retained=bool(message.retain),
                    response_topic=getattr(properties, "ResponseTopic", None),
                    correlation=getattr(properties, "CorrelationData", None),
                    acknowledge=acknowledge,
                )
            )
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
        """Say ``online`` again when an old will, delivered late, says otherwise; note who else says it."""
        if self._is_leaving:
            return
        try:
            told = json.loads(payload)
            if told.get("state") == "online":
                self._contention.heard(payload)
            is_stale = told.get("state") == "offline" and int(told.get("epoch", 0)) <= self._epoch
        except (ValueError, TypeError, AttributeError):
            return
        if is_stale:
            self._say_online()

    @survived
    def _on_publish(
        self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        is_wanted_again = False
        if reason.is_failure:
            log.error("publish_refused", reason=str(reason))
            is_wanted_again = self._refusals.refused(reason.value, str(reason), self._clock.monotonic())
        with self._lock:
            number = self._in_flight.get(mid)
            if number is None and self._flushing.locked():
                self._early[mid] = is_wanted_again
        if number is None:
            return
        if not reason.is_failure:
            self._refusals.taken()
        self._is_behind = self._is_behind or is_wanted_again
        try:
            if not is_wanted_again:
                self._outbox.acknowledged(number)
        finally:  # not before: a flush that comes between would send it again
            with self._lock:
                self._in_flight.pop(mid, None)
                has_room = self._is_behind and len(self._in_flight) == MAX_IN_FLIGHT // 2
            if has_room:
                self._post(Drained())

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
