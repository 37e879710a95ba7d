"""The operations without an end: what happens to one advances it, is persisted, and only then leads to its next step.

INVARIANTS:
- they belong to the engine's thread;
- a report of a change is committed with the change, so neither exists without the other;
- at most one runs at a time, see ``waiting``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.contract.wire import rfc3339
from agent.deployment.facts import concluded, logged
from agent.deployment.machine import (
    Begin,
    Event,
    Expired,
    Interrupt,
    Operation,
    Superseded,
    TimePassed,
    advance,
    deadline,
)
from agent.deployment.models import settle
from agent.deployment.phases import Phase, State
from agent.deployment.repair import repair
from agent.deployment.waiting import expiry, is_idle, next_up, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from agent.deployment.guard import Finding
    from agent.deployment.keeper import Keeper
    from agent.deployment.performing import Performing
    from agent.deployment.ports import Clock, Journal, Transport
    from agent.deployment.reporting import Reporting

log = structlog.get_logger("engine")


class OpenOperations:
    """Holds them, and lets one after the other run.

    Args:
        journal: the truth.
        transport: the way out.
        reporting: builds what is published.
        keeper: restores the server, and tidies up when operations end.
        performing: does what a phase asks for.
        clock: time.
        total_s: returns what an operation may take as a whole, as configured now.
        held: returns the ids of those that must not begin now.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        transport: Transport,
        reporting: Reporting,
        keeper: Keeper,
        performing: Performing,
        clock: Clock,
        total_s: Callable[[], float],
        held: Callable[[], Collection[str]],
    ) -> None:
        self._journal = journal
        self._transport = transport
        self._reporting = reporting
        self._keeper = keeper
        self._performing = performing
        self._clock = clock
        self._total_s = total_s
        self._held = held
        self._open: dict[str, Operation] = {}

    @property
    def all(self) -> tuple[Operation, ...]:
        """All of them, oldest first."""
        return tuple(self._open.values())

    @property
    def busy(self) -> list[Operation]:
        """Those that run or wait for no more than their turn."""
        held = self._held()
        return [each for each in self._open.values() if not is_idle(each, held)]

    def get(self, operation_id: str) -> Operation | None:
        """Return the operation with an id, None if it is not open."""
        return self._open.get(operation_id)

    def add(self, operation: Operation) -> None:
        """Take up an operation that the journal holds since a moment ago."""
        self._open[operation.id] = operation

    def take_up(self) -> None:
        """Take up what the journal holds and is not known here."""
        for operation in self._journal.open_operations():
            self._open.setdefault(operation.id, operation)

    def begin_own(self, found: Finding) -> None:
        """Begin what the device itself found to be done, and tell why."""
        if found.event is None:
            return
        name, details = found.event
        if found.operation is None:
            self._journal.queue([self._reporting.event(name, **details)])
        else:
            told = self._reporting.event(name, id=found.operation.id, **details)
            self._journal.save(found.operation, [told, *self._reporting.accepted(found.operation)])
            self.add(found.operation)
        self._transport.flush()
        self.begin_next()

    def mend(self) -> None:
        """Build again what cannot be loaded, unless an operation is about to replace it anyway."""
        busy = {each.model for each in self.busy}
        for found in self._keeper.unusable(self._journal.served()):
            if found.item.name not in busy:
                self.begin_own(repair(found))
                self._keeper.told(found)
        self._transport.flush()

    def begin_next(self) -> None:
        """Let the operation begin whose turn it is, if none is running."""
        self._expire()
        waiting = next_up(self.all, self._held())
        if waiting is not None:
            self.apply(waiting, Begin())

    def supersede_replaced(self) -> None:
        """End what waits although something newer of its kind does, too."""
        for operation, _ in replaced(self.all):
            newer = {each.id: newest for each, newest in replaced(self.all)}.get(operation.id)
            if newer is not None:  # else it began, or ended, by what followed from the end of one before it
                self.apply(self._open[operation.id], Superseded(f"operation {newer}"))

    def check_deadlines(self) -> None:
        """End what waited, or took, too long."""
        now, total_s = self._clock.monotonic(), self._total_s()
        self._expire()
        for operation in self._one_by_one():
            limit = deadline(operation, total_s)
            if limit is not None and now >= limit:
                self.apply(operation, TimePassed(total_s))
                self.begin_next()

    def _expire(self) -> None:
        if not self._open or not self._clock.is_synchronised():
            return
        now = self._clock.now()
        for operation in self._one_by_one():
            before = expiry(operation)
            if before is not None and now >= before:
                self.apply(operation, Expired(rfc3339(before)))

    def _one_by_one(self) -> Iterator[Operation]:
        """Yield each as it stands when its turn comes: the end of one lets others begin, and ends some of them."""
        for operation_id in tuple(self._open):
            if (operation := self._open.get(operation_id)) is not None:
                yield operation

    def happened(self, operation_id: str, event: Event) -> None:
        """Advance the operation with an id, if it is still open."""
        if operation_id in self._open:
            self.apply(self._open[operation_id], event)

    def apply(self, operation: Operation, event: Event) -> None:
        """Advance an operation: persist the record with its reports, then take the steps."""
        after, steps = advance(operation, event, self._clock.monotonic())
        served = self._journal.served()  # read before anything changes: it may fail
        after = concluded(after, self._keeper.selected(served), self._clock.now())
        if after != operation:
            self._persist(operation, after)
        for step in steps:
            if isinstance(step, Interrupt):
                self._performing.interrupt(after.id)
            else:
                known = self._keeper.selected(served) if step.phase is Phase.ROLLING_BACK else served
                self._performing.begin(after, step.phase, known)
        if after.state.is_terminal and operation.id in self._open:
            del self._open[operation.id]
            self._keeper.ended(after)
            self._keeper.tidy(self.all)
            self.mend()

    def _persist(self, before: Operation, after: Operation) -> None:
        reports = self._reporting.changed(before, after)
        if after.command == "self_test" and after.state.is_terminal:
            reports += self._reporting.everything(self._journal.served())
        if after.state is not State.SUCCEEDED or after.model is None:
            self._journal.save(after, reports)
        else:
            served = self._journal.served()
            before_it = self._keeper.foundation(served.get(str(after.model)), after)
            item = settle(before_it, after, rfc3339(self._clock.now()))
            rest = {name: other for name, other in served.items() if name != after.model}
            now_served = {**rest, item.name: item} if item else rest
            with self._keeper.proving(str(after.model)):
                told = [*reports, *self._reporting.reported(now_served)]
                self._journal.save(after, told, served=item, remove=item is None)
        if not after.state.is_terminal:
            self._open[after.id] = after
        log.info("operation", **logged(after))
        self._transport.flush()
