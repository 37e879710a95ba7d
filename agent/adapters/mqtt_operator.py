"""The operator's side of the broker, through paho-mqtt: publish, and listen to topics.

No session is kept: an operator's program comes and goes, and everything that matters is retained by the broker.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paho.mqtt.client import Client, MQTTMessage, MQTTv5, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from paho.mqtt.client import ConnectFlags
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.adapters.tls import TlsFiles


RECEIVE_MAXIMUM = 65_535
MAX_FILTERS = 4
"""In one SUBSCRIBE: some brokers allow no more."""


class BrokerError(Exception):
    """The broker cannot be reached or refuses."""


class TlsFilesError(BrokerError):
    """The files for TLS cannot be used; nobody was asked yet."""


class RefusedMessageError(BrokerError):
    """The broker took no message on a topic; the connection stands."""


class RefusedFilterError(BrokerError):
    """The broker does not let this login hear a filter; the connection stands."""


@dataclass(frozen=True)
class Heard:
    """One message.

    Attributes:
        topic, payload: as published.
        is_retained: whether the broker had kept it, and handed it over to a new subscription.
    """

    topic: str
    payload: bytes
    is_retained: bool


class Messages:
    """An open connection; use as a context manager.

    Args:
        host, port: where the broker is.
        username, password: how to log in.
        tls: encrypts; None does not.
        ws_path: path of the broker's WebSocket; None speaks MQTT on TCP.
        client_id: by which the broker knows this connection; empty lets it make one up.
        timeout_s: for each answer of the broker.

    Attributes:
        was_lost: whether the connection was ever cut; what came meanwhile and was not retained is lost, too.
        lost_s: since when it is cut, monotonic seconds; None while it stands.
        on_change: called when it is cut (``False``) and when it is back (``True``), from a thread of its own.
        on_refused: called with a filter that the broker does not let this login hear, and its reason; from that thread,
            too. Others are heard all the same.

    Raises:
        TlsFilesError: when the files for TLS cannot be used.
        BrokerError: when no connection comes about within ``timeout_s`` seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: TlsFiles | None = None,
        ws_path: str | None = None,
        client_id: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        self._where = f"{host}:{port}"
        self._tls = tls
        self._timeout_s = timeout_s
        self._answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._listeners: list[tuple[tuple[str, ...], Callable[[Heard], None]]] = []
        transport: Literal["tcp", "websockets"] = "tcp" if ws_path is None else "websockets"
        self.was_lost = False
        self.lost_s: float | None = None
        self.on_change: Callable[[bool], None] = lambda _is_back: None
        self.on_refused: Callable[[str, str], None] = lambda _filter, _reason: None
        self._asked: dict[int, Sequence[str]] = {}
        self._is_over = False
        self._client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5, transport=transport)
        if ws_path is not None:
            self._client.ws_set_options(ws_path)
        if username is not None:
            self._client.username_pw_set(username, password)
        self._refused: dict[int, str] = {}
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect
        if tls is not None:
            problem = tls.problem(None)
            if problem is not None:
                raise TlsFilesError(problem)
            self._client.tls_set_context(tls.context())
        try:
            self._client.connect(host, port, properties=_connect_properties())
        except OSError as error:
            raise BrokerError(f"broker {self._where}: {error.strerror or error}") from None

    def __enter__(self) -> Messages:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._client.loop_start()
        try:
            refusal = self._answer.get(timeout=self._timeout_s)
        except queue.Empty:
            refusal = self._silence()
        if refusal is not None:
            self._client.loop_stop()
            raise BrokerError(f"broker {self._where}: {refusal}")
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._client.disconnect()
        self._client.loop_stop()

    def _silence(self) -> str:
        """Return that no answer came, and what may be wrong where the broker hung up instead."""
        silence = f"no answer in {self._timeout_s:.0f} s"
        if not self.was_lost:
            return silence
        if self._tls is None:
            wanted = "does it want TLS (--tls)?"
        elif self._tls.cert_file is None:
            wanted = "does it want a client certificate (--cert-file, --key-file)?"
        else:
            wanted = "its log says why"
        return f"{silence}, it closes the connection: {wanted}"

    def publish(self, topic: str, payload: bytes, *, expiry_s: float | None = None, retain: bool = False) -> None:
        """Publish with QoS 1, and wait until the broker has it.

        Args:
            topic: where to.
            payload: what.
            expiry_s: how long the broker keeps it for a receiver that is away; None for as long as it likes.
            retain: whether it is kept for receivers to come; commands are not. An empty one takes back what is kept.

        Raises:
            RefusedMessageError: it refuses.
            BrokerError: it says nothing.
        """
        properties = Properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = max(1, round(expiry_s))
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        is_published = False
        with contextlib.suppress(RuntimeError):  # without a connection both of them raise it
            info.wait_for_publish(self._timeout_s)
            is_published = info.is_published()
        if not is_published:
            raise BrokerError(f"broker {self._where} did not acknowledge a message on {topic}")
        refusal = self._refused.pop(info.mid, None)
        if refusal is not None:
            raise RefusedMessageError(f"broker {self._where} refuses a message on {topic}: {refusal}")

    @contextlib.contextmanager
    def listen(self, topic: str) -> Iterator[queue.SimpleQueue[bytes]]:
        """Collect the payloads of a topic or filter while the block runs; retained ones come first."""
        inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._subscribed((topic,), lambda heard: inbox.put(heard.payload)):
            yield inbox

    @contextlib.contextmanager
    def hear(self, *filters: str, inbox: queue.SimpleQueue[Any] | None = None) -> Iterator[queue.SimpleQueue[Heard]]:
        """Collect what comes on any of several filters while the block runs, with its topic.

        Args:
            filters: what to listen to.
            inbox: where it is put, perhaps beside other things; a queue of its own by default.
        """
        inbox = queue.SimpleQueue() if inbox is None else inbox
        with self._subscribed(filters, inbox.put):
            yield inbox

    @contextlib.contextmanager
    def _subscribed(self, filters: tuple[str, ...], take: Callable[[Heard], None]) -> Iterator[None]:
        listener = (filters, take)
        with self._lock:
            self._listeners.append(listener)
        self._subscribe(filters)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
                left = set(filters) - {each for others, _ in self._listeners for each in others}
            if left:
                self._client.unsubscribe(sorted(left))

    def _subscribe(self, filters: Sequence[str]) -> None:
        for begin in range(0, len(filters), MAX_FILTERS):
            some = filters[begin : begin + MAX_FILTERS]
            with self._lock:  # the answer may be there before the number is known here
                _, number = self._client.subscribe([(each, 1) for each in some])
                if number is not None:
                    self._asked[number] = some

    def _on_connect(
        self, _client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._answer.put(str(reason) if reason.is_failure else None)
        with self._lock:
            self._asked.clear()  # on an older connection; nobody will answer
            filters = {each for several, _ in self._listeners for each in several}
        self._subscribe(sorted(filters))
        if self.lost_s is not None and not reason.is_failure:
            self.lost_s = None
            self.on_change(True)  # noqa: FBT003 - a callback has no keywords

    def _on_disconnect(self, *_: object) -> None:
        self.was_lost = True
        if self.lost_s is None and not self._is_over:
            self.lost_s = time.monotonic()
            self.on_change(False)  # noqa: FBT003 - a callback has no keywords

    def _on_subscribe(
        self, _client: Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        with self._lock:
            asked = self._asked.pop(mid, ())
        for each, reason in zip(asked, reasons, strict=False):
            if reason.is_failure:
                self.on_refused(each, str(reason))

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:  # paho counts a refused message as published, and calls this first
            self._refused[mid] = str(reason)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        heard = Heard(message.topic, bytes(message.payload), bool(message.retain))
        with self._lock:
            for filters, take in self._listeners:
                if any(topic_matches_sub(each, heard.topic) for each in filters):
                    take(heard)


def _connect_properties() -> Properties:
    """Return what CONNECT asks for: that a whole fleet is handed over without waiting for one message after another."""
    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    return properties
