"""The loop that acts: it hears what happens, one message after the other, and lets it have its consequences.

INVARIANTS:
- one thread calls ``handle``; everything else reaches the engine through ``post``;
- a command is acknowledged to the broker only once the journal holds it;
- nothing that a step, the server, a full disk or an operator does ends the loop, and nothing said meanwhile is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.contract.commands import Cancel
from agent.contract.desired import RetainedMessage
from agent.deployment.again import Again
from agent.deployment.inbox import (
    BudgetSeen,
    Connected,
    Drained,
    Echoed,
    Fallen,
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
from agent.deployment.machine import CancelRequested, Operation, Restarted, Superseded
from agent.deployment.open_operations import OpenOperations
from agent.deployment.performing import Performing
from agent.deployment.pursuit import message_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.deployment.answering import Answering
    from agent.deployment.guard import MemoryGuard
    from agent.deployment.intake import Intake
    from agent.deployment.keeper import Keeper
    from agent.deployment.losses import Losses
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
        runner: where work is done that leaves the server alone.
        server_runner: where the work is done that speaks to it.
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
        server_runner: Runner,
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
        self._performing = Performing(steps, runner, server_runner, clock, post=self.post, informed=keeper.informed)
        self._reporting = reporting
        self._keeper = keeper
        self._losses = losses
        self._clock = clock
        self._inbox = Inbox()
        self._again = Again()
        self._operations = OpenOperations(
            journal=journal,
            transport=transport,
            reporting=reporting,
            keeper=keeper,
            performing=self._performing,
            clock=clock,
            total_s=total_s,
            held=pursuit.held,
        )

    @property
    def open_operations(self) -> tuple[Operation, ...]:
        """The operations without an end, oldest first."""
        return self._operations.all

    def post(self, message: Message) -> None:
        """Hand a message to the engine, from any thread."""
        self._inbox.put(message)

    def recover(self) -> None:
        """Serve what the journal says, then go on with every operation that it holds open."""
        self._operations.take_up()
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
        message = self._again.due(self._clock.monotonic()) or self._inbox.get(wait_s)
        goes_on = message is None or self._guarded(message)
        try:
            self._operations.check_deadlines()
            self._keeper.look(self._clock.monotonic(), self.open_operations)
            self._check_deferred()
            self._converge()
            self._losses.look(self._clock.monotonic())
        except Exception:
            log.exception("engine_error", message="turn")
        return goes_on

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
            self._operations.take_up()
            self._transport.flush()
            self._operations.begin_next()
        except Exception:
            log.exception("engine_error", message="take up")  # the next start reads the journal again

    def handle(self, message: Message) -> bool:  # noqa: C901, PLR0912 - one line per kind of message
        """Act on one message; return whether to go on."""
        if isinstance(message, Stop):
            return False
        if isinstance(message, CommandMessage):
            self._command(message)
        elif isinstance(message, RetainedMessage):
            self._pursuit.receive(message, self.open_operations)
            message.acknowledge()
            self._transport.flush()
        elif isinstance(message, Outcome):
            self._outcome(message)
        elif isinstance(message, Reopened):
            self._operations.happened(message.operation_id, Restarted())
        elif isinstance(message, Started):
            self._go_on()
        elif isinstance(message, Moved):
            self._moved(message)
        elif isinstance(message, BudgetSeen):
            self._budget_seen(message)
        elif isinstance(message, ServerLost):
            self._server_lost(message)
        elif isinstance(message, Fallen):
            self._journal.queue(self._reporting.reported(self._journal.served()))
            self._operations.mend()
        elif isinstance(message, Drained):
            self._transport.flush()
        elif isinstance(message, Echoed):
            self._pursuit.echoed(message.connection)
        elif isinstance(message, (Overhearing, Remembered)):
            self._losses.heed(message, self._clock.monotonic())
        else:
            if isinstance(message, Connected):
                self._losses.connected()
                self._pursuit.connected()
            self._answering.tell_everything(self.open_operations)
            self._transport.flush()
        return True

    def _go_on(self) -> None:
        self._losses.tell()
        self._operations.supersede_replaced()
        self._pursuit.resume(self.open_operations)
        self._converge()
        self._operations.begin_next()

    def interrupt_steps(self) -> None:
        """Ask the running step to stop; its operation stays open and goes on at the next start."""
        self._performing.interrupt_all()

    def _command(self, message: CommandMessage) -> None:
        verdict = self._intake.judge(message)
        self._answering.commit(message, verdict)
        if isinstance(verdict, Accepted):
            self._operations.add(verdict.operation)
            self._operations.supersede_replaced()
        if message.origin is not None:
            self._pursuit.judged(message, verdict)
        message.acknowledge()
        self._transport.flush()
        log.info("command", name=message.name, verdict=type(verdict).__name__, **describe(verdict))
        if isinstance(verdict, Answered):
            self._answer(verdict)
        self._operations.begin_next()

    def _answer(self, verdict: Answered) -> None:
        if isinstance(verdict.command, Cancel):
            self._operations.happened(verdict.command.operation, CancelRequested())
        self._answering.carry_out(verdict)
        self._transport.flush()

    def _outcome(self, message: Outcome) -> None:
        operation = self._operations.get(message.operation_id)
        if operation is not None:
            if operation.phase is message.event.phase:  # else it is late, and the watch belongs to newer work
                self._performing.ended(operation.id)
            self._operations.apply(operation, message.event)
        self._operations.begin_next()

    def _moved(self, message: Moved) -> None:
        operation = self._operations.get(message.operation_id)
        if operation is not None and operation.phase is message.phase:  # else it comes after the end of its phase
            report = self._reporting.progress(operation, message.progress, self._clock.monotonic())
            if report is not None:
                self._transport.publish(report)

    def _budget_seen(self, message: BudgetSeen) -> None:
        is_quiet = not self._operations.busy and self._keeper.serves_current
        found = self._guard.look(message, self._journal.served(), is_quiet=is_quiet)
        if found.event is not None:
            name, details = found.event
            log.warning("memory_watch", found=name, id=found.operation and found.operation.id, **details)
        self._operations.begin_own(found)

    def _converge(self) -> None:
        """Go on towards what is wanted."""
        while course := self._pursuit.course(self.open_operations):
            for operation_id in course.supersede:
                self._operations.happened(operation_id, Superseded(f"generation {self._pursuit.stamp}"))
            for goal in course.start:
                self._command(message_of(goal))
        self._operations.begin_next()  # also what was held until now
        self._pursuit.conclude()
        if self._pursuit.is_news():
            self._journal.queue(self._reporting.reported(self._journal.served()))
            self._transport.flush()

    def _server_lost(self, message: ServerLost) -> None:
        self._keeper.crashed(self._clock.monotonic(), self.open_operations)
        self._answering.tell_server_lost(message.detail, str(self._keeper.mode))
        self._transport.flush()

    def _check_deferred(self) -> None:
        for deferred in [each for each in self.open_operations if each.is_deferred]:
            operation = self._operations.get(deferred.id)
            if operation is None or not operation.is_deferred:
                continue  # its time was over when the one before it had ended
            judged = self._intake.reconsider(operation)
            if judged is not None:
                self._operations.apply(operation, judged)
                self._operations.begin_next()
