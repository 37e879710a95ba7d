"""What a device was to serve and does not: read from ``desired`` of what it reports. Pure.

A goal that failed is not tried again before the next generation, so somebody has to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.topics import OWN_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonObject = dict[str, Any]
PENDING = "pending"
"""As a device says of a goal that is still open."""


@dataclass(frozen=True)
class Missed:
    """Documents that did not come true.

    Attributes:
        documents: their generations by source, a group or ``own``.
        goals: by model, or ``config``: ``state`` that its operation ended in, and the ``operation``.
    """

    documents: dict[str, Any]
    goals: dict[str, JsonObject]

    @property
    def names(self) -> str:
        """The documents in words, such as ``lab: generation 20``."""
        return ", ".join(
            f"{'its own' if source == OWN_NAME else source}: generation {number}"
            for source, number in self.documents.items()
        )

    def __str__(self) -> str:
        ends = ", ".join(f"{name}: {goal.get('state')}" for name, goal in self.goals.items())
        return f"{self.names} missed ({ends})"


def missed(desired: Mapping[str, Any]) -> Missed | None:
    """Return what of the wanted states was missed; None where nothing was, or what is open may still come true.

    Args:
        desired: as ``reported`` has it: ``generations``, ``reached`` and ``missing``.
    """
    told, generations, reached = (_object(desired.get(key)) for key in ("missing", "generations", "reached"))
    goals = {name: goal for name, goal in told.items() if isinstance(goal, dict) and goal.get("state") != PENDING}
    if not goals:
        return None
    late = {source: number for source, number in generations.items() if reached.get(source) != number}
    return Missed(late or generations, goals)


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}
