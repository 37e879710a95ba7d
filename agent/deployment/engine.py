"""The loop that acts: it owns the deployment state, persists a record, and only then takes its next step.

INVARIANTS:
- one thread calls ``handle``; everything else reaches the engine through ``post``;
- a command is acknowledged to the broker only once the journal holds it;
- a report of a change is committed with the change, so neither exists without the other;
- nothing that a step, the server, a full disk or an operator does ends the loop, and nothing said meanwhile is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.contract.commands import Cancel
from agent.contract.desired import DesiredMessage
from agent.contract.reports import Progress
from agent.contract.wire import rfc3339
from agent.deployment.again import Again
from agent.deployment.attempt import attempt
from agent.deployment.facts import concluded, logged
from agent.deployment.inbox import (
    BudgetSeen,
    Connected,
    Drained,
    Inbox,
    Message,
    Moved,
    Outcome,
    Overhearing,
    Remembered,
    Reopened,
    ServerLost,
    Started,
    Stop,
)
from agent.deployment.intake import Accepted, Answered, CommandMessage, describe
from agent.deployment.machine import (
    Begin,
    CancelRequested,
    Event,
    Expired,
    Interrupt,
    Operation,
    Restarted,
    Superseded,
    TimePassed,
    advance,
    deadline,
)
from agent.deployment.models import settle
from agent.deployment.phases import Phase, State
from agent.deployment.pursuit import message_of
from agent.deployment.recovery import Mode
from agent.deployment.runner import WorkWatch
from agent.deployment.waiting import expiry, next_up, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.deployment.answering import Answering
    from agent.deployment.guard import MemoryGuard
    from agent.deployment.intake import Intake
    from agent.deployment.keeper import Keeper
    from agent.deployment.losses import Losses
    from agent.deployment.models import Served
    from agent.deployment.ports import Clock, Journal, Transport
    from agent.deployment.pursuit import Pursuit
    from agent.deployment.reporting import Reporting
    from agent.deployment.runner import Runner
    from agent.deployment.steps import Steps

log = structlog.get_logger("engine")
IDLE_S = 1.0
"""How often deadlines are looked at when nothing happens."""


class Engine:
    """Turns commands into operations and operations into steps.

    Args:
        journal: the truth.
        transport: the way out.
        intake: judges commands.
        answering: commits and tells what became of them.
        pursuit: knows what is wanted.
        guard: judges the memory.
        steps: returns what does the work of a phase, as configured now.
        runner: where the work is done.
        reporting: builds what is published.
        keeper: restores the server, and tidies up when operations end.
        losses: ends what a damaged journal does not know any more.
        clock: time.
        total_s: returns what an operation may take as a whole, as configured now.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        transport: Transport,
        intake: Intake,
        answering: Answering,
        pursuit: Pursuit,
        guard: MemoryGuard,
        steps: Callable[[], Steps],
        runner: Runner,
        reporting: Reporting,
        keeper: Keeper,
        losses: Losses,
        clock: Clock,
        total_s: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._transport = transport
        self._intake = intake
        self._answering = answering
        self._pursuit = pursuit
        self._guard = guard
        self._steps = steps
        self._runner = runner
        self._reporting = reporting
        self._keeper = keeper
        self._losses = losses
        self._clock = clock
        self._total_s = total_s
        self._inbox = Inbox()
        self._again = Again()
        self._open: dict[str, Operation] = {}
        self._watches: dict[str, WorkWatch] = {}

    @property
    def open_operations(self) -> tuple[Operation, ...]:
        """The operations without an end, oldest first."""
        return tuple(self._open.values())

    def post(self, message: Message) -> None:
        """Hand a message to the engine, from any thread."""
        self._inbox.put(message)

    def recover(self) -> None:
        """Serve what the journal says, then go on with every operation that it holds open."""
        self._open = {operation.id: operation for operation in self._journal.open_operations()}
        self._keeper.restore("boot")
        self._keeper.sweep(self.open_operations)
        for operation in self.open_operations:
            self._guarded(Reopened(operation.id))
        self._guarded(Started())

    def run(self, on_turn: Callable[[], None] = lambda: None) -> None:
        """Handle messages until ``Stop`` arrives; ``on_turn`` hears of every turn, once a second at least."""
        while self.turn():
            on_turn()

    def turn(self, *, wait_s: float = IDLE_S) -> bool:
        """Handle one message, or look at deadlines when none comes; return whether to go on."""
        message = self._next(wait_s)
        goes_on = message is None or self._guarded(message)
        try:
            self._check_deadlines()
            self._keeper.look(self._clock.monotonic(), self.open_operations)
            self._check_deferred()
            self._converge()
            self._losses.look(self._clock.monotonic())
        except Exception:
            log.exception("engine_error", message="turn")
        return goes_on

    def _next(self, wait_s: float) -> Message | None:
        return self._again.due(self._clock.monotonic()) or self._inbox.get(wait_s)

    def _guarded(self, message: Message) -> bool:
        """Handle a message; one that fails is kept, and handled again. Return whether to go on."""
        try:
            return self.handle(message)
        except Exception:
            log.exception("engine_error", message=type(message).__name__)
            self._again.keep(message, self._clock.monotonic())
            if isinstance(message, CommandMessage):
                self._take_up()
        return True

    def _take_up(self) -> None:
        """Take up commands that the journal holds and this engine does not: the error came after the commit."""
        try:
            for operation in self._journal.open_operations():
                self._open.setdefault(operation.id, operation)
            self._transport.flush()
            self._begin_next()
        except Exception:
            log.exception("engine_error", message="take up")  # the next start reads the journal again

    def handle(self, message: Message) -> bool:  # noqa: C901, PLR0912 - one line per kind of message
        """Act on one message; return whether to go on."""
        if isinstance(message, Stop):
            return False
        if isinstance(message, CommandMessage):
            self._command(message)
        elif isinstance(message, DesiredMessage):
            self._pursuit.receive(message, self.open_operations)
            message.acknowledge()
            self._transport.flush()
        elif isinstance(message, Outcome):
            self._outcome(message)
        elif isinstance(message, Reopened):
            if message.operation_id in self._open:
                self._apply(self._open[message.operation_id], Restarted())
        elif isinstance(message, Started):
            self._go_on()
        elif isinstance(message, Moved):
            self._moved(message)
        elif isinstance(message, BudgetSeen):
            self._budget_seen(message)
        elif isinstance(message, ServerLost):
            self._server_lost(message)
        elif isinstance(message, Drained):
            self._transport.flush()
        elif isinstance(message, (Overhearing, Remembered)):
            self._losses.heed(message, self._clock.monotonic())
        else:
            if isinstance(message, Connected):
                self._losses.connected()
            self._answering.tell_everything(self.open_operations)
            self._transport.flush()
        return True

    def _go_on(self) -> None:
        self._losses.tell()
        self._supersede_replaced()
        self._pursuit.resume(self.open_operations)
        self._converge()
        self._begin_next()

    def interrupt_steps(self) -> None:
        """Ask the running step to stop; its operation stays open and goes on at the next start."""
        for watch in list(self._watches.values()):
            watch.interrupt()

    def _command(self, message: CommandMessage) -> None:
        verdict = self._intake.judge(message)
        self._answering.commit(message, verdict)
        if isinstance(verdict, Accepted):
            self._open[verdict.operation.id] = verdict.operation
            self._supersede_replaced()
        if message.origin is not None:
            self._pursuit.judged(message, verdict)
        message.acknowledge()
        self._transport.flush()
        log.info("command", name=message.name, verdict=type(verdict).__name__, **describe(verdict))
        if isinstance(verdict, Answered):
            self._answer(verdict)
        self._begin_next()

    def _answer(self, verdict: Answered) -> None:
        if isinstance(verdict.command, Cancel) and verdict.command.operation in self._open:
            self._apply(self._open[verdict.command.operation], CancelRequested())
        self._answering.carry_out(verdict)
        self._transport.flush()

    def _outcome(self, message: Outcome) -> None:
        operation = self._open.get(message.operation_id)
        if operation is not None:
            if operation.phase is message.event.phase:  # else it is late, and the watch belongs to newer work
                self._watches.pop(operation.id, None)
            self._apply(operation, message.event)
        self._begin_next()

    def _moved(self, message: Moved) -> None:
        operation = self._open.get(message.operation_id)
        if operation is not None and operation.phase is message.phase:  # else it comes after the end of its phase
            report = self._reporting.progress(operation, message.progress, self._clock.monotonic())
            if report is not None:
                self._transport.publish(report)

    def _budget_seen(self, message: BudgetSeen) -> None:
        is_quiet = all(each.is_deferred for each in self._open.values()) and self._keeper.mode is Mode.CURRENT
        found = self._guard.look(message, self._journal.served(), is_quiet=is_quiet)
        if found.event is None:
            return
        name, details = found.event
        if found.operation is None:
            self._journal.queue([self._reporting.event(name, **details)])
        else:
            told = self._reporting.event(name, id=found.operation.id, **details)
            self._journal.save(found.operation, [told, *self._reporting.accepted(found.operation)])
            self._open[found.operation.id] = found.operation
        self._transport.flush()
        log.warning("memory_watch", found=name, id=found.operation and found.operation.id, **details)
        self._begin_next()

    def _converge(self) -> None:
        """Go on towards what is wanted."""
        while course := self._pursuit.course(self.open_operations):
            for operation_id in course.supersede:
                self._apply(self._open[operation_id], Superseded(f"generation {self._pursuit.stamp}"))
            for goal in course.start:
                self._command(message_of(goal))
            self._begin_next()
        self._pursuit.conclude()
        if self._pursuit.is_news():
            self._journal.queue(self._reporting.reported(self._journal.served()))
            self._transport.flush()

    def _server_lost(self, message: ServerLost) -> None:
        self._keeper.crashed(self._clock.monotonic(), self.open_operations)
        self._answering.tell_server_lost(message.detail, str(self._keeper.mode))
        self._transport.flush()

    def _begin_next(self) -> None:
        """Let the operation begin whose turn it is, if none is running."""
        self._expire_waiting()
        waiting = next_up(self.open_operations)
        if waiting is not None:
            self._apply(waiting, Begin())

    def _expire_waiting(self) -> None:
        if not self._clock.is_synchronised():
            return
        now = self._clock.now()
        for operation in self.open_operations:
            before = expiry(operation)
            if before is not None and now >= before:
                self._apply(operation, Expired(rfc3339(before)))

    def _supersede_replaced(self) -> None:
        for operation, newer in replaced(self.open_operations):
            self._apply(operation, Superseded(f"operation {newer}"))

    def _check_deadlines(self) -> None:
        now, total_s = self._clock.monotonic(), self._total_s()
        self._expire_waiting()
        for operation in self.open_operations:
            limit = deadline(operation, total_s)
            if limit is not None and now >= limit:
                self._apply(operation, TimePassed(total_s))
                self._begin_next()

    def _check_deferred(self) -> None:
        for operation in [each for each in self._open.values() if each.is_deferred]:
            judged = self._intake.reconsider(operation)
            if judged is not None:
                self._apply(operation, judged)
                self._begin_next()

    def _apply(self, operation: Operation, event: Event) -> None:
        """Advance an operation: persist the record with its reports, then take the steps."""
        after, steps = advance(operation, event, self._clock.monotonic())
        served = self._journal.served()  # read before anything changes: it may fail
        after = concluded(after, served, self._clock.now())
        if after != operation:
            self._persist(operation, after)
        for step in steps:
            if isinstance(step, Interrupt):
                self._interrupt(after)
            else:
                self._perform(after, step.phase, served)
        if after.state.is_terminal and operation.id in self._open:
            del self._open[operation.id]
            self._keeper.tidy(list(self._open.values()))

    def _persist(self, before: Operation, after: Operation) -> None:
        reports = self._reporting.changed(before, after)
        if after.command == "self_test" and after.state.is_terminal:
            reports += self._reporting.everything(self._journal.served())
        if after.state is not State.SUCCEEDED or after.model is None:
            self._journal.save(after, reports)
        else:
            self._keeper.proved()
            served = self._journal.served()
            item = settle(served.get(str(after.model)), after, rfc3339(self._clock.now()))
            rest = {name: other for name, other in served.items() if name != after.model}
            now_served = {**rest, item.name: item} if item else rest
            told = [*reports, *self._reporting.reported(now_served)]
            self._journal.save(after, told, served=item, remove=item is None)
        if not after.state.is_terminal:
            self._open[after.id] = after
        log.info("operation", **logged(after))
        self._transport.flush()

    def _perform(self, operation: Operation, phase: Phase, served: Mapping[str, Served]) -> None:
        def moved(done: int, total: int | None, unit: str) -> None:
            self.post(Moved(operation.id, phase, Progress(done, total, unit, watch.method)))

        watch = WorkWatch(moved, self._clock.monotonic)
        self._watches[operation.id] = watch
        known = self._keeper.selected(served) if phase is Phase.ROLLING_BACK else served

        def work() -> None:
            event = attempt(self._steps(), phase, operation, known, watch)
            if event is not None:
                self.post(Outcome(operation.id, event))

        self._runner.submit(work)

    def _interrupt(self, operation: Operation) -> None:
        watch = self._watches.pop(operation.id, None)
        if watch is not None:
            watch.interrupt()
