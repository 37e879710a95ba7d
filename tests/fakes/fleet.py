"""Devices that are nothing but what they have said: retained messages as the contract has them, with known figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

JsonObject = dict[str, Any]
PREFIX = "edge/v1"
AT = "2026-11-29T08:00:00.000Z"
MIB = 2**20
PUBLISH_S = 60.0


def presence(state: str = "online", **changes: Any) -> JsonObject:
    """Return a birth, or a will."""
    return {
        "schema": 1,
        "state": state,
        "epoch": 1,
        "boot_id": "b",
        "agent": "0.1.0",
        "reason": None,
        "at": AT,
        **changes,
    }


def model(**changes: Any) -> JsonObject:
    """Return what ``reported`` says of one model."""
    release = {"version": "1", "sha256": "a" * 64, "model_type": "cnn", "method": "nf4", "artifact_bytes": 600 * 1024}
    measured = {"resident_bytes": 2 * MIB, "coverage": 0.98, "agreement": 0.99, "accuracy": 0.97, "since": AT}
    return {
        **release,
        **measured,
        "chosen_by": "auto",
        "state": "serving",
        "previous": None,
        "decision": None,
        **changes,
    }


def reported(models: dict[str, JsonObject] | None = None, **changes: Any) -> JsonObject:
    """Return a ``reported``; one model ``kanji`` unless others are given."""
    memory = {"room_bytes": 3 * 1024 * MIB, "total_bytes": 8 * 1024 * MIB, "source": "meminfo"}
    body = {
        "schema": 1,
        "generation": None,
        "desired": None,
        "models": {"kanji": model()} if models is None else models,
    }
    return {**body, "memory": memory, "trust": {"require_signature": True}, "config": {}, "at": AT, **changes}


def capabilities(**changes: Any) -> JsonObject:
    """Return a ``capabilities``."""
    methods = {"nf4": {"ok": True, "detail": None}, "int8": {"ok": False, "detail": "no kernel"}}
    body = {"schema": 1, "agent": "0.1.0", "commands": ["deploy", "status"], "methods": methods, "model_types": ["cnn"]}
    return {**body, "versions": {"torch": "2.13.0"}, "at": AT, **changes}


def health(status: str = "ok", **changes: Any) -> JsonObject:
    """Return a ``health``."""
    live = {"kanji": {"requests": 12, "failures": 1, "latency_ms": {"p50": 4.0}}}
    return {"schema": 1, "at": AT, "status": status, "reasons": [], "models": live, "operations": [], **changes}


def said(device: str, kinds: Mapping[str, JsonObject | bytes], prefix: str = PREFIX) -> list[tuple[str, bytes]]:
    """Return topics and payloads of one device, given by kind such as ``presence`` or ``op/d-1``."""
    return [
        (f"{prefix}/{device}/{kind}", body if isinstance(body, bytes) else json.dumps(body).encode())
        for kind, body in kinds.items()
    ]


def publish(port: int, messages: Iterable[tuple[str, bytes]], *, is_retained: bool = True) -> None:
    """Publish all of them, over a connection of its own, and return when the broker has them."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        for sent in [client.publish(topic, body, qos=1, retain=is_retained) for topic, body in messages]:
            sent.wait_for_publish(PUBLISH_S)
            assert sent.is_published()
    finally:
        client.disconnect()
        client.loop_stop()
