"""What follows from a served release that cannot be loaded any more: it is told, and built again from its checkpoint.

Decides only, like the intake. Until the repair has proved itself the release before answers, if there is one; see
``keeper``. A repair is an operation like any other: canary and trial decide, and what answers goes on if it fails.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.reports import SCHEMA
from agent.deployment.guard import Finding
from agent.deployment.machine import Operation

if TYPE_CHECKING:
    from agent.deployment.models import Served

JsonObject = dict[str, Any]
REPAIR = "repair-"
"""Begins the id of an operation that builds a release again."""


@dataclass(frozen=True)
class Unusable:
    """The current release of a model cannot be loaded.

    Attributes:
        item: what the journal says stands behind the name.
        detail: why, in a sentence.
        instead: id of the release that answers, None if nothing does.
    """

    item: Served
    detail: str
    instead: str | None


def repair(found: Unusable) -> Finding:
    """Return the operation that builds a release again, and what is told."""
    item = found.item
    told = {"model": item.name, "release": item.current.id, "detail": found.detail, "answers": found.instead}
    return Finding(_again(item), ("release_unusable", told))


def _again(item: Served) -> Operation:
    """Return the operation that builds what is served by the same method; where ``auto`` chose it, it chooses again."""
    operation_id = f"{REPAIR}{uuid.uuid4().hex[:8]}"
    request: JsonObject = {"schema": SCHEMA, "id": operation_id, "model": item.name}
    if item.current.gate:
        request["gate"] = item.current.gate
    if item.current.chosen_by == "auto":
        return Operation(operation_id, "replan", item.name, "", request)
    request["method"] = item.current.method
    return Operation(operation_id, "set_method", item.name, "", request)
