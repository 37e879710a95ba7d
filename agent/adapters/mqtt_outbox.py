"""Reports on their way from the outbox to the broker: each is handed over once, and forgotten when it is acknowledged.

A report that is neither acknowledged nor refused for good stays in the outbox and comes again; see ``refusals``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import structlog
from paho.mqtt.enums import MQTTErrorCode

from agent.adapters.mqtt_client import publish_properties
from agent.adapters.refusals import Refusals
from agent.adapters.survived import survived
from agent.deployment.inbox import Drained
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.client import Client
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.adapters.broker import Outbox
    from agent.contract.reports import Report
    from agent.deployment.ports import Clock

log = structlog.get_logger("mqtt")
MAX_IN_FLIGHT = 256
"""Reports that a connection holds without an acknowledgement; the others wait in the journal, and take no memory."""


class Delivery:
    """Hands over what waits. Threads: ``flush`` any, ``on_publish`` the client's.

    Args:
        outbox: what waits.
        clock: for the pauses that a broker's refusal asks for.
        is_v5: whether reports have properties.
        post: takes ``Drained`` when there is room again for what was kept back; must not block.
    """

    def __init__(self, outbox: Outbox, clock: Clock, *, is_v5: bool, post: Callable[[Drained], None]) -> None:
        self._outbox = outbox
        self._clock = clock
        self._is_v5 = is_v5
        self._post = post
        self._in_flight: dict[int, int] = {}
        self._early: dict[int, bool] = {}
        self._refusals = Refusals()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self.is_behind = False
        """Whether something may wait that was not handed over."""

    @property
    def is_pausing(self) -> bool:
        """Whether the broker is to be left alone now."""
        return self._refusals.is_pausing(self._clock.monotonic())

    @property
    def alarm(self) -> str | None:
        """What the broker refused of late, in a sentence."""
        return self._refusals.alarm(self._clock.monotonic())

    def flush(self, client: Client) -> None:
        """Hand every waiting report to a connection that does not have it yet, as far as there is room."""
        with self._flushing:
            sent, oldest = set(self._in_flight.values()), self._outbox.outbox(MAX_IN_FLIGHT)
            for number, report in oldest:
                if number not in sent and not self._send(client, number, report):
                    break
            else:
                self.is_behind = len(oldest) == MAX_IN_FLIGHT
            self._early.clear()

    def _send(self, client: Client, number: int, report: Report) -> bool:
        """Publish one report of the outbox; return whether the connection took it.

        paho calls ``on_publish`` with a lock of its own held that ``publish`` takes too, so nothing may be locked
        here while publishing; an acknowledgement that overtakes the return of ``publish`` waits in ``_early``, with
        whether the broker wants it again.
        """
        properties = publish_properties(report, is_v5=self._is_v5)
        with around("mqtt.report.publish"):
            info = client.publish(report.topic, report.payload, qos=1, retain=report.retain, properties=properties)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            return False
        with self._lock:
            is_wanted_again = self._early.get(info.mid)
            if is_wanted_again is None:
                self._in_flight[info.mid] = number
        if is_wanted_again is False:
            self._outbox.acknowledged(number)
        return not is_wanted_again

    @survived
    def on_publish(
        self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        """Take the broker's answer to a message: its acknowledgement, or its refusal."""
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
        self.is_behind = self.is_behind or is_wanted_again
        try:
            if not is_wanted_again:
                self._outbox.acknowledged(number)
        finally:  # not before: a flush that comes between would send it again
            with self._lock:
                self._in_flight.pop(mid, None)
                has_room = self.is_behind and len(self._in_flight) == MAX_IN_FLIGHT // 2
            if has_room:
                self._post(Drained())
