"""What happened, as lines; what the doctor thinks of what it found; what a model answered."""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from rich.console import Console

from agent.console.check import State
from agent.fleet import judging, trail
from agent.fleet.infer_cli import answer_lines
from agent.fleet.judging import Tried
from agent.fleet.operations_cli import _nested
from agent.fleet.progress import Watching, where
from agent.fleet.view import Device
from agent.fleet.words import comparison_lines, config_lines
from tests.fakes import fleet

NOW = datetime(2026, 11, 29, 8, 0, tzinfo=timezone.utc)
ERROR = {"code": "gate_failed", "detail": "agreement 0.31 of 0.95"}


def operation(name: str, at: str, **changes: Any) -> dict[str, Any]:
    body = {"id": name, "command": "deploy", "model": "kanji", "state": "succeeded", "phase": None, "error": None}
    return {**body, "at": at, **changes}


def test_operations_of_all_devices_are_in_the_order_of_their_last_word() -> None:
    first = Device("box-1", operations={"d-2": operation("d-2", "10:02"), "d-1": operation("d-1", "10:00")})
    second = Device("box-2", operations={"d-1": operation("d-1", "10:01", state="failed", error=ERROR)})
    assert [trail.operation_line(each) for each in trail.operations([first, second])] == [
        "10:00 box-1 d-1 deploy kanji succeeded",
        "10:01 box-2 d-1 deploy kanji failed gate_failed: agreement 0.31 of 0.95",
        "10:02 box-1 d-2 deploy kanji succeeded",
    ]


def test_an_event_and_an_entry_of_the_log_tell_their_details() -> None:
    body = {
        "schema": 1,
        "event": "operation_ended",
        "at": "10:00",
        "boot_id": "b",
        "id": "d-1",
        "error": ERROR,
        "n": None,
    }
    told = "10:00 box operation_ended id=d-1 error=gate_failed: agreement 0.31 of 0.95"
    assert trail.event_line("box", body) == told
    entry = {"timestamp": "10:00", "level": "info", "event": "command", "device": "box", "id": "d\x1b-1", "counts": [1]}
    assert trail.log_line(entry) == "10:00 info command id=d\ufffd-1 counts=[1]"


@pytest.mark.parametrize(
    ("level", "name", "is_wanted"),
    [(None, None, True), ("info", None, True), ("warning", None, False), (None, "d-1", True), (None, "d-2", False)],
)
def test_entries_are_chosen_by_level_and_operation(level: str | None, name: str | None, *, is_wanted: bool) -> None:
    assert trail.is_wanted({"level": "info", "id": "d-1"}, level, name) == is_wanted


def test_a_time_is_a_moment_or_how_long_ago() -> None:
    assert trail.moment("90m", NOW) == "2026-11-29T06:30:00.000Z"
    assert trail.moment("2026-11-29T07:00:00+01:00", NOW) == "2026-11-29T06:00:00.000Z"
    for wrong in ("yesterday", "2026-11-29T07:00:00"):
        with pytest.raises(ValueError, match=r"time zone|Invalid"):
            trail.moment(wrong, NOW)


@pytest.mark.parametrize(
    ("tried", "states"),
    [
        (Tried(None, arrived=True), {"commands": State.OK, "roles": State.WARNING}),
        (Tried("Not authorized", arrived=False), {"commands": State.WARNING, "roles": State.OK}),
        (Tried(None, arrived=False), {"commands": State.FAILED, "roles": State.OK}),
    ],
)
def test_a_right_is_what_arrives(tried: Tried, states: dict[str, State]) -> None:
    found = (judging.commands(tried), judging.roles(tried))
    assert {check.name: check.state for check in found} == states


@pytest.mark.parametrize(
    ("may_write", "may_halt", "may_command", "state", "words"),
    [
        (True, True, True, State.OK, "may write their wanted state, and halt them"),
        (True, False, True, State.WARNING, "could not be stopped"),
        (False, True, True, State.OK, "may not write their wanted state, but halt them"),
        (False, False, True, State.OK, "nor halt them, as role operator"),
        (False, False, False, State.OK, "nor halt them, and may not send commands either, as role auditor"),
    ],
)
def test_who_may_roll_out_to_a_group_should_be_able_to_halt_it(
    *, may_write: bool, may_halt: bool, may_command: bool, state: State, words: str
) -> None:
    check = judging.groups(
        Tried(None, arrived=may_write),
        Tried(None if may_halt else "no", arrived=may_halt),
        Tried(None, arrived=may_command),
    )
    assert (check.state, words in check.detail) == (state, True), check


def test_clocks_are_compared_when_their_devices_speak() -> None:
    def at(skew_s: float) -> tuple[str, datetime]:
        return (NOW + timedelta(seconds=skew_s)).isoformat().replace("+00:00", "Z"), NOW

    assert judging.device_clocks({}, []).state is State.NOT_ASKED
    assert judging.device_clocks({"a": at(3), "b": at(-2)}, []).state is State.OK
    off = judging.device_clocks({"a": at(-3600), "b": at(0), "c": at(90)}, ["b"])
    assert (off.state, off.detail) == (State.WARNING, "2 of 3 differ: a -3600 s, c +90 s")
    assert judging.device_clocks({"a": at(0)}, ["a"]).detail == "1 of 1 are not synchronised: a"
    assert judging.own_clock(NOW, is_synchronised=False).state is State.WARNING


