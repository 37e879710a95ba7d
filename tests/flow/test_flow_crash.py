"""The process dies at every point at which a record is persisted, and the next one picks up what the journal holds.

INVARIANTS checked after every crash:
- the operation ends in exactly one terminal state, and that state is what the broker retains;
- what is served is the old or the new release, and it is what the server answers with and what is reported;
- a success is said exactly when the new release is served;
- no phase is tried more often than allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.contract.errors import ErrorCode
from agent.deployment.phases import MAX_ATTEMPTS, MAX_WRITES, Phase, State
from agent.deployment.ports import StepError
from tests.fakes.box import CONTENT, TOPICS, Box
from tests.fakes.device import sha256
from tests.fakes.journal import ProcessDeathError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIGEST = sha256(CONTENT)[:12]
NF4, FP4 = f"{DIGEST}-{DIGEST}-nf4", f"{DIGEST}-{DIGEST}-fp4"
ENOUGH = 40
"""More crash points than any operation has commits; the loop ends at the first run without a crash."""


def first_deploy(box: Box) -> None:
    box.deploy("op", method="nf4")


def set_method(box: Box) -> None:
    box.send("set_method", {"id": "op", "model": "kanji", "method": "nf4"})


def rollback(box: Box) -> None:
    box.send("rollback", {"id": "op", "model": "kanji"})


def undeploy(box: Box) -> None:
    box.send("undeploy", {"id": "op", "model": "kanji"})


def failing_canary(box: Box) -> None:
    box.server.fail("canary")
    set_method(box)


Send = "Callable[[Box], None]"
CASES: dict[Callable[[Box], None], tuple[tuple[str, ...], str | None, str | None]] = {
    # command: methods deployed before, release served before, release after a success
    first_deploy: ((), None, NF4),
    set_method: (("fp4",), FP4, NF4),
    rollback: (("fp4", "nf4"), NF4, FP4),
    undeploy: (("fp4",), FP4, None),
    failing_canary: (("fp4",), FP4, NF4),
}


def prepared(root: Path, methods: tuple[str, ...]) -> Box:
    root.mkdir()
    box = Box(root)
    for method in methods:
        box.deploy(f"before-{method}", method=method)
        box.settle()
    return box


def crashes(box: Box, *, at: int, before: bool) -> bool:
    """Go on with ``box`` until its ``at``-th commit kills it; return whether that commit came."""
    box.journal.commits, box.journal.cut_at, box.journal.is_cut_before = 0, at, before
    try:
        box.settle()
    except ProcessDeathError:
        return True
    return False


def check(box: Box, old: str | None, new: str | None) -> State:
    record = box.record("op")
    states = [state for state, _ in box.states("op")]
    ends = [state for state in states if state not in ("accepted", "running")]

    assert record.state.is_terminal
    assert set(ends) == {str(record.state)}
    assert box.report("op")["state"] == str(record.state)
    assert box.serving() == (new if record.state is State.SUCCEEDED else old)
    assert box.server.held("kanji") == ({box.serving()} - {None})
    assert max(body["attempt"] for body in box.broker.bodies(TOPICS.operation("op"))) <= MAX_ATTEMPTS
    assert record.writes <= MAX_WRITES
    assert not box.engine.open_operations
    return record.state


def crash_points(root: Path, send: Callable[[Box], None], *, before: bool) -> Iterator[tuple[int, Box]]:
    """Yield a device that has just died at its n-th commit, for every n."""
    for number in range(1, ENOUGH):
        box = prepared(root / str(number), CASES[send][0])
        send(box)
        if not crashes(box, at=number, before=before):
            box.journal.close()
            return
        yield number, box
        box.journal.close()
    raise AssertionError(f"more than {ENOUGH} commits in one operation")


@pytest.mark.parametrize("before", [False, True], ids=["after_the_commit", "before_the_commit"])
@pytest.mark.parametrize("send", CASES, ids=lambda send: str(send.__name__))
def test_a_crash_at_any_commit_ends_in_the_old_or_the_new_release(
    tmp_path: Path, send: Callable[[Box], None], *, before: bool
) -> None:
    _, old, new = CASES[send]
    ends = {}
    for number, box in crash_points(tmp_path, send, before=before):
        box.reboot()
        if box.journal.operation("op") is None:
            send(box)  # it was never acknowledged, so the broker delivers it again
        box.settle()
        ends[number] = check(box, old, new)

    assert len(ends) >= 3
    if send is not failing_canary:
        assert State.SUCCEEDED in ends.values()


@pytest.mark.parametrize("send", [set_method, rollback], ids=lambda send: str(send.__name__))
def test_a_second_crash_while_recovering_changes_nothing_about_that(
    tmp_path: Path, send: Callable[[Box], None]
) -> None:
    _, old, new = CASES[send]
    for _, box in crash_points(tmp_path, send, before=False):
        for again in (1, 2):
            box.journal.close()
            box._start()
            box.journal.cut_at = again
            try:
                box.engine.recover()
                box.settle()
            except ProcessDeathError:
                continue
        box.reboot()
        box.settle()
        check(box, old, new)


@pytest.mark.parametrize(
    ("phase", "end", "steps"),
    [
        (Phase.DOWNLOADING, "succeeded", "downloading"),
        (Phase.VERIFYING, "succeeded", "verifying"),
        (Phase.PLANNING, "succeeded", "planning"),
        (Phase.BUILDING, "succeeded", "building"),
        (Phase.LOADING, "succeeded", "loading"),
        (Phase.CANARY, "rolled_back", "rolling_back"),
        (Phase.ACTIVATING, "rolled_back", "rolling_back"),
        (Phase.TRIAL, "rolled_back", "rolling_back"),
    ],
)
def test_a_restart_goes_on_as_the_phase_demands(box: Box, phase: Phase, end: str, steps: str) -> None:
    box.deploy("op", method="nf4")
    box.go_to("op", phase)
    box.broker.log.clear()
    box.reboot()
    box.settle()

    assert box.states("op")[0] == ("running", steps)
    assert box.report("op")["state"] == end
    if end == "rolled_back":
        error = box.report("op")["error"]
        assert (error["code"], error["phase"], error["retryable"]) == ("interrupted", str(phase), True)
        assert error["detail"].endswith(f"during {phase}")


@pytest.mark.parametrize(("phase", "end"), [(Phase.BUILDING, "failed"), (Phase.LOADING, "rolled_back")])
def test_a_phase_that_takes_the_agent_with_it_is_not_tried_for_ever(box: Box, phase: Phase, end: str) -> None:
    box.deploy("op", method="nf4")
    box.go_to("op", phase)
    for _ in range(MAX_ATTEMPTS):
        box.reboot()
    box.settle()

    assert box.report("op")["state"] == end
    assert box.report("op")["error"]["code"] == "interrupted"
    assert f"for the {MAX_ATTEMPTS}. time" in box.report("op")["error"]["detail"]


def test_operations_that_wait_survive_a_restart_in_their_order(box: Box) -> None:
    box.deploy("one", method="fp4")
    box.send("set_method", {"id": "two", "model": "kanji", "method": "nf4"})
    box.send("rollback", {"id": "three", "model": "kanji"})
    box.go_to("one", Phase.BUILDING)
    box.reboot()
    box.settle()

    ends = [body["id"] for body in box.broker.bodies(TOPICS.event) if body["event"] == "operation_ended"]
    assert ends == ["one", "two", "three"]
    assert box.serving() == FP4


def test_a_success_that_was_committed_but_not_told_is_told_after_the_restart(box: Box) -> None:
    box.deploy("op", method="nf4")
    box.go_to("op", Phase.TRIAL)
    box.transport.is_connected = False
    box.settle()
    assert box.report("op")["state"] == "running"

    box.reboot()
    box.settle()
    assert box.report("op")["state"] == "succeeded"
    assert box.serving() == NF4


def test_a_stop_in_the_middle_leaves_the_operation_open_and_it_goes_on_at_the_next_start(box: Box) -> None:
    box.deploy("op", method="nf4")
    box.go_to("op", Phase.BUILDING)
    box.engine.interrupt_steps()
    box.settle()
    assert box.record("op").state is State.RUNNING

    box.reboot()
    box.settle()
    assert box.report("op")["state"] == "succeeded"


def test_a_server_that_cannot_be_restored_at_boot_does_not_keep_the_agent_from_starting(box: Box) -> None:
    box.deploy("op", method="nf4")
    box.settle()
    box.journal.close()
    box._start()
    box.server.fail("restore")
    box.engine.recover()
    box.settle()
    assert box.server.answers() == {}

    box.builder.error = StepError(ErrorCode.BAD_CHECKPOINT, "not asked for")
    box.send("status", {"id": "s-1"})
    box.settle()
    assert box.report("s-1")["state"] == "succeeded"
