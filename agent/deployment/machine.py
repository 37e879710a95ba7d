"""The pure state machine: ``advance(operation, event, now) -> (operation, steps)``.

INVARIANTS:
- total: every event is defined for every operation; one that does not apply changes nothing and causes nothing;
- a terminal operation never changes;
- an operation changes at most ``MAX_WRITES`` times, so it always ends;
- whatever fails once the server may hold the new model ends in a rollback to what the journal says is current.

It performs nothing, reads no clock (``now`` is monotonic seconds) and knows no adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from agent.contract.errors import ErrorCode, ErrorInfo
from agent.deployment.phases import (
    LINES,
    MAX_ATTEMPTS,
    MAX_WRITES,
    RESERVED_WRITES,
    RULES,
    OnFailure,
    OnResume,
    Phase,
    State,
)

JsonObject = dict[str, Any]
DEFERRED = "deferred"
"""The fact of an accepted operation that waits for a synchronised clock: why, in a sentence."""


@dataclass(frozen=True)
class Operation:
    """The record of one operation, as the journal keeps it.

    Attributes:
        id: given by the operator.
        command: ``deploy``, ``set_method``, ... ; names the line of phases.
        model: the model it is about, None for a command without one.
        fingerprint: digest of what was asked, to tell a repeated id from a conflicting one.
        request: the command's fields as JSON.
        state, phase: where it stands.
        attempt: which try of the current phase, from 1.
        writes: how often the record has changed.
        phase_since: monotonic seconds of this process at which the phase began.
        spent_s: seconds that finished phases and attempts took; waiting, and the time of no process, do not count.
        facts: what finished phases found: paths, digests, the artifact.
        decision: the decision record, once planning made one.
        error: why it did not succeed.
        outcome: the state that a rollback under way will end in.
        origin: who began it when no operator did over the broker: ``desired``, ``page``.
    """

    id: str
    command: str
    model: str | None
    fingerprint: str
    request: JsonObject
    state: State = State.ACCEPTED
    phase: Phase = Phase.QUEUED
    attempt: int = 1
    writes: int = 1
    phase_since: float = 0.0
    spent_s: float = 0.0
    facts: JsonObject = field(default_factory=dict)
    decision: JsonObject | None = None
    error: ErrorInfo | None = None
    outcome: State = State.ROLLED_BACK
    origin: str | None = None

    @property
    def is_deferred(self) -> bool:
        """Whether it waits for a synchronised clock."""
        return self.state is State.ACCEPTED and DEFERRED in self.facts


@dataclass(frozen=True)
class Begin:
    """It is this operation's turn."""


@dataclass(frozen=True)
class Done:
    """The phase finished; ``facts`` are merged into the record, ``decision`` replaces the record's.

    The fact ``already_applied`` ends the operation: what was asked for is being served.
    """

    phase: Phase
    facts: JsonObject = field(default_factory=dict)
    decision: JsonObject | None = None


@dataclass(frozen=True)
class Failed:
    """The phase failed. ``is_transient`` says that trying the same again at once can help."""

    phase: Phase
    error: ErrorInfo
    is_transient: bool = False
    decision: JsonObject | None = None


@dataclass(frozen=True)
class CancelRequested:
    """An operator wants it stopped."""


@dataclass(frozen=True)
class Superseded:
    """Something newer takes its place; ``by`` names it."""

    by: str


@dataclass(frozen=True)
class Judged:
    """The clock is synchronised at last: a deferred operation may go on, or is refused with ``error``."""

    error: ErrorInfo | None = None


@dataclass(frozen=True)
class Restarted:
    """The agent started and found this operation open."""


@dataclass(frozen=True)
class Expired:
    """Its turn did not come before ``before``, a time in words."""

    before: str


@dataclass(frozen=True)
class TimePassed:
    """Time to look at deadlines. ``total_s`` is what an operation may take from its begin, its soak not counted."""

    total_s: float = math.inf


Event = Begin | Done | Failed | CancelRequested | Superseded | Expired | Judged | Restarted | TimePassed


@dataclass(frozen=True)
class Perform:
    """Do the work of a phase and report ``Done`` or ``Failed``."""

    phase: Phase


@dataclass(frozen=True)
class Interrupt:
    """Stop the work that is being done; its outcome is no longer wanted."""


Step = Perform | Interrupt
Result = tuple[Operation, tuple[Step, ...]]


