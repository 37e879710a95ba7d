"""The memory changes under a device that serves: what it does about it, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from agent.deployment.phases import LINES
from agent.planning.memory import Footprint, estimate
from agent.planning.methods import METHODS
from tests.fakes.box import TOPICS, URL, Box
from tests.fakes.device import GOOD_GATE, MIB, checkpoint

RESERVE = 512 * MIB
NUMELS = (5000,) * 100
"""Many small matrices: what a smaller method saves is more than what one of them takes unpacked."""
CONTENT = checkpoint(*NUMELS)
NEEDS = {name: estimate(Footprint.of_numels(NUMELS), method) for name, method in METHODS.items()}
LOW = RESERVE + (NEEDS["fp4-dq"].total_bytes + NEEDS["nf4"].weights_bytes) // 2
"""Less than the reserve is left by a model under nf4, and a smaller form still fits."""
HIGH = 4096 * MIB
FIRST_LIMIT = (NEEDS["nf4"].total_bytes + NEEDS["nf4-dq"].total_bytes) // 2


@pytest.fixture
def small_box(box: Box) -> Box:
    """A device that serves a model whose method ``auto`` chose, and whose memory the model takes part of."""
    box.sources.files[URL] = CONTENT
    box.builder.resident_bytes = {name: needs.weights_bytes for name, needs in NEEDS.items()}
    served = box.journal.served
    box.device.taken_bytes = lambda: sum(item.current.resident_bytes for item in served().values())
    box.deploy("first", CONTENT, gate={"min_agreement": 0.97, "soak_s": 0.0})
    box.settle()
    assert method(box) == "nf4"
    return box


def method(box: Box) -> str:
    assert box.serving() is not None
    return box.journal.served()["kanji"].current.method


def watched(box: Box) -> list[str]:
    """Return the operations that the watch began, in order."""
    ids = [body["id"] for body in box.broker.bodies(TOPICS.event) if body["event"] == "budget_changed"]
    assert all(each.startswith("watch-") and len(each) == len("watch-") + 8 for each in ids)
    return ids


def events(box: Box, name: str) -> list[Any]:
    return [body for body in box.broker.bodies(TOPICS.event) if body["event"] == name]


def test_a_broken_reserve_leads_down_by_the_line_of_a_replan_and_returned_memory_up_again(small_box: Box) -> None:
    small_box.watch_for(120)
    assert watched(small_box) == []

    small_box.device.available_bytes = LOW
    small_box.watch_for(300)
    (down,) = watched(small_box)
    running = [("running", str(phase)) for phase in LINES["replan"]]
    assert small_box.states(down) == [("accepted", "queued"), *running, ("succeeded", None)]
    assert (small_box.report(down)["command"], method(small_box)) == ("replan", "fp4-dq")
    (event,) = events(small_box, "budget_changed")
    assert event["reason"].endswith("kanji could be served by fp4-dq instead of nf4")
    assert event["memory"]["available_bytes"] < RESERVE
    assert small_box.guard.alarms == ()

    small_box.device.available_bytes = HIGH
    small_box.watch_for(3600)
    _, up = watched(small_box)
    assert small_box.report(up)["state"] == "succeeded"
    assert method(small_box) == "nf4"
    small_box.watch_for(3600)
    assert len(watched(small_box)) == 2


def test_an_operation_of_the_watch_keeps_the_demands_of_the_one_before_it(small_box: Box) -> None:
    small_box.builder.gate = {**GOOD_GATE, "agreement": 0.96}
    small_box.device.available_bytes = LOW
    small_box.watch_for(120)
    (wish,) = watched(small_box)
    error = small_box.report(wish)["error"]
    assert (error["code"], method(small_box)) == ("gate_failed", "nf4")
    assert "0.97 demanded" in error["detail"]


def test_so_does_an_operator_s_replan_that_says_nothing_while_another_has_its_own(small_box: Box) -> None:
    small_box.builder.gate = {**GOOD_GATE, "agreement": 0.96}
    small_box.device.available_bytes = LOW
    small_box.send("replan", {"id": "strict", "model": "kanji"})
    small_box.send("replan", {"id": "mild", "model": "kanji", "gate": {"min_agreement": 0.9}})
    small_box.settle()
    assert small_box.report("strict")["error"]["code"] == "gate_failed"
    assert small_box.report("mild")["state"] == "succeeded"
    assert small_box.journal.served()["kanji"].current.gate == {"min_agreement": 0.9}


def test_a_wish_that_the_gate_refused_is_not_repeated_but_the_shortage_is_told(small_box: Box) -> None:
    small_box.builder.gate = {**GOOD_GATE, "agreement": 0.5}
    small_box.device.available_bytes = LOW
    small_box.watch_for(12 * 3600)
    assert len(watched(small_box)) == 1
    assert "kanji should go from nf4 to fp4-dq" in small_box.guard.alarms[0]
    (alarm,) = events(small_box, "memory_alarm")
    assert "less than the reserve of 512 MiB" in alarm["reason"]

    small_box.device.available_bytes = HIGH
    small_box.watch_for(600)
    assert small_box.guard.alarms == ()
    assert len(events(small_box, "memory_alarm_ended")) == 1
    small_box.device.available_bytes = LOW
    small_box.watch_for(120)
    assert len(watched(small_box)) == 2


def test_alarm_mode_only_tells(small_box: Box) -> None:
    small_box.send("set_config", {"id": "c-1", "config": {"watch": {"mode": "alarm"}}})
    small_box.settle()
    told = small_box.statuses
    small_box.device.available_bytes = LOW
    small_box.watch_for(3600)
    assert watched(small_box) == []
    assert len(events(small_box, "memory_alarm")) == 1
    assert small_box.statuses == told + 1, "health has to be told at once, and once"
    assert method(small_box) == "nf4"


def test_a_watch_that_is_off_says_nothing_and_asks_no_driver(small_box: Box) -> None:
    small_box.send("set_config", {"id": "c-1", "config": {"watch": {"mode": "off"}}})
    small_box.settle()
    small_box.device.available_bytes = 0
    small_box.watch_for(600)
    assert not small_box.lookout._is_wanted()
    assert (watched(small_box), events(small_box, "memory_alarm")) == ([], [])


def test_nothing_is_switched_while_somebody_s_operation_is_open(small_box: Box) -> None:
    small_box.device.available_bytes = LOW
    small_box.send("set_method", {"id": "slow", "model": "kanji", "method": "nf4-dq"})
    small_box._drain()
    for _ in range(50):
        small_box.clock.advance(5.0)
        small_box.lookout.look()
        small_box._drain()
    assert watched(small_box) == []
    small_box.settle()
    assert small_box.report("slow")["state"] == "succeeded"


@pytest.mark.parametrize("command", ["set_method", "rollback"])
def test_what_a_person_chose_is_left_as_it_is(small_box: Box, command: str) -> None:
    if command == "rollback":
        small_box.send("set_method", {"id": "away", "model": "kanji", "method": "nf4-dq"})
        small_box.settle()
        small_box.send("rollback", {"id": "fix", "model": "kanji"})
    else:
        small_box.send("set_method", {"id": "fix", "model": "kanji", "method": "nf4"})
    small_box.settle()
    assert small_box.report("fix")["state"] == "succeeded"
    assert small_box.broker.retained(TOPICS.reported)["models"]["kanji"]["chosen_by"] == "operator"

    small_box.device.available_bytes = LOW
    small_box.watch_for(3600)
    assert watched(small_box) == []
    assert "an operator chose nf4 for kanji" in small_box.guard.alarms[0]

    small_box.device.available_bytes = HIGH
    small_box.send("replan", {"id": "back", "model": "kanji"})
    small_box.settle()
    assert small_box.journal.served()["kanji"].current.chosen_by == "auto"


def test_a_smaller_configured_budget_is_followed_and_taking_it_back_too(small_box: Box) -> None:
    small_box.send("set_config", {"id": "c-1", "config": {"memory": {"budget": FIRST_LIMIT}}})
    small_box.settle()
    small_box.watch_for(120)
    assert (len(watched(small_box)), method(small_box)) == (1, "fp4-dq")
    assert "memory.budget is" in events(small_box, "budget_changed")[0]["reason"]

    small_box.send("set_config", {"id": "c-2", "config": {"memory": {"budget": None}}})
    small_box.settle()
    small_box.watch_for(3600)
    assert (len(watched(small_box)), method(small_box)) == (2, "nf4")


def test_a_device_that_keeps_restarting_its_server_is_left_in_peace(small_box: Box) -> None:
    for _ in range(3):
        small_box.server.die()
    small_box.device.available_bytes = LOW
    small_box.watch_for(300)
    assert str(small_box.keeper.mode) != "current"
    assert watched(small_box) == []


def test_a_look_that_fails_is_left_out_and_the_next_ones_count(small_box: Box) -> None:
    def broken() -> int:
        raise OSError("the driver does not answer")

    taken, small_box.device.taken_bytes = small_box.device.taken_bytes, broken
    small_box.watch_for(60)
    small_box.device.taken_bytes = taken
    small_box.device.available_bytes = LOW
    small_box.watch_for(120)
    assert len(watched(small_box)) == 1


def test_a_wish_survives_a_reboot_as_any_operation_does(small_box: Box) -> None:
    small_box.device.available_bytes = LOW
    while not small_box.journal.open_operations():
        small_box.clock.advance(5.0)
        small_box.lookout.look()
        small_box._drain()
    (operation,) = small_box.journal.open_operations()
    small_box.device.taken_bytes = lambda: NEEDS["nf4"].weights_bytes
    small_box.reboot()
    small_box.settle()
    assert small_box.report(operation.id)["state"] == "succeeded"
    assert method(small_box) == "fp4-dq"
