"""The stand-in of AWS IoT Jobs on a broker. Unlike the real one it cannot answer the client that asked alone."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from tests.e2e.harness.mqtt import HOST
from tests.fakes.aws_jobs import JobsService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.fakes.aws_jobs import JobExecution, Message

JsonObject = dict[str, Any]
ANSWER_S = 60.0


class JobsAtBroker:
    """Jobs for the things of one broker.

    Args:
        port: of the broker on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._service = JobsService()
        self._changed = threading.Condition()
        subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe("$aws/things/+/jobs/#", qos=1)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(HOST, port)
        self._client.loop_start()
        assert subscribed.wait(ANSWER_S), "the broker does not answer"

    def close(self) -> None:
        """Leave the broker."""
        self._client.disconnect()
        self._client.loop_stop()

    def create(self, thing: str, job: str, document: JsonObject) -> None:
        """Roll a job out."""
        self._do(lambda: self._service.create(thing, job, document))

    def cancel(self, thing: str, job: str) -> None:
        """Cancel an execution by force, as ``cancel-job-execution --force`` does."""
        self._do(lambda: self._service.end(thing, job, "CANCELED"))

    def touch(self, thing: str, job: str) -> None:
        """Update an execution behind the bridge's back."""
        with self._changed:
            found = self._service.find(thing, job)
            found.version += 1
            found.details = {"note": "a person was here"}

    def wait(self, thing: str, job: str, *statuses: str) -> JobExecution:
        """Return an execution once it has one of these statuses."""
        with self._changed:
            found = self._service.find(thing, job)
            assert self._changed.wait_for(lambda: found.status in statuses, ANSWER_S), f"{job} is {found.status}"
            return found

    def _do(self, what: Callable[[], Iterable[Message]]) -> None:
        with self._changed:
            self._publish(what())
            self._changed.notify_all()

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._do(lambda: self._service.request(message.topic, bytes(message.payload)))

    def _publish(self, messages: Iterable[Message]) -> None:
        for topic, body in messages:
            self._client.publish(topic, json.dumps(body), qos=1)