def advance(operation: Operation, event: Event, now: float) -> Result:  # noqa: PLR0911 - one line per kind of event
    """Return the operation after ``event`` and the steps to take once it is persisted.

    Args:
        operation: the record as it stands.
        event: what happened.
        now: monotonic seconds.
    """
    if operation.state.is_terminal:
        return operation, ()
    if isinstance(event, Begin):
        return _begin(operation, now)
    if isinstance(event, Restarted):
        return _resume(operation, now)
    if isinstance(event, Judged):
        return _judged(operation, event), ()
    if isinstance(event, (CancelRequested, Superseded)):
        return _stop(operation, event, now)
    if isinstance(event, Expired):
        return _expire(operation, event)
    if operation.state is State.ACCEPTED:
        return operation, ()
    if isinstance(event, TimePassed):
        return _check_deadline(operation, event, now)
    return _outcome(operation, event, now)


def deadline(operation: Operation, total_s: float = math.inf) -> float | None:
    """Return the monotonic second at which the phase, or the operation as a whole, is over its time; None for never.

    A rollback has the time of its phase, whatever was spent before: it has to be finished.
    """
    limit = RULES[operation.phase].deadline_s
    if operation.state is not State.RUNNING or limit is None:
        return None
    soak_s = operation.request.get("gate", {}).get("soak_s") or 0 if operation.phase is Phase.TRIAL else 0
    left = math.inf if operation.phase is Phase.ROLLING_BACK else max(0.0, total_s - operation.spent_s)
    return operation.phase_since + min(limit, left) + soak_s


def _outcome(operation: Operation, event: Done | Failed, now: float) -> Result:
    if event.phase is not operation.phase:
        return operation, ()  # the outcome of work that was given up
    if event.decision is not None:
        operation = replace(operation, decision=event.decision)
    if isinstance(event, Done):
        return _done(operation, event, now)
    return _failed(operation, event, now)


def _begin(operation: Operation, now: float) -> Result:
    if operation.state is not State.ACCEPTED or operation.is_deferred:
        return operation, ()
    return _enter(operation, LINES[operation.command][0], now)


def _judged(operation: Operation, event: Judged) -> Operation:
    if not operation.is_deferred:
        return operation
    if event.error is not None:
        state = State.EXPIRED if event.error.code is ErrorCode.EXPIRED else State.REJECTED
        return _end(_with_error(operation, event.error), state)
    facts = {name: fact for name, fact in operation.facts.items() if name != DEFERRED}
    return replace(operation, facts=facts, writes=operation.writes + 1)


def _done(operation: Operation, event: Done, now: float) -> Result:
    operation = replace(operation, facts={**operation.facts, **event.facts})
    if operation.phase is Phase.ROLLING_BACK:
        return _end(operation, operation.outcome), ()
    line = LINES[operation.command]
    position = line.index(operation.phase) + 1
    if position == len(line) or event.facts.get("already_applied"):
        return _end(operation, State.SUCCEEDED), ()
    return _enter(operation, line[position], now)


def _failed(operation: Operation, event: Failed, now: float) -> Result:
    if event.is_transient and operation.attempt < MAX_ATTEMPTS:
        return _again(operation, now)
    if operation.phase is Phase.ROLLING_BACK:
        if operation.attempt < MAX_ATTEMPTS:
            return _again(operation, now)
        return _end(_with_error(operation, event.error, keep=True), State.ROLLBACK_FAILED), ()
    return _give_up(_with_error(operation, event.error), State.FAILED, State.ROLLED_BACK, now)


def _resume(operation: Operation, now: float) -> Result:
    if operation.state is State.ACCEPTED:
        return operation, ()
    operation = replace(operation, phase_since=now)
    rule = RULES[operation.phase]
    if rule.on_resume is OnResume.CONTINUE:
        return operation, (Perform(operation.phase),)
    if rule.on_resume is OnResume.RESTART and operation.attempt < MAX_ATTEMPTS:
        return _again(operation, now)
    if operation.phase is Phase.ROLLING_BACK:
        return _end(operation, State.ROLLBACK_FAILED), ()
    error = _interrupted(operation)
    return _give_up(_with_error(operation, error), State.FAILED, State.ROLLED_BACK, now)


def _stop(operation: Operation, event: CancelRequested | Superseded, now: float) -> Result:
    if not RULES[operation.phase].is_cancelable:
        return operation, ()
    phase, when, state = str(operation.phase), operation.phase.when, State.CANCELED
    error = ErrorInfo(code=ErrorCode.CANCELED, detail=f"an operator stopped it {when}", phase=phase)
    if isinstance(event, Superseded):
        state, detail = State.SUPERSEDED, f"{event.by} took its place {when}"
        error = ErrorInfo(code=ErrorCode.SUPERSEDED, detail=detail, phase=phase)
    return _give_up(_with_error(operation, error), state, state, now, interrupt=True)


