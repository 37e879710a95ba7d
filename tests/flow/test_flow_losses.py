"""Operations that a journal lost: the broker still has their last word, and the device ends each of them once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.reports import Report
from agent.deployment.inbox import Connected, Overhearing, Remembered
from agent.deployment.intake import MAX_OPEN
from agent.deployment.losses import MAX_LOOKS, MAX_LOST, QUIET_S
from agent.deployment.phases import Phase
from tests.fakes.box import TOPICS, Box, deploy_body

if TYPE_CHECKING:
    from pathlib import Path


def lose_the_journal(path: Path) -> None:
    for file in path.glob("journal.db*"):
        file.unlink()


def damage_the_journal(path: Path) -> None:
    (path / "journal.db").write_bytes(b"garbage" * 1000)


def wipe_the_state(path: Path) -> None:
    lose_the_journal(path)
    (path / "served.json").unlink()


@pytest.fixture
def busy_box(serving_box: Box) -> Box:
    """A device with one operation that runs and one that waits."""
    serving_box.send("set_method", {"id": "runs", "model": "kanji", "method": "int8"})
    serving_box.send("set_method", {"id": "waits", "model": "kanji", "method": "fp16"})
    serving_box.go_to("runs", Phase.BUILDING)
    return serving_box


def come_back(box: Box) -> None:
    """Restart, connect, and let the broker fall silent."""
    box.reboot()
    box.settle()
    pass_time(box)


def pass_time(box: Box) -> None:
    box.clock.advance(QUIET_S)
    box.engine.turn(wait_s=0)
    box.settle()


def retain(box: Box, operation_id: str, **body: Any) -> None:
    """Let the broker have a report of an operation."""
    told = {"schema": 1, "id": operation_id, "command": "deploy", "model": "kanji", "phase": None, **body}
    box.broker.receive(Report(TOPICS.operation(operation_id), json.dumps(told).encode(), retain=True))


@pytest.mark.parametrize(
    ("lose", "why"), [(damage_the_journal, "damaged"), (lose_the_journal, "damaged"), (wipe_the_state, "new")]
)
def test_what_was_lost_ends_with_a_code_that_says_so(busy_box: Box, tmp_path: Path, lose: Any, why: str) -> None:
    before = {name: busy_box.states(name) for name in ("first", "second")}
    busy_box.journal.close()
    lose(tmp_path)
    come_back(busy_box)
    for name, phase in (("runs", "building"), ("waits", "queued")):
        report = busy_box.report(name)
        assert (report["state"], report["error"]["code"], report["error"]["phase"]) == ("failed", "state_lost", phase)
        assert f"journal is {why}" in report["error"]["detail"]
        assert report["error"]["retryable"]
    assert {name: busy_box.states(name) for name in before} == before, "what had ended is left alone"
    ended = [body["id"] for body in busy_box.broker.bodies(TOPICS.event) if body["event"] == "operation_ended"]
    assert sorted(ended[-2:]) == ["runs", "waits"]


def test_an_operation_that_was_lost_never_begins_anew_under_its_id(busy_box: Box, tmp_path: Path) -> None:
    busy_box.journal.close()
    damage_the_journal(tmp_path)
    come_back(busy_box)
    busy_box.send("set_method", {"id": "waits", "model": "kanji", "method": "fp16"})
    busy_box.settle()
    assert [state for state, _ in busy_box.states("waits")] == ["accepted", "failed"]
    busy_box.send("set_method", {"id": "again", "model": "kanji", "method": "fp16"})
    busy_box.settle()
    assert busy_box.report("again")["state"] == "succeeded"


def test_a_whole_journal_has_nothing_read_to_it(busy_box: Box) -> None:
    come_back(busy_box)
    retain(busy_box, "foreign", state="running")
    assert not busy_box.losses.is_owed
    come_back(busy_box)
    assert busy_box.report("foreign")["state"] == "running"
    assert busy_box.report("runs")["state"] == "succeeded"


def test_nothing_is_ended_before_the_broker_falls_silent(busy_box: Box, tmp_path: Path) -> None:
    busy_box.journal.close()
    damage_the_journal(tmp_path)
    busy_box.reboot()
    busy_box.settle()
    busy_box.clock.advance(QUIET_S - 1)
    busy_box.engine.post(Remembered("late", b'{"schema":1,"id":"late","state":"accepted"}'))
    busy_box._drain()
    busy_box.clock.advance(QUIET_S - 1)
    busy_box.engine.turn(wait_s=0)
    assert busy_box.report("runs")["state"] == "running"
    pass_time(busy_box)
    assert busy_box.report("runs")["state"] == "failed"
    assert (busy_box.report("late")["state"], busy_box.report("late")["command"]) == ("failed", "unknown")


def test_a_command_that_comes_again_meanwhile_runs(busy_box: Box, tmp_path: Path) -> None:
    busy_box.journal.close()
    damage_the_journal(tmp_path)
    busy_box.reboot()
    busy_box.send("set_method", {"id": "waits", "model": "kanji", "method": "fp16"})
    busy_box.settle()
    pass_time(busy_box)
    assert busy_box.report("waits")["state"] == "succeeded"
    assert busy_box.report("runs")["error"]["code"] == "state_lost"


def test_what_the_wanted_state_is_about_to_begin_is_not_taken_for_lost(box: Box) -> None:
    """A generation with more models than may wait at a time, on a device that was wiped while it came to the last."""
    names = [f"model-{number:02d}" for number in range(MAX_OPEN)]
    last = f"gen7-{names[-1]}"
    retain(box, last, state="running", phase="building")
    box.want(7, models={name: {"artifact": deploy_body("")["artifact"], "method": "nf4"} for name in names})
    box.connect()
    box._drain()
    assert box.journal.operation(last) is None
    pass_time(box)
    assert [box.report(f"gen7-{name}")["state"] for name in names] == ["succeeded"] * MAX_OPEN


def test_a_connection_that_breaks_meanwhile_ends_nothing_and_the_next_one_looks_again(
    busy_box: Box, tmp_path: Path
) -> None:
    busy_box.journal.close()
    damage_the_journal(tmp_path)
    busy_box.reboot()
    busy_box.settle()
    busy_box.transport.is_connected = False
    pass_time(busy_box)
    assert busy_box.losses.is_owed
    assert busy_box.report("runs")["state"] == "running"
    busy_box.transport.is_connected = True
    busy_box.connect()
    busy_box.settle()
    pass_time(busy_box)
    assert busy_box.report("runs")["state"] == "failed"
    assert not busy_box.losses.is_owed


def test_a_restart_in_between_looks_again(busy_box: Box, tmp_path: Path) -> None:
    busy_box.journal.close()
    damage_the_journal(tmp_path)
    busy_box.reboot()
    busy_box.settle()
    come_back(busy_box)
    assert busy_box.report("runs")["state"] == "failed"


def test_a_broker_that_closes_the_connection_for_the_asking_is_asked_a_few_times(box: Box) -> None:
    for _ in range(MAX_LOOKS):
        assert box.losses.is_owed
        box.engine.post(Connected())
        box.settle()
    assert not box.losses.is_owed
    box.reboot()
    assert not box.losses.is_owed


def test_a_refusal_is_no_silence(busy_box: Box, tmp_path: Path) -> None:
    busy_box.journal.close()
    damage_the_journal(tmp_path)
    busy_box.reboot()
    busy_box._drain()
    busy_box.engine.post(Connected())
    busy_box.engine.post(Overhearing(is_granted=False))
    busy_box.settle()
    pass_time(busy_box)
    assert busy_box.losses.is_owed


def test_a_device_without_operations_is_done_after_one_look(box: Box) -> None:
    box.connect()
    box.settle()
    pass_time(box)
    assert not box.losses.is_owed


def test_a_look_ends_a_bounded_number_and_the_next_one_the_rest(box: Box) -> None:
    names = [f"o-{number}" for number in range(MAX_LOST + 20)]
    for name in names:
        retain(box, name, state="running", phase="trial")
    ended = []
    for _ in range(2):
        box.connect()
        box.settle()
        pass_time(box)
        ended.append(sum(box.report(name)["state"] == "failed" for name in names))
    assert ended == [MAX_LOST, len(names)]
    assert not box.losses.is_owed


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b'{"id": "odd"}',
        b'{"id": "other", "state": "running"}',
        b'{"id": "odd", "state": ["running"]}',
        b'{"id": "odd", "state": "succeeded"}',
        b'{"id": "odd", "state": "superseded"}',
    ],
)
def test_what_is_no_report_of_an_open_operation_is_left_alone(box: Box, payload: bytes) -> None:
    box.broker.receive(Report(TOPICS.operation("odd"), payload, retain=True))
    box.connect()
    box.settle()
    pass_time(box)
    assert box.journal.recent_operations(9) == []
    assert not box.losses.is_owed


def test_whatever_stands_in_a_report_is_ended_as_far_as_it_can_be_read(box: Box) -> None:
    retain(box, "odd", state="running", phase="dancing", command="a/b", model=7)
    box.connect()
    box.settle()
    pass_time(box)
    report = box.report("odd")
    assert (report["state"], report["command"], report["model"]) == ("failed", "unknown", None)
