"""Operations that wait for their turn: who is next, whose turn has passed, and who was replaced. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from agent.deployment.phases import State

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agent.deployment.machine import Operation


def next_up(open_operations: Sequence[Operation], held: Collection[str] = ()) -> Operation | None:
    """Return the operation whose turn it is: the highest priority, then the earliest.

    None while one is running. One that is idle lets the others pass.

    Args:
        open_operations: in the order of their acceptance.
        held: ids of operations that must not begin.
    """
    if any(operation.state is State.RUNNING for operation in open_operations):
        return None
    ready = [operation for operation in open_operations if not is_idle(operation, held)]
    return max(ready, key=_priority, default=None)  # of equal ones max returns the first


def is_idle(operation: Operation, held: Collection[str]) -> bool:
    """Return whether an operation waits for something else than its turn: for the clock, or held by a halt."""
    return operation.is_deferred or (operation.state is State.ACCEPTED and operation.id in held)


def expiry(operation: Operation) -> datetime | None:
    """Return the wall time before which the operation was to begin; None if it may wait, or has begun."""
    text = operation.request.get("expires_at")
    if operation.state is not State.ACCEPTED or text is None:
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read the Z


def replaced(open_operations: Sequence[Operation]) -> list[tuple[Operation, str]]:
    """Return each deploy that waits although a newer deploy of its model does, too, with the newest one's id.

    One that is deferred is left to the judgement that it waits for.

    Args:
        open_operations: in the order of their acceptance.
    """
    waiting = [each for each in open_operations if each.command == "deploy" and each.state is State.ACCEPTED]
    newest = {each.model: each.id for each in waiting}
    return [(each, newest[each.model]) for each in waiting if newest[each.model] != each.id and not each.is_deferred]


def _priority(operation: Operation) -> int:
    return int(operation.request.get("priority", 0))
