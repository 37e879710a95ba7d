"""The operator's side of the broker, through paho-mqtt: publish, and listen to topics.

No session is kept: an operator's program comes and goes, and everything that matters is retained by the broker.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paho.mqtt.client import ConnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.adapters.tls import TlsFiles


class BrokerError(Exception):
    """The broker cannot be reached or refuses."""


class Messages:
    """An open connection; use as a context manager.

    Raises:
        BrokerError: when the files for TLS cannot be used, or no connection comes about within ``timeout_s`` seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: TlsFiles | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._where = f"{host}:{port}"
        self._timeout_s = timeout_s
        self._answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._listeners: list[tuple[str, queue.SimpleQueue[bytes]]] = []
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        if username is not None:
            self._client.username_pw_set(username, password)
        self._refused: dict[int, str] = {}
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        if tls is not None:
            problem = tls.problem(None)
            if problem is not None:
                raise BrokerError(problem)
            self._client.tls_set_context(tls.context())
        try:
            self._client.connect(host, port)
        except OSError as error:
            raise BrokerError(f"broker {self._where}: {error.strerror or error}") from None

    def __enter__(self) -> Messages:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._client.loop_start()
        try:
            refusal = self._answer.get(timeout=self._timeout_s)
        except queue.Empty:
            refusal = f"no answer in {self._timeout_s:.0f} s"
        if refusal is not None:
            self._client.loop_stop()
            raise BrokerError(f"broker {self._where}: {refusal}")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 1, not retained, and wait until the broker has it.

        Raises:
            BrokerError: when it refuses, or says nothing.
        """
        info = self._client.publish(topic, payload, qos=1)
        info.wait_for_publish(self._timeout_s)
        if not info.is_published():
            raise BrokerError(f"broker {self._where} did not acknowledge a message on {topic}")
        refusal = self._refused.pop(info.mid, None)
        if refusal is not None:
            raise BrokerError(f"broker {self._where} refuses a message on {topic}: {refusal}")

    @contextlib.contextmanager
    def listen(self, topic: str) -> Iterator[queue.SimpleQueue[bytes]]:
        """Collect the payloads of a topic or filter while the block runs; retained ones come first."""
        inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._lock:
            self._listeners.append((topic, inbox))
        self._client.subscribe(topic, qos=1)
        try:
            yield inbox
        finally:
            with self._lock:
                self._listeners.remove((topic, inbox))
                is_last = all(other != topic for other, _ in self._listeners)
            if is_last:
                self._client.unsubscribe(topic)

    def _on_connect(
        self, client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._answer.put(str(reason) if reason.is_failure else None)
        with self._lock:
            topics = {topic for topic, _ in self._listeners}
        for topic in topics:
            client.subscribe(topic, qos=1)

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:  # paho counts a refused message as published, and calls this first
            self._refused[mid] = str(reason)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        with self._lock:
            for topic, inbox in self._listeners:
                if topic_matches_sub(topic, message.topic):
                    inbox.put(bytes(message.payload))