def _expire(operation: Operation, event: Expired) -> Result:
    if operation.state is not State.ACCEPTED:
        return operation, ()
    detail = f"its turn did not come before {event.before}"
    error = ErrorInfo(code=ErrorCode.EXPIRED, detail=detail, phase=str(operation.phase))
    return _end(_with_error(operation, error), State.EXPIRED), ()


def _check_deadline(operation: Operation, event: TimePassed, now: float) -> Result:
    limit = deadline(operation, event.total_s)
    if limit is None or now < limit:
        return operation, ()
    took, alone = now - operation.phase_since, deadline(operation)
    detail = f"{operation.phase} took {took:.0f} s, its limit is {limit - operation.phase_since:.0f} s"
    if alone is not None and now < alone:
        detail = f"it took {operation.spent_s + took:.0f} s up to {operation.phase}, {event.total_s:.0f} s are allowed"
    error = ErrorInfo(
        code=ErrorCode.TIMED_OUT,
        detail=detail,
        phase=str(operation.phase),
        retryable=True,
    )
    if operation.phase is Phase.ROLLING_BACK:
        return _end(_with_error(operation, error, keep=True), State.ROLLBACK_FAILED), (Interrupt(),)
    return _give_up(_with_error(operation, error), State.TIMED_OUT, State.TIMED_OUT, now, interrupt=True)


def _give_up(operation: Operation, plain: State, restored: State, now: float, *, interrupt: bool = False) -> Result:
    """End at once where the server was not touched, else roll back first."""
    stop: tuple[Step, ...] = (Interrupt(),) if interrupt and operation.state is State.RUNNING else ()
    if RULES[operation.phase].on_failure is OnFailure.FAIL:
        return _end(operation, plain), stop
    rolling, steps = _enter(replace(operation, outcome=restored), Phase.ROLLING_BACK, now)
    return rolling, stop + steps


def _enter(operation: Operation, phase: Phase, now: float) -> Result:
    spent_s = _spent(operation, now)
    moved = replace(operation, state=State.RUNNING, phase=phase, attempt=1, phase_since=now, spent_s=spent_s)
    return _write(moved, phase, now)


def _again(operation: Operation, now: float) -> Result:
    retried = replace(operation, attempt=operation.attempt + 1, phase_since=now, spent_s=_spent(operation, now))
    return _write(retried, operation.phase, now)


def _spent(operation: Operation, now: float) -> float:
    """Return what the operation has taken up to now; 0 for one that begins."""
    if operation.state is State.ACCEPTED:
        return 0.0
    return operation.spent_s + max(0.0, now - operation.phase_since)


def _write(operation: Operation, phase: Phase, now: float) -> Result:
    """Count the change; past the cap the operation is ended instead of going round once more."""
    cap = MAX_WRITES - 1 if phase is Phase.ROLLING_BACK else MAX_WRITES - RESERVED_WRITES
    if operation.writes < cap:
        return replace(operation, writes=operation.writes + 1), (Perform(phase),)
    error = ErrorInfo(
        code=ErrorCode.INTERNAL,
        detail=f"the record changed {operation.writes} times without an end",
        hint="collect the logs and report this",
        phase=str(phase),
    )
    if phase is Phase.ROLLING_BACK:
        return _end(_with_error(operation, error, keep=True), State.ROLLBACK_FAILED), ()
    return _give_up(_with_error(operation, error), State.FAILED, State.ROLLED_BACK, now)


def _end(operation: Operation, state: State) -> Operation:
    return replace(operation, state=state, writes=operation.writes + 1)


def _with_error(operation: Operation, error: ErrorInfo, *, keep: bool = False) -> Operation:
    """Record ``error``; with ``keep`` the first one stays the cause and the new one is appended to its detail."""
    if keep and operation.error is not None:
        error = operation.error.model_copy(update={"detail": f"{operation.error.detail}; then: {error.detail}"})
    return replace(operation, error=error)


def _interrupted(operation: Operation) -> ErrorInfo:
    tries = f" for the {operation.attempt}. time" if operation.attempt > 1 else ""
    return ErrorInfo(
        code=ErrorCode.INTERRUPTED,
        detail=f"the agent stopped{tries} {operation.phase.when}",
        hint="send the command again with a new id",
        phase=str(operation.phase),
        retryable=True,
    )
