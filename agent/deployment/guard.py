"""What follows from a look at the memory: an operation, an alarm, or nothing. Decides only, like the intake.

It lives on the engine's thread, which owns what is served and what is open: a wish of the watch becomes an operation
before anything else can happen.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.reports import SCHEMA
from agent.deployment.foresight import planned
from agent.deployment.machine import Operation
from agent.planning.watch import BudgetWatch, Held, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.deployment.inbox import BudgetSeen
    from agent.deployment.models import Served
    from agent.planning.budget import Budget
    from agent.planning.watch import WatchPolicy

    Prospect = Callable[[str, Budget, Mapping[str, Served]], str | None]
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one look leads to.

    Attributes:
        operation: a ``replan`` to begin, or None.
        event: a line for the audit trail: its name and its details, or None.
    """

    operation: Operation | None = None
    event: tuple[str, JsonObject] | None = None


class MemoryGuard:
    """Feeds the watch and words what it says.

    Args:
        would_choose: what ``auto`` would choose for a model with a budget; see `agent.deployment.foresight`.
        policy: returns how patient to be, as configured now.
        on_alarm: called when an alarm begins or ends.
    """

    def __init__(
        self, would_choose: Prospect, policy: Callable[[], WatchPolicy], *, on_alarm: Callable[[], None] = lambda: None
    ) -> None:
        self._would_choose = would_choose
        self._policy = policy
        self._on_alarm = on_alarm
        self._watch = BudgetWatch()
        self._alarm: str | None = None

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is wrong with the memory now, a sentence each."""
        return (self._alarm,) if self._alarm else ()

    def look(self, seen: BudgetSeen, served: Mapping[str, Served], *, is_quiet: bool) -> Finding:
        """Return what follows from one look.

        Args:
            seen: the memory, and when it was so.
            served: what the journal says is served.
            is_quiet: whether no operation is open and everything that should be served is tried.
        """

        def would_choose(model: str, budget: Budget) -> str | None:
            return self._would_choose(model, budget, served)

        held = {name: _held(item) for name, item in served.items()}
        sight = self._watch.observe(seen.at, seen.budget, held, would_choose, self._policy(), is_quiet=is_quiet)
        before, self._alarm = self._alarm, sight.alarm
        if (before is None) != (sight.alarm is None):
            self._on_alarm()
        if sight.wish is not None:
            return Finding(_replan(sight.wish), ("budget_changed", _details(seen.budget, sight.wish)))
        if before is None and sight.alarm is not None:
            return Finding(event=("memory_alarm", {"reason": sight.alarm, "memory": seen.budget.to_json()}))
        if before is not None and sight.alarm is None:
            return Finding(event=("memory_alarm_ended", {"memory": seen.budget.to_json()}))
        return Finding()


def _held(item: Served) -> Held:
    current = item.current
    is_auto = current.chosen_by == "auto"
    return Held(current.id, current.method, planned(current), is_auto, current.resident_bytes)


def _replan(wish: Wish) -> Operation:
    operation_id = f"watch-{uuid.uuid4().hex[:8]}"
    request = {"schema": SCHEMA, "id": operation_id, "model": wish.model}
    return Operation(operation_id, "replan", wish.model, "", request)


def _details(budget: Budget, wish: Wish) -> JsonObject:
    return {
        "model": wish.model,
        "direction": wish.direction,
        "method": wish.method,
        "reason": wish.reason,
        "memory": budget.to_json(),
    }