def test_what_is_not_encrypted_is_told_where_it_can_be_read() -> None:
    told = judging.encryption("broker.example.com", is_encrypted=False, has_password=True)
    assert (told.state, "can be read" in told.detail) == (State.WARNING, True)
    assert judging.encryption("localhost", is_encrypted=False, has_password=True).state is State.OK
    assert judging.encryption("broker.example.com", is_encrypted=True, has_password=True).state is State.OK


def test_devices_that_talk_nonsense_are_named() -> None:
    assert judging.devices([], "edge/v1").state is State.WARNING
    boxes = [Device(f"box-{number}", unreadable=1) for number in range(7)]
    told = judging.devices([*boxes, Device("good", said={"presence": fleet.presence()})], "edge/v1").detail
    assert told == "7 of 8 said what cannot be read: box-0, box-1, box-2, box-3, box-4 and 2 more"
    assert judging.devices([Device("good", said={"presence": fleet.presence()})], "edge/v1").detail == "1, 1 online"


def test_an_answer_is_the_best_classes_of_each_row() -> None:
    output = {"name": "output", "datatype": "FP32", "shape": [2, 4], "data": [0.1, 5, 3, 4, 9, 0, 0.5, 1]}
    vector = {"name": "state", "datatype": "FP32", "shape": [1, 1, 2], "data": [0, 0]}
    assert answer_lines({"model_name": "kanji", "model_version": "1", "outputs": [output, vector]}) == [
        "kanji 1",
        "output FP32 [2, 4]",
        "  row 0: class 1 (5), class 3 (4), class 2 (3)",
        "  row 1: class 0 (9), class 3 (1), class 2 (0.5)",
        "state FP32 [1, 1, 2]",
    ]
    assert answer_lines({"text_output": "one\ntwo"}) == ["one", "two"]


def test_settings_are_given_by_name_and_shown_as_they_are_given() -> None:
    changes = ("health.interval_s=5", "memory.reserve=256MiB", "memory.budget=", "planning.matrix_only=true")
    found = _nested(changes)
    assert found == {
        "health": {"interval_s": 5},
        "memory": {"reserve": "256MiB", "budget": None},
        "planning": {"matrix_only": True},
    }
    assert config_lines({"health": {"interval_s": 5.0}}) == ["health.interval_s=5.0"]
    assert config_lines({}) == ["nothing was changed over MQTT: the file of the device counts"]


@pytest.mark.parametrize("change", ["health", "=5", "health.=5", ".x=1"])
def test_a_change_that_is_none_is_refused(change: str) -> None:
    with pytest.raises(SystemExit):
        _nested((change,))
    with pytest.raises(SystemExit):
        _nested(("a=1", "a.b=2"))


def test_a_comparison_is_a_table() -> None:
    rows = [
        {"method": "nf4", "fits": True, "passes": True, "resident_bytes": 605124, "agreement": 0.99, "accuracy": 0.5,
         "latency_p50_ms": 4.25, "complaints": [], "why": None},
        {"method": "fp32", "fits": False, "passes": False, "estimated_bytes": 2**22, "complaints": ["agreement 0.3"],
         "why": "1 MiB too much"},
    ]  # fmt: skip
    assert [" ".join(line.split()) for line in comparison_lines(rows)] == [
        "method fits takes agrees accuracy p50 passes what",
        "nf4 yes 591 KiB 99.0% 50.0% 4.2 ms yes",
        "fp32 no 4.0 MiB - - - no 1 MiB too much; agreement 0.3",
    ]
    assert comparison_lines([]) == []


def test_a_terminal_gets_a_bar_and_in_the_end_the_outcome() -> None:
    console = Console(force_terminal=True, width=100, file=io.StringIO(), color_system=None)
    states: list[dict[str, Any]] = [
        {"id": "d-1", "state": "running", "phase": "building", "progress": {"done": 5, "total": 10}},
        {"id": "d-1", "state": "failed", "phase": None, "error": ERROR},
    ]
    with Watching(as_json=False, console=console) as watching:
        for state in states:
            watching.show(state)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "d-1" in drawn
    assert "d-1 failed\n  gate_failed: agreement 0.31 of 0.95" in drawn.replace("\r", "")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"state": "accepted", "phase": "queued"}, ("queued", 0, None)),
        ({"state": "running", "phase": "downloading", "progress": {"done": 5, "total": 9}}, ("1/8 downloading", 5, 9)),
        ({"state": "running", "phase": "building", "progress": {"done": 5, "total": None, "method": "nf4"}},
         ("4/8 building nf4", 5, None)),
        ({"state": "accepted", "phase": "queued", "detail": "deferred: clock"}, ("queued: deferred: clock", 0, None)),
    ],
)  # fmt: skip
def test_a_bar_says_which_phase_it_is_and_how_far(changes: dict[str, Any], shown: tuple[str, int, int | None]) -> None:
    assert where({"id": "d-1", **changes}) == shown
