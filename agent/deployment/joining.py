"""Whether a device follows a group's document now, and what it says of it. Pure.

Rules:
* a document is not followed before everything that the broker retains of halts was heard on the present connection;
* a halted one is not followed, nor does a goal of one begin that is followed already; what has begun goes on;
* a document with a rollout is followed from the device's own turn on. Turns with a time need a synchronised clock;
* until then the device keeps to the document of that group that it follows, if there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.contract.enums import StrEnum
from agent.contract.wire import JsonObject, rfc3339

if TYPE_CHECKING:
    from datetime import datetime

    from agent.contract.desired import Desired
    from agent.contract.halt import Halt


class Standing(StrEnum):
    """Where a device stands towards a group's newest document."""

    JOINED = "joined"
    """It follows it."""
    WAITING = "waiting"
    """Its turn comes later."""
    OUTSIDE = "outside"
    """No stage reaches it."""
    NO_CLOCK = "no_clock"
    """Its turn has a time, and its clock is not synchronised."""
    HALTED = "halted"
    """A halt holds it, or what it has not begun."""
    LISTENING = "listening"
    """It would go on, and has not yet heard whether there is a halt."""


def standing(document: Desired, halt: Halt | None, device: str, now: datetime | None, *, has_heard: bool) -> Standing:
    """Return whether a document may be followed now, or why not.

    Args:
        document: of a group, not followed yet.
        halt: what stops it, None if nothing does.
        device: id of this device.
        now: wall time, None while the clock is not synchronised.
        has_heard: whether the halts of the present connection are known.
    """
    if halt is not None:
        return Standing.HALTED
    if document.rollout is not None:
        turn = document.rollout.turn(device)
        if turn.percent is None:
            return Standing.OUTSIDE
        if turn.at is not None and now is None:
            return Standing.NO_CLOCK
        if turn.at is not None and now is not None and now < turn.at:
            return Standing.WAITING
    return Standing.JOINED if has_heard else Standing.LISTENING


def told(document: Desired, state: Standing, halt: Halt | None, device: str, now: datetime | None) -> JsonObject:
    """Return what ``reported.desired.groups`` says of a group.

    Args:
        document: the newest one of the group.
        state: where the device stands towards it.
        halt: what stops it, None if nothing does.
        device: id of this device.
        now: wall time, None while the clock is not synchronised.
    """
    rollout = document.rollout
    turn = rollout.turn(device) if rollout else None
    return {
        "generation": document.generation,
        "state": str(state),
        "rollout": rollout and rollout.id,
        "percent": rollout.percent_at(now) if rollout else None,
        "position": round(turn.position, 3) if turn else None,
        "joins_at": rfc3339(turn.at) if turn and turn.at else None,
        "halt": halt_told(halt),
    }


def halt_told(halt: Halt | None) -> JsonObject | None:
    """Return what is said of a halt."""
    return None if halt is None else {"generation": halt.generation, "reason": halt.reason}
