"""What the device publishes, built in one place: the operation's state, presence, what is served, what it can do.

A ``Report`` is a message that is ready to send; whether and when it leaves is the transport's business. Reports with
QoS 1 wait in the journal's outbox until the broker has acknowledged them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.wire import MAX_PAYLOAD_BYTES, JsonObject, dump, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from agent.contract.topics import Topics

SCHEMA = 1
OPERATION_EXPIRY_S = 7 * 24 * 3600
LOG_CHUNK_BYTES = 48 * 1024
_LOG_FRAME_BYTES = 256


class TooLargeError(ValueError):
    """A report has more bytes than brokers must accept."""


@dataclass(frozen=True)
class Report:
    """One message to publish.

    Attributes:
        topic: where to.
        payload: UTF-8 JSON, at most 64 KiB.
        qos: 0 or 1; what is sent with 1 is kept until acknowledged.
        retain: whether the broker keeps it; a newer retained report of a topic replaces an older unsent one.
        expiry_s: MQTT 5 message expiry, or None.
        correlation: MQTT 5 correlation data, or None.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    correlation: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise TooLargeError(f"report for {self.topic} has {len(self.payload)} bytes, at most {MAX_PAYLOAD_BYTES}")


@dataclass(frozen=True)
class Progress:
    """How far it is: ``done`` of ``total`` in ``unit`` (bytes, tensors, seconds); of a build also the ``method``."""

    done: int
    total: int | None
    unit: str
    method: str | None = None

    def body(self) -> JsonObject:
        """Return the ``progress`` object."""
        body: JsonObject = {"done": self.done, "total": self.total, "unit": self.unit}
        return body if self.method is None else {**body, "method": self.method}


def operation(
    topics: Topics,
    description: Mapping[str, Any],
    *,
    progress: Progress | None,
    boot_id: str,
    seq: int,
    at: datetime,
) -> Report:
    """Build the retained state of one operation on ``op/<id>``.

    Args:
        topics: where to.
        description: ``id``, ``command``, ``model``, ``state``, ``phase``, ``attempt``, ``decision`` and ``error``.
        progress: how far the phase is, if known.
        boot_id: the run of the operating system.
        seq: orders reports within it.
        at: for people.
    """
    told = dict(description)
    error = told.pop("error")
    body: JsonObject = {
        "schema": SCHEMA,
        **told,
        "progress": progress.body() if progress else None,
        "error": error,
        "boot_id": boot_id,
        "seq": seq,
        "at": rfc3339(at),
    }
    return Report(topics.operation(told["id"]), dump(body), retain=True, expiry_s=OPERATION_EXPIRY_S)


def presence(
    topics: Topics, *, state: str, epoch: int, boot_id: str, agent: str, reason: str | None, at: datetime | None
) -> Report:
    """Build birth, will and farewell on ``presence``; a will has no time of its own."""
    body: JsonObject = {
        "schema": SCHEMA,
        "state": state,
        "epoch": epoch,
        "boot_id": boot_id,
        "agent": agent,
        "reason": reason,
        "at": rfc3339(at) if at else None,
    }
    return Report(topics.presence, dump(body), retain=True)


def reported(
    topics: Topics,
    *,
    generation: int | None,
    desired: Mapping[str, Any] | None,
    models: Mapping[str, JsonObject],
    memory: Mapping[str, Any],
    trust: Mapping[str, Any],
    config: Mapping[str, Any],
    at: datetime,
) -> Report:
    """Build what is served now on ``reported``; ``config`` holds only what ``set_config`` changed."""
    body: JsonObject = {
        "schema": SCHEMA,
        "generation": generation,
        "desired": None if desired is None else dict(desired),
        "models": dict(models),
        "memory": dict(memory),
        "trust": dict(trust),
        "config": dict(config),
        "at": rfc3339(at),
    }
    return Report(topics.reported, dump(body), retain=True)


def capabilities(
    topics: Topics,
    *,
    agent: str,
    commands: Iterable[str],
    methods: Mapping[str, JsonObject],
    model_types: Iterable[str],
    versions: Mapping[str, Any],
    hardware: str | None,
    groups: Iterable[str],
    labels: Mapping[str, str],
    at: datetime,
) -> Report:
    """Build what this device is and can do on ``capabilities``.

    ``methods`` are the results of the real self-test, ``hardware`` is the board by the name that a manifest's audience
    may have.
    """
    body: JsonObject = {
        "schema": SCHEMA,
        "agent": agent,
        "commands": list(commands),
        "methods": dict(methods),
        "model_types": list(model_types),
        "versions": dict(versions),
        "hardware": hardware,
        "groups": list(groups),
        "labels": dict(labels),
        "at": rfc3339(at),
    }
    return Report(topics.capabilities, dump(body), retain=True)


def health(topics: Topics, body: Mapping[str, Any], *, interval_s: float, at: datetime) -> Report:
    """Build telemetry on ``health``; it expires after three intervals so that nobody reads stale numbers."""
    payload = dump({"schema": SCHEMA, "at": rfc3339(at), **body})
    return Report(topics.health, payload, qos=0, expiry_s=max(1, round(3 * interval_s)))


def telemetry(topics: Topics, numbers: Mapping[str, float], *, interval_s: float, at: datetime) -> Report:
    """Build the flat numbers on ``telemetry``."""
    payload = dump({"schema": SCHEMA, "at": rfc3339(at), **numbers})
    return Report(topics.telemetry, payload, qos=0, expiry_s=max(1, round(3 * interval_s)))


def event(topics: Topics, name: str, details: Mapping[str, Any], *, at: datetime) -> Report:
    """Build one line of the audit trail on ``event``."""
    return Report(topics.event, dump({"schema": SCHEMA, "event": name, "at": rfc3339(at), **details}))


def logs(
    topics: Topics, operation_id: str, entries: Sequence[JsonObject], *, is_cut: bool, at: datetime
) -> list[Report]:
    """Build the chunks on ``log/<id>``, each of at most 48 KiB; the last one says so, and an empty log has one, too.

    Args:
        topics: where to.
        operation_id: of the ``collect_logs``.
        entries: in order, each well below a chunk.
        is_cut: whether older entries were left out.
        at: for people.
    """
    chunks: list[list[JsonObject]] = [[]]
    size = 0
    for entry in entries:
        length = len(dump(entry)) + 1
        if chunks[-1] and size + length > LOG_CHUNK_BYTES - _LOG_FRAME_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(entry)
        size += length
    return [
        Report(
            topics.log(operation_id),
            dump(
                {
                    "schema": SCHEMA,
                    "id": operation_id,
                    "sequence": number,
                    "last": number == len(chunks) - 1,
                    "cut": is_cut,
                    "entries": chunk,
                    "at": rfc3339(at),
                }
            ),
        )
        for number, chunk in enumerate(chunks)
    ]
