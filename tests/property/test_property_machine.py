"""The state machine under every sequence of events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import ErrorCode, ErrorInfo
from agent.deployment.machine import (
    Begin,
    CancelRequested,
    Done,
    Event,
    Expired,
    Failed,
    Interrupt,
    Judged,
    Operation,
    Perform,
    Restarted,
    TimePassed,
    advance,
    deadline,
)
from agent.deployment.phases import LINES, MAX_ATTEMPTS, MAX_WRITES, RULES, OnFailure, OnResume, Phase, State
from tests.fakes.strategies import events, fresh, operations

COMMANDS = sorted(LINES)
ERROR = ErrorInfo(code=ErrorCode.INTERNAL, detail="it broke")
RISKY = {phase for phase, rule in RULES.items() if rule.on_failure is OnFailure.ROLL_BACK}


@given(operations(), events, st.floats(0, 1e9))
def test_every_event_is_defined_for_every_record(operation: Operation, event: Event, now: float) -> None:
    after, steps = advance(operation, event, now)

    assert (after.id, after.command, after.request) == (operation.id, operation.command, operation.request)
    assert 1 <= after.attempt <= MAX_ATTEMPTS
    assert after.writes - operation.writes in (0, 1)
    assert sum(isinstance(step, Perform) for step in steps) <= 1
    for step in steps:
        if isinstance(step, Perform):
            assert after.state is State.RUNNING
            assert step.phase is after.phase


@given(operations(), events, st.floats(0, 1e9))
def test_a_terminal_record_never_changes(operation: Operation, event: Event, now: float) -> None:
    after, steps = advance(operation, event, now)
    if operation.state.is_terminal:
        assert (after, steps) == (operation, ())
    if after.state is not operation.state:
        assert operation.state in (State.ACCEPTED, State.RUNNING)
        assert after.state is not State.ACCEPTED


@given(st.sampled_from(COMMANDS), st.lists(events, max_size=120))
def test_no_sequence_of_events_changes_a_record_more_often_than_allowed(command: str, sequence: list[Event]) -> None:
    operation, now, changes = fresh(command), 0.0, 0
    for event in sequence:
        now += 100.0
        after, _ = advance(operation, event, now)
        changes += after.writes != operation.writes
        operation = after
    assert changes < MAX_WRITES
    assert operation.writes <= MAX_WRITES


@given(operations(), st.lists(st.sampled_from(["done", "fail", "transient", "restart"]), max_size=MAX_WRITES))
def test_from_any_record_a_fair_sequence_of_outcomes_ends_it(operation: Operation, outcomes: list[str]) -> None:
    operation, _ = advance(operation, Judged(), 0.0)
    operation, _ = advance(operation, Begin(), 0.0)
    for outcome in [*outcomes, *["done"] * (MAX_WRITES + 1)]:
        choices: dict[str, Event] = {
            "done": Done(operation.phase),
            "fail": Failed(operation.phase, ERROR),
            "transient": Failed(operation.phase, ERROR, is_transient=True),
            "restart": Restarted(),
        }
        operation, _ = advance(operation, choices[outcome], 0.0)
    assert operation.state.is_terminal


@given(operations(), st.lists(events, max_size=8))
def test_a_running_record_always_waits_for_one_piece_of_work(operation: Operation, sequence: list[Event]) -> None:
    """Whoever performs the steps can never lose the thread: each change of phase asks for its work."""
    for event in sequence:
        after, steps = advance(operation, event, 0.0)
        if after.state is State.RUNNING and after.writes != operation.writes:
            assert steps[-1] == Perform(after.phase)
        operation = after


@given(operations(), events, st.floats(0, 1e9))
def test_once_the_server_may_hold_the_new_model_only_a_success_ends_without_a_rollback(
    operation: Operation, event: Event, now: float
) -> None:
    after, _ = advance(operation, event, now)
    if operation.phase in RISKY and after.state.is_terminal and not operation.state.is_terminal:
        assert after.state is State.SUCCEEDED


@given(operations(), st.floats(0, 1e6))
def test_a_failure_after_loading_rolls_back_and_keeps_the_cause(operation: Operation, now: float) -> None:
    after, steps = advance(operation, Failed(operation.phase, ERROR), now)
    if operation.state is State.RUNNING and operation.phase in RISKY:
        assert (after.state, after.phase, after.outcome) == (State.RUNNING, Phase.ROLLING_BACK, State.ROLLED_BACK)
        assert after.error == ERROR
        assert steps == (Perform(Phase.ROLLING_BACK),)


@given(operations(), st.floats(0, 1e6))
def test_a_rollback_ends_in_what_caused_it(operation: Operation, now: float) -> None:
    if operation.state is State.RUNNING and operation.phase is Phase.ROLLING_BACK:
        after, steps = advance(operation, Done(Phase.ROLLING_BACK), now)
        assert (after.state, steps) == (operation.outcome, ())


@given(operations(), st.floats(0, 1e6))
def test_a_cancel_stops_what_may_be_stopped_and_nothing_else(operation: Operation, now: float) -> None:
    after, steps = advance(operation, CancelRequested(), now)
    if operation.state.is_terminal or not RULES[operation.phase].is_cancelable:
        assert (after, steps) == (operation, ())
    elif operation.state is State.ACCEPTED:
        assert (after.state, steps) == (State.CANCELED, ())
    elif operation.phase in RISKY:
        assert (after.phase, after.outcome) == (Phase.ROLLING_BACK, State.CANCELED)
        assert steps == (Interrupt(), Perform(Phase.ROLLING_BACK))
    else:
        assert (after.state, steps) == (State.CANCELED, (Interrupt(),))


@given(operations(), st.none() | st.just(ERROR), st.floats(0, 1e6))
def test_only_a_deferred_record_is_judged_and_it_begins_only_afterwards(
    operation: Operation, error: ErrorInfo | None, now: float
) -> None:
    after, steps = advance(operation, Judged(error), now)
    assert steps == ()
    if not operation.is_deferred:
        assert after == operation
        return
    assert advance(operation, Begin(), now) == (operation, ())
    assert after.state is (State.ACCEPTED if error is None else State.REJECTED)
    assert not after.is_deferred
    assert advance(after, Begin(), now)[0].state is (State.RUNNING if error is None else State.REJECTED)


@given(operations(), st.sampled_from([-1000.0, -0.5, 0.0, 1.0, 1e6]))
def test_time_ends_a_phase_at_its_limit_and_never_before(operation: Operation, late_s: float) -> None:
    limit = deadline(operation)
    after, steps = advance(operation, TimePassed(), (limit or operation.phase_since) + late_s)
    if limit is None or late_s < 0:
        assert (after, steps) == (operation, ())
        return
    assert steps[0] == Interrupt()
    assert after.error is not None
    if operation.phase is Phase.ROLLING_BACK:
        assert after.state is State.ROLLBACK_FAILED
    elif operation.phase in RISKY:
        assert (after.phase, after.outcome) == (Phase.ROLLING_BACK, State.TIMED_OUT)
    else:
        assert after.state is State.TIMED_OUT


@given(operations(), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e5))
def test_the_time_of_the_whole_operation_ends_it_but_never_its_rollback(
    operation: Operation, spent_s: float, total_s: float, passed_s: float
) -> None:
    operation = replace(operation, spent_s=spent_s)
    now = operation.phase_since + passed_s
    after, _ = advance(operation, TimePassed(total_s), now)
    alone, _ = advance(operation, TimePassed(), now)
    soak_s = (operation.request.get("gate", {}).get("soak_s") or 0) if operation.phase is Phase.TRIAL else 0
    if operation.state is not State.RUNNING or operation.phase is Phase.ROLLING_BACK:
        assert after == alone
    elif spent_s + passed_s > total_s + soak_s + 1 and passed_s > soak_s + 1:
        assert after != operation
        assert after.error is not None
        assert after.error.code in (ErrorCode.TIMED_OUT, ErrorCode.INTERNAL)


@given(operations(), st.lists(events, max_size=12))
def test_the_time_that_was_spent_never_shrinks(operation: Operation, sequence: list[Event]) -> None:
    now = operation.phase_since
    for event in sequence:
        now += 10.0
        after, _ = advance(operation, event, now)
        assert after.spent_s >= operation.spent_s or operation.state is State.ACCEPTED
        operation = after


@given(operations(), st.floats(0, 1e6))
def test_only_what_has_not_begun_expires(operation: Operation, now: float) -> None:
    after, steps = advance(operation, Expired("2026-11-25T11:00:00Z"), now)
    assert steps == ()
    expected = State.EXPIRED if operation.state is State.ACCEPTED else operation.state
    assert after.state is expected


@given(operations(), st.floats(0, 1e6))
def test_a_restart_follows_the_phase_s_own_rule(operation: Operation, now: float) -> None:
    after, steps = advance(operation, Restarted(), now)
    if operation.state is not State.RUNNING:
        assert steps == ()
        assert after.state is operation.state
        return
    rule = RULES[operation.phase].on_resume
    if rule is OnResume.CONTINUE:
        assert (after.phase, after.attempt, steps) == (operation.phase, operation.attempt, (Perform(after.phase),))
    elif rule is OnResume.ROLL_BACK:
        assert (after.phase, after.outcome) == (Phase.ROLLING_BACK, State.ROLLED_BACK)
        assert after.error is not None
        assert after.error.code in (ErrorCode.INTERRUPTED, ErrorCode.INTERNAL)
    else:
        assert after.attempt == operation.attempt + 1 or after.phase is not operation.phase or after.state.is_terminal


@given(operations(), st.sampled_from(Phase), st.booleans())
def test_the_outcome_of_another_phase_is_ignored(operation: Operation, phase: Phase, is_done: bool) -> None:  # noqa: FBT001 - drawn
    if phase is not operation.phase:
        event = Done(phase) if is_done else Failed(phase, ERROR)
        assert advance(operation, event, 0.0) == (operation, ())


@pytest.mark.parametrize("last", LINES["deploy"])
def test_the_unluckiest_operation_stays_within_its_writes_and_can_still_be_rolled_back(last: Phase) -> None:
    """Every phase needs every attempt, up to the one that fails for good; then so does the rollback."""
    operation, _ = advance(fresh("deploy"), Begin(), 0.0)
    touched = rolled = False
    while not operation.state.is_terminal:
        touched = touched or operation.phase in RISKY
        rolled = rolled or operation.phase is Phase.ROLLING_BACK
        is_tired = operation.attempt == MAX_ATTEMPTS and operation.phase is not last
        event = Done(operation.phase) if is_tired else Failed(operation.phase, ERROR, is_transient=True)
        operation, _ = advance(operation, event, 0.0)

    assert operation.writes <= MAX_WRITES
    assert operation.state is (State.ROLLED_BACK if rolled else State.FAILED)
    assert rolled == touched


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_meets_no_trouble_passes_its_line_and_succeeds(command: str) -> None:
    operation, seen = fresh(command), []
    operation, _ = advance(operation, Begin(), 0.0)
    while not operation.state.is_terminal:
        seen.append(operation.phase)
        operation, _ = advance(operation, Done(operation.phase), 0.0)
    assert tuple(seen) == LINES[command]
    assert operation.state is State.SUCCEEDED


def test_every_phase_of_every_line_has_a_rule_and_starts_where_nothing_is_loaded() -> None:
    for line in LINES.values():
        assert all(phase in RULES for phase in line)
        assert len(set(line)) == len(line)
    assert set(RULES) == set(Phase)
