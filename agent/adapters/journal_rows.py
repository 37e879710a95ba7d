"""The journal's rows: how records and reports are written into them, and what reads each table's rows again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from agent.contract.commands import is_response_topic
from agent.contract.desired import Desired
from agent.contract.errors import ErrorInfo
from agent.contract.halt import Halts
from agent.contract.reports import Report
from agent.contract.secrets import forgotten
from agent.deployment.convergence import Goal
from agent.deployment.facts import ENDED
from agent.deployment.machine import Operation
from agent.deployment.models import Served
from agent.deployment.phases import Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable


def dump_operation(operation: Operation) -> str:
    """Return a record as JSON; of one that ended without the addresses that were secrets."""
    body = asdict(operation)
    body["error"] = operation.error.model_dump(mode="json") if operation.error else None
    if operation.state.is_terminal:
        body["request"] = forgotten(operation.request)
    return json.dumps(body)


def dump_remains(operation: Operation) -> str:
    """Return what is kept of a record when it is old: enough to know the same command again, and to say its outcome."""
    facts = {name: fact for name, fact in operation.facts.items() if name == ENDED}
    return dump_operation(replace(operation, request={}, facts=facts, decision=None))


def load_operation(record: str) -> Operation:
    """Read what ``dump_operation`` wrote, by this version or an older one."""
    body = json.loads(record)
    body["state"], body["phase"] = State(body["state"]), Phase(body["phase"])
    body["outcome"] = State(body["outcome"])
    body["error"] = ErrorInfo.model_validate(body["error"]) if body["error"] else None
    return Operation(**body)


def load_report(row: tuple[Any, ...]) -> Report:
    """Read a row of the outbox.

    Raises:
        ValueError: it could not be published: one such row would hold up all behind it.
    """
    topic, payload, retain, expiry_s, correlation = row
    is_sound = isinstance(topic, str) and is_response_topic(topic) and isinstance(payload, bytes)
    if not (is_sound and isinstance(expiry_s, (int, type(None))) and isinstance(correlation, (bytes, type(None)))):
        raise ValueError("no report")
    if expiry_s is not None and not 0 <= expiry_s < 2**32:
        raise ValueError("no report")
    return Report(topic, payload, retain=bool(retain), expiry_s=expiry_s, correlation=correlation)


TABLES: dict[str, tuple[tuple[str, ...], Callable[[tuple[Any, ...]], object]]] = {
    # table: its columns, and what reads a row or raises
    "operation": (("id", "is_open", "record"), lambda row: load_operation(row[2])),
    "used": (("id", "expires_at", "is_cleared", "record"), lambda row: load_operation(row[3])),
    "served": (("model", "item"), lambda row: Served.from_json(json.loads(row[1]))),
    "sequence": (("model", "highest"), lambda row: int(row[1])),
    "counter": (("name", "value"), lambda row: int(row[1])),
    "config": (("key", "value"), lambda row: json.loads(row[1])),
    "desired": (("source", "document"), lambda row: dict(json.loads(row[1]))),
    "waiting": (("source", "document"), lambda row: Desired.model_validate(json.loads(row[1]))),
    "halt": (("source", "body"), lambda row: Halts.from_json(json.loads(row[1]))),
    "goal": (("operation_id", "body", "outcome"), lambda row: Goal.from_json(json.loads(row[1]))),
    "note": (("name", "value"), lambda row: json.loads(row[1])),
    "outbox": (("topic", "payload", "retain", "expiry_s", "correlation"), load_report),
}

OWN_TABLES = ("counter", "note")
"""What the journal keeps of itself; in every new file, so that counting it says nothing of what was kept."""


def is_readable(read: Callable[[tuple[Any, ...]], object], row: tuple[Any, ...]) -> bool:
    """Return whether ``read`` makes something of a row that has a key."""
    try:
        read(row)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return None not in row[:1]
