"""How the client library is set up for a broker: session, limits, login, TLS."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.adapters.tls import RenewingContext
from agent.contract.desired import OWN, DesiredMessage, HaltMessage, RetainedMessage
from agent.deployment.intake import CommandMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paho.mqtt.client import MQTTMessage

    from agent.adapters.broker import Broker
    from agent.adapters.tls import TlsFiles
    from agent.contract.reports import Report
    from agent.contract.topics import Topics

SESSION_EXPIRY_S = 7 * 24 * 3600
RECEIVE_MAXIMUM = 16
MAX_PACKET_BYTES = 256 * 1024
RECONNECT_S = (1, 60)
WILL_DELAY_S = 30


def make_client(broker: Broker, device: str, tls: TlsFiles | None) -> Client:
    """Return a client whose session outlives its connections and that acknowledges what it is told to."""
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=device,
        clean_session=None if (broker.version == "5") else False,
        protocol=MQTTv5 if (broker.version == "5") else MQTTv311,
        transport="websockets" if broker.transport == "websockets" else "tcp",
        manual_ack=True,
    )
    client.reconnect_delay_set(*RECONNECT_S)
    client.max_queued_messages_set(0)
    if broker.username is not None:
        client.username_pw_set(broker.username, broker.password)
    if tls is not None:
        client.tls_set_context(RenewingContext(tls))  # type: ignore[arg-type]  # it wraps sockets, no more
    return client


def connect_properties() -> Properties:
    """Return what an MQTT 5 CONNECT asks for."""
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties


def will_properties() -> Properties:
    """Return what an MQTT 5 will is published with."""
    properties = Properties(PacketTypes.WILLMESSAGE)
    properties.WillDelayInterval = WILL_DELAY_S
    return properties


def publish_properties(report: Report, *, is_v5: bool) -> Properties | None:
    """Return what a report is published with, None where the protocol has no properties."""
    if not is_v5:
        return None
    properties = Properties(PacketTypes.PUBLISH)
    if report.expiry_s is not None:
        properties.MessageExpiryInterval = report.expiry_s
    if report.correlation is not None:
        properties.CorrelationData = report.correlation
    return properties


def subscriptions(commands: str, others: Sequence[str], *, is_v5: bool) -> list[tuple[str, Any]]:
    """Return the filters. MQTT 5 is asked to leave the retain flag as published (3.8.3.1, "Retain As Published").

    Otherwise a broker clears it for subscribers that are there already, and a retained command would first run and only
    be refused at the next reconnect. MQTT 3.1.1 cannot ask for that. For a wanted state the flag is wanted as brokers
    set it by themselves: it tells a replay from news.
    """
    if not is_v5:
        return [(name, 1) for name in (commands, *others)]
    as_published = SubscribeOptions(qos=1, retainAsPublished=True)
    return [(commands, as_published), *((name, SubscribeOptions(qos=1)) for name in others)]


def sources(topics: Topics, groups: Sequence[str]) -> dict[str, Callable[..., RetainedMessage]]:
    """Return the topics of halts and wanted states, each with what makes a message of what comes there.

    Halts stand first, and are subscribed to first: what is retained is handed over in that order.
    """
    halts = {topics.group_halt(group): partial(HaltMessage, group) for group in groups}
    documents = {topics.group_desired(group): partial(DesiredMessage, group) for group in groups}
    return {**halts, topics.desired: partial(DesiredMessage, OWN), **documents}


def wait_next(client: Client, wait_s: float | None) -> None:
    """Let ``client`` wait ``wait_s`` before its next connection; None leaves it as it is.

    paho alone doubles without chance: a fleet that lost its broker at one moment would come back in lockstep.
    """
    if wait_s is not None:
        client.reconnect_delay_set(wait_s, max(wait_s, RECONNECT_S[1]))  # type: ignore[arg-type]  # it only adds


def command_of(name: str, message: MQTTMessage, acknowledge: Callable[[], None]) -> CommandMessage:
    """Return the command in a message on ``cmd/<name>``."""
    properties: Any = message.properties
    return CommandMessage(
        name,
        bytes(message.payload),
        is_retained=bool(message.retain),
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        acknowledge=acknowledge,
    )
