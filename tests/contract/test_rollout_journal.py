"""The operator's record of a rollout on a real disk: played again it is the rollout, and it may be cut off anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent.fleet.rollout.cli import rollout
from agent.fleet.rollout.events import Asked, Heard, NotNeeded, Present, Purpose, Serves, Ticked, Told
from agent.fleet.rollout.journal import Journal, JournalError
from agent.fleet.rollout.machine import advance
from agent.fleet.rollout.membership import Membership
from agent.fleet.rollout.plan import Plan, load
from agent.fleet.rollout.state import begin
from agent.fleet.target import Target

if TYPE_CHECKING:
    from pathlib import Path

    from agent.fleet.rollout.events import Event

FOUND = Membership((("a",), ("b", "c")), ("d",), ("e",), ("f",))
EVENTS: tuple[Event, ...] = (
    Heard((Present("a", is_online=True), Serves("a", is_ours=False))),
    Heard((Told("a", Purpose.DO, "succeeded", None), Told("b", Purpose.DO, "failed", "gate_failed: so it is"))),
    Ticked(),
    Asked("approve", 1),
    Asked("abort"),
    Heard((NotNeeded("a", "it was like this before"), Told("a", Purpose.UNDO, "running"))),
)


def plan(name: str = "r", percent: float = 50) -> Plan:
    waves = [{"name": "some", "percent": percent}, {"name": "all", "percent": 100}]
    command = {"name": "set_method", "model": "kanji", "method": "nf4"}
    return Plan.model_validate({"schema": 1, "id": name, "command": command, "waves": waves})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "rollouts" / "r"


def written(directory: Path) -> Journal:
    journal = Journal(directory, plan())
    journal.lock()
    journal.start(FOUND, 1.0)
    for number, event in enumerate(EVENTS):
        journal.append(event, 2.0 + number)
    journal.close()
    return journal


def test_what_was_recorded_is_read_as_it_was(directory: Path) -> None:
    journal = written(directory)
    assert journal.membership() == FOUND
    assert [event for event, _ in journal.events()] == [*EVENTS]
    assert [at for _, at in journal.events()] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_the_history_is_the_machine_s_own(directory: Path) -> None:
    rollout = begin(FOUND.waves)
    expected = [(1.0, rollout)]
    for number, event in enumerate(EVENTS):
        rollout, _ = advance(plan(), rollout, event, 2.0 + number)
        expected.append((2.0 + number, rollout))
    assert [*written(directory).history()] == expected


def test_a_record_that_was_cut_off_anywhere_is_read_up_to_there_and_goes_on(directory: Path) -> None:
    written(directory)
    file = directory / "journal.jsonl"
    content = file.read_bytes()
    whole = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content)):
        file.write_bytes(content[:length])
        journal = Journal(directory, plan())
        journal.lock()
        kept = sum(end <= length for end in whole)
        if kept == 0:
            assert journal.membership() is None
            journal.start(FOUND, 1.0)
            kept = 1
        journal.append(Asked("pause"), 9.0)
        journal.close()
        assert [event for event, _ in journal.events()] == [*EVENTS[: kept - 1], Asked("pause")]


def test_one_process_at_a_time_runs_a_rollout(directory: Path) -> None:
    first, second = Journal(directory, plan()), Journal(directory, plan())
    first.lock()
    with pytest.raises(JournalError, match="rollout r is being run by another process here"):
        second.lock()
    first.close()
    second.lock()
    second.close()


def test_the_record_of_another_plan_is_not_taken_up_unless_it_is_forgotten(directory: Path) -> None:
    written(directory)
    journal = Journal(directory, plan(percent=60))
    with pytest.raises(JournalError, match="rollout r was begun with another plan"):
        journal.membership()
    journal.forget()
    assert journal.membership() is None
    assert [*journal.history()] == []


def test_requests_are_taken_up_once_each_also_across_a_restart(directory: Path) -> None:
    journal = written(directory)
    journal.ask("approve", 1)
    journal.ask("pause", None)
    assert journal.requests(since=journal.requests_done()) == [Asked("approve", 1), Asked("pause")]
    journal.lock()
    journal.append(Asked("approve", 1), 9.0, request=0)
    journal.close()
    assert journal.requests(since=Journal(directory, plan()).requests_done()) == [Asked("pause")]


@pytest.mark.parametrize(("what", "status"), [("pause", 2), ("resume", 2), ("approve", 2), ("abort", 0)])
def test_what_is_being_aborted_takes_no_request_that_nothing_would_come_of(
    directory: Path, tmp_path: Path, what: str, status: int
) -> None:
    file = tmp_path / "plan.toml"
    abort = "[on_abort]\nrollback = true\n"
    waves = '[[waves]]\nname = "some"\npercent = 50\n[[waves]]\nname = "all"\npercent = 100\n'
    file.write_text(
        f'schema = 1\nid = "r"\n[command]\nname = "set_method"\nmodel = "kanji"\nmethod = "nf4"\n{waves}{abort}'
    )
    journal = Journal(directory, load(file))
    journal.lock()
    journal.start(FOUND, 1.0)
    for number, event in enumerate(EVENTS[:-1]):  # and now what was changed is taken back
        journal.append(event, 2.0 + number)
    journal.close()
    wave = ["--wave", "all"] if what == "approve" else []
    done = CliRunner().invoke(rollout, [what, str(file), "--state-dir", str(directory.parent), *wave], obj=Target())
    assert done.exit_code == status, done.output
    assert (f"there is nothing left to {what}" in done.stderr) == bool(status)
    assert len(journal.requests(since=0)) == (0 if status else 1)
