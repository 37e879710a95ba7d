"""The loop that acts: it owns the deployment state, persists a record, and only then takes its next step.

INVARIANTS:
- one thread calls ``handle``; everything else reaches the engine through ``post``;
- a command is acknowledged to the broker only once the journal holds it;
- a report of a change is committed with the change, so neither exists without the other;
- nothing that a step, the server or an operator does ends the loop.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import TYPE_CHECKING

import structlog

from agent.contract.commands import Cancel, SetConfig, Status
from agent.contract.reports import Progress
from agent.contract.wire import rfc3339
from agent.deployment.attempt import attempt
from agent.deployment.facts import config_changes, with_kept
from agent.deployment.inbox import BudgetSeen, Message, Moved, Outcome, ServerLost, Stop
from agent.deployment.intake import Accepted, Answered, CommandMessage, Repeated, describe
from agent.deployment.machine import (
    Begin,
    CancelRequested,
    Event,
    Interrupt,
    Operation,
    Restarted,
    TimePassed,
    advance,
    deadline,
)
from agent.deployment.models import settle
from agent.deployment.phases import MAX_ATTEMPTS, Phase, State
from agent.deployment.recovery import Mode, mode, select
from agent.deployment.retention import needed
from agent.deployment.runner import WorkWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.deployment.guard import MemoryGuard
    from agent.deployment.intake import Intake
    from agent.deployment.ports import Clock, Configuration, Journal, Server, Store, Transport
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
        guard: judges the memory.
        config: the settings that a command may change.
        steps: returns what does the work of a phase, as configured now.
        runner: where the work is done.
        reporting: builds what is published.
        server, store: restored and swept when operations end.
        clock: time.
        on_status: called when an operator asks for everything now.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        transport: Transport,
        intake: Intake,
        guard: MemoryGuard,
        config: Configuration,
        steps: Callable[[], Steps],
        runner: Runner,
        reporting: Reporting,
        server: Server,
        store: Store,
        clock: Clock,
        on_status: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._transport = transport
        self._intake = intake
        self._guard = guard
        self._config = config
        self._steps = steps
        self._runner = runner
        self._reporting = reporting
        self._server = server
        self._store = store
        self._clock = clock
        self._on_status = on_status
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._open: dict[str, Operation] = {}
        self._watches: dict[str, WorkWatch] = {}
        self._crashes: deque[float] = deque(maxlen=2 * MAX_ATTEMPTS)
        self._mode = Mode.CURRENT

    @property
    def mode(self) -> Mode:
        """How much of what should be served is tried."""
        return self._mode

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
        self._restore("boot")
        for operation in list(self._open.values()):
            self._apply(operation, Restarted())
        self._begin_next()

    def run(self) -> None:
        """Handle messages until ``Stop`` arrives."""
        while self.turn():
            pass

    def turn(self, *, wait_s: float = IDLE_S) -> bool:
        """Handle one message, or look at deadlines when none comes; return whether to go on."""
        try:
            message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            message = None
        goes_on = True
        try:
            if message is not None:
                goes_on = self.handle(message)
            self._check_deadlines()
            self._check_deferred()
        except Exception:
            log.exception("engine_error", message=type(message).__name__)
        return goes_on

    def handle(self, message: Message) -> bool:
        """Act on one message; return whether to go on."""
        if isinstance(message, Stop):
            return False
        if isinstance(message, CommandMessage):
            self._command(message)
        elif isinstance(message, Outcome):
            self._outcome(message)
        elif isinstance(message, Moved):
            self._moved(message)
        elif isinstance(message, BudgetSeen):
            self._budget_seen(message)
        elif isinstance(message, ServerLost):
            self._server_lost(message)
        else:
            self._tell_everything()
        return True

    def interrupt_steps(self) -> None:
        """Ask the running step to stop; its operation stays open and goes on at the next start."""
        for watch in list(self._watches.values()):
            watch.interrupt()

    def _command(self, message: CommandMessage) -> None:
        verdict = self._intake.judge(message)
        reporting = self._reporting
        if isinstance(verdict, Accepted):
            operation = verdict.operation
            self._journal.save(operation, reporting.accepted(operation), sequence=verdict.sequence)
            self._open[operation.id] = operation
        elif isinstance(verdict, Answered):
            answered = with_kept(verdict.operation, self._journal.served())
            config = {key: change["new"] for key, change in config_changes(answered).items()}
            self._journal.save(answered, reporting.answered(answered), config=config)
        elif isinstance(verdict, Repeated):
            self._journal.queue(reporting.operation(verdict.operation))
        else:
            self._journal.queue(reporting.refused(message, verdict.refusal))
        message.acknowledge()
        self._transport.flush()
        log.info("command", name=message.name, verdict=type(verdict).__name__, **describe(verdict))
        if isinstance(verdict, Answered):
            self._answer(verdict)
        self._begin_next()

    def _answer(self, verdict: Answered) -> None:
        if isinstance(verdict.command, Cancel) and verdict.command.operation in self._open:
            self._apply(self._open[verdict.command.operation], CancelRequested())
        elif isinstance(verdict.command, (SetConfig, Status)):
            self._config.apply(config_changes(verdict.operation))
            self._journal.queue(self._reporting.everything(self._journal.served()))
            self._transport.flush()
            self._on_status()

    def _outcome(self, message: Outcome) -> None:
        operation = self._open.get(message.operation_id)
        if operation is not None:
            if operation.phase is message.event.phase:  # else it is late, and the watch belongs to newer work
                self._watches.pop(operation.id, None)
            self._apply(operation, message.event)
        self._begin_next()

    def _moved(self, message: Moved) -> None:
        operation = self._open.get(message.operation_id)
        if operation is not None and not operation.state.is_terminal:
            report = self._reporting.progress(operation, message.progress, self._clock.monotonic())
            if report is not None:
                self._transport.publish(report)

    def _budget_seen(self, message: BudgetSeen) -> None:
        is_quiet = all(each.is_deferred for each in self._open.values()) and self._mode is Mode.CURRENT
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
        log.warning(name, **details)
        self._begin_next()

    def _tell_everything(self) -> None:
        self._journal.queue(self._reporting.everything(self._journal.served()))
        for operation in self._open.values():
            self._journal.queue(self._reporting.operation(operation))
        self._transport.flush()

    def _server_lost(self, message: ServerLost) -> None:
        now = self._clock.monotonic()
        self._crashes.append(now)
        before, self._mode = self._mode, mode(self._crashes, now)
        log.error("server_lost", detail=message.detail, mode=str(self._mode))
        self._journal.queue([self._reporting.event("server_lost", detail=message.detail, mode=str(self._mode))])
        self._transport.flush()
        if before is not Mode.SAFE:  # a server that dies without a model is left alone until somebody deploys
            self._restore("server_lost")

    def _begin_next(self) -> None:
        """Let the oldest waiting operation begin when none is running."""
        if any(operation.state is State.RUNNING for operation in self._open.values()):
            return
        waiting = next((each for each in self._open.values() if not each.is_deferred), None)
        if waiting is not None:
            self._apply(waiting, Begin())

    def _check_deadlines(self) -> None:
        now = self._clock.monotonic()
        for operation in list(self._open.values()):
            limit = deadline(operation)
            if limit is not None and now >= limit:
                self._apply(operation, TimePassed())
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
        after = with_kept(after, self._journal.served())
        if after != operation:
            self._persist(operation, after)
        for step in steps:
            if isinstance(step, Interrupt):
                self._interrupt(after)
            else:
                self._perform(after, step.phase)
        if after.state.is_terminal and operation.id in self._open:
            del self._open[operation.id]
            self._tidy()

    def _persist(self, before: Operation, after: Operation) -> None:
        reports = self._reporting.changed(before, after)
        if after.state is not State.SUCCEEDED:
            self._journal.save(after, reports)
        else:
            served = self._journal.served()
            item = settle(served.get(str(after.model)), after, rfc3339(self._clock.now()))
            rest = {name: other for name, other in served.items() if name != after.model}
            now_served = {**rest, item.name: item} if item else rest
            told = [*reports, *self._reporting.reported(now_served)]
            self._journal.save(after, told, served=item, remove=item is None)
            self._crashes.clear()
            self._mode = Mode.CURRENT
        if not after.state.is_terminal:
            self._open[after.id] = after
        log.info(
            "operation",
            id=after.id,
            state=str(after.state),
            phase=str(after.phase),
            attempt=after.attempt,
            error=str(after.error.code) if after.error else None,
            detail=after.error.detail if after.error else None,
        )
        self._transport.flush()

    def _perform(self, operation: Operation, phase: Phase) -> None:
        def moved(done: int, total: int | None, unit: str) -> None:
            self.post(Moved(operation.id, Progress(done, total, unit)))

        watch = WorkWatch(moved, self._clock.monotonic)
        self._watches[operation.id] = watch
        served = dict(self._journal.served())

        def work() -> None:
            event = attempt(self._steps(), phase, operation, served, watch)
            if event is not None:
                self.post(Outcome(operation.id, event))

        self._runner.submit(work)

    def _interrupt(self, operation: Operation) -> None:
        watch = self._watches.pop(operation.id, None)
        if watch is not None:
            watch.interrupt()

    def _restore(self, why: str) -> None:
        """Make the server answer with what the journal says, on the runner's thread."""

        def work() -> None:
            try:
                self._server.restore(select(self._journal.served(), self._mode))
            except Exception as error:  # noqa: BLE001 - whatever stops the server must not stop the agent
                log.error("restore_failed", why=why, error=str(error))  # noqa: TRY400 - one line; the server logs more

        self._runner.submit(work)

    def _tidy(self) -> None:
        """After an operation: the server lets go of what is no longer served, the store of what nobody needs."""
        open_now = list(self._open.values())
        if all(operation.state is not State.RUNNING for operation in open_now):
            self._restore("tidy")  # never under a running one, whose release is loaded and not yet in the journal

        def work() -> None:
            try:
                self._store.sweep(needed(self._journal.served(), open_now))
            except Exception:
                log.exception("sweep_failed")

        self._runner.submit(work)
