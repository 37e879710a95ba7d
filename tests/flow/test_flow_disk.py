"""A disk that is full for a while: nothing that happened meanwhile is lost, and nothing stands still after it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from agent.deployment.again import LONGEST_PAUSE_S
from agent.deployment.keeper import FIRST_PAUSE_S
from agent.deployment.phases import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.box import Box

FULL = OSError(errno.ENOSPC, "No space left on device")
SWITCH = (Phase.PLANNING, Phase.BUILDING, Phase.LOADING, Phase.CANARY, Phase.ACTIVATING, Phase.TRIAL)


@pytest.fixture(autouse=True)
def no_tracebacks() -> Iterator[None]:
    """A traceback with everything that its frames hold takes longer to draw than these tests to run."""
    with capture_logs():
        yield


def wait(box: Box, seconds: float = LONGEST_PAUSE_S) -> None:
    """Let time pass, a turn of the idle loop each second."""
    for _ in range(int(seconds)):
        box.clock.advance(1.0)
        box.engine.turn(wait_s=0)
        box.settle()


def failing_at(number: int, *, after: bool, save: Callable[..., None]) -> Callable[..., None]:
    """Return a ``save`` whose ``number``-th call raises, before it commits or after."""
    calls = 0

    def saved(*arguments: Any, **changes: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            raise FULL
        save(*arguments, **changes)
        if calls == number:
            raise FULL

    return saved


@pytest.mark.parametrize("after", [False, True], ids=["before_the_commit", "after_the_commit"])
@pytest.mark.parametrize("number", range(1, len(SWITCH) + 3))
def test_an_error_at_any_commit_delays_an_operation_and_no_more(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool
) -> None:
    box = serving_box
    with monkeypatch.context() as patch:
        patch.setattr(box.journal, "save", failing_at(number, after=after, save=box.journal.save))
        acknowledged = box.send("set_method", {"id": "op", "model": "kanji", "method": "fp4"})
        box.settle()
        wait(box)

    assert acknowledged[-1] == "ack"
    assert box.report("op")["state"] == "succeeded"
    assert (box.serving() or "").endswith("-fp4")
    assert not box.engine.open_operations


@pytest.mark.parametrize("phase", SWITCH)
def test_the_outcome_of_a_step_that_ended_on_a_full_disk_counts_when_there_is_room_again(
    serving_box: Box, phase: Phase
) -> None:
    box = serving_box
    box.send("set_method", {"id": "op", "model": "kanji", "method": "fp4"})
    box.go_to("op", phase)
    box.journal.error = FULL
    box.settle()
    wait(box)
    assert box.record("op").phase is phase

    box.journal.error = None
    wait(box)
    assert box.report("op")["state"] == "succeeded"


def test_a_command_that_came_on_a_full_disk_is_carried_out_without_being_sent_again(box: Box) -> None:
    box.journal.error = FULL
    acknowledged = box.deploy("op")
    box.settle()
    assert acknowledged == []

    box.journal.error = None
    wait(box)
    assert acknowledged == ["ack"]
    assert box.report("op")["state"] == "succeeded"


def test_an_operation_that_was_open_goes_on_though_the_disk_was_full_when_the_agent_started(box: Box) -> None:
    box.deploy("op", method="nf4")
    box.go_to("op", Phase.TRIAL)
    box.journal.close()
    box._start()
    box.journal.error = FULL
    box.engine.recover()
    box.settle()
    assert box.record("op").phase is Phase.TRIAL

    box.journal.error = None
    wait(box)
    assert box.report("op")["state"] == "rolled_back"


def test_a_server_that_is_lost_on_a_full_disk_comes_back_at_once(serving_box: Box) -> None:
    before = serving_box.serving()
    serving_box.journal.error = FULL
    serving_box.server.die()
    serving_box.settle()
    assert serving_box.server.answers() == {"kanji": before}


def test_models_that_could_not_be_restored_are_tried_again_after_pauses(serving_box: Box) -> None:
    box, before = serving_box, serving_box.serving()
    box.server.fail("restore", times=3)
    box.server.die()
    box.settle()
    assert box.server.answers() == {}

    wait(box, 2 * FIRST_PAUSE_S)
    assert box.server.answers() == {}
    wait(box)
    assert box.server.answers() == {"kanji": before}


def test_what_a_step_finds_full_is_called_so(serving_box: Box) -> None:
    serving_box.builder.error = OSError(errno.ENOSPC, "No space left on device")
    serving_box.deploy("op", method="fp4-dq")
    serving_box.settle()
    error = serving_box.report("op")["error"]
    assert (error["code"], error["phase"], error["retryable"]) == ("insufficient_disk", "building", True)


def test_what_nothing_needs_is_swept_at_the_start_if_the_last_one_could_not(serving_box: Box) -> None:
    box = serving_box
    (digest,) = {item.current.sha256 for item in box.journal.served().values()}
    cut_short = box.store.staging(digest, "int8")
    forgotten = box.store.partial(digest)
    forgotten.write_bytes(b"fetched, and in the store since")
    stray = box.store.staging("f" * 64, "nf4")
    box.reboot()
    box.settle()
    assert not any(path.exists() for path in (cut_short, forgotten, stray))
    assert box.store.source(digest) is not None
