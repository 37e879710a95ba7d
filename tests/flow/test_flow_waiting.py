"""Operations that wait: who comes next, who is replaced, whose turn has passed, and what time all may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.deployment.inbox import Started
from agent.deployment.intake import Intake
from agent.deployment.machine import Judged, Operation
from agent.deployment.phases import LINES, RULES, OnFailure, Phase
from agent.settings import Deployment, Settings
from tests.fakes.box import TOPICS, Box, deploy_body
from tests.fakes.server import DAMAGED

MANY = 50


def ended(box: Box) -> list[str]:
    return [body["id"] for body in box.broker.bodies(TOPICS.event) if body["event"] == "operation_ended"]


def hold(box: Box) -> None:
    """Keep the device busy with an operation on another model."""
    box.deploy("busy", model="busy", method="nf4")
    box.go_to("busy", Phase.BUILDING)


def test_the_highest_priority_comes_next_and_equal_ones_in_the_order_of_their_arrival(box: Box) -> None:
    hold(box)
    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0)):
        box.deploy(name, model=name, method="nf4", priority=priority)
    box.settle()
    assert ended(box) == ["busy", "b", "d", "a", "e", "c"]


def test_the_order_is_the_same_after_a_restart(box: Box) -> None:
    hold(box)
    for name, priority in (("a", 0), ("b", 5), ("c", 5)):
        box.deploy(name, model=name, method="nf4", priority=priority)
    box._drain()
    box.reboot()
    box.settle()
    assert ended(box) == ["busy", "b", "c", "a"]


def test_a_deploy_that_waits_is_superseded_by_a_newer_one_of_its_model_alone(box: Box) -> None:
    hold(box)
    box.deploy("old", method="nf4")
    box.deploy("other", model="kana", method="nf4")
    box.deploy("new", method="fp4")
    box.settle()
    report = box.report("old")
    assert (report["state"], report["error"]["code"]) == ("superseded", "superseded")
    assert "operation new" in report["error"]["detail"]
    assert [box.report(name)["state"] for name in ("other", "new")] == ["succeeded", "succeeded"]
    assert (box.serving() or "").endswith("-fp4")


def test_a_deploy_that_runs_is_not_superseded_by_a_command(box: Box) -> None:
    box.deploy("old", method="nf4")
    box.go_to("old", Phase.DOWNLOADING)
    box.deploy("new", method="fp4")
    box.settle()
    assert [box.report(name)["state"] for name in ("old", "new")] == ["succeeded", "succeeded"]


def test_an_operation_whose_turn_does_not_come_in_time_expires(box: Box) -> None:
    hold(box)
    box.deploy("late", expires_at="2026-11-23T10:41:00Z")
    box.deploy("patient", model="kana", expires_at="2026-11-23T12:00:00+01:00")
    box._drain()
    box.clock.advance(61)
    box.engine.turn(wait_s=0)
    assert (box.report("late")["state"], box.report("late")["error"]["code"]) == ("expired", "expired")
    assert "2026-11-23T10:41:00.000Z" in box.report("late")["error"]["detail"]
    box.settle()
    assert box.report("patient")["state"] == "succeeded"
    assert box.report("busy")["state"] == "succeeded"


def test_of_several_whose_time_is_over_each_expires_once(serving_box: Box) -> None:
    """The end of the first lets a repair begin, and with it everything that is over is looked at in between."""
    box = serving_box
    hold(box)
    over: dict[str, Any] = {"expires_at": "2026-11-23T10:41:00Z"}
    box.send("set_method", {"id": "late", "model": "kanji", "method": "int8", **over})
    box.deploy("later", model="kana", **over)
    Path(box.journal.served()["kanji"].current.artifact).write_bytes(DAMAGED)
    box._drain()
    box.reboot()
    box.runner.pump()  # the server cannot load kanji, whose repair waits for what is about to replace it
    box.clock.advance(3600)
    box.settle()
    assert [each for each in ended(box) if each.startswith("late")] == ["late", "later"]
    assert len([each for each in ended(box) if each.startswith("repair-")]) == 1


def test_what_waits_for_the_clock_ends_once_though_its_time_runs_out_meanwhile(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, reconsider = serving_box, Intake.reconsider

    def slowly(intake: Intake, operation: Operation) -> Judged | None:
        if box.clock.synchronised:
            box.clock.advance(3600)
        return reconsider(intake, operation)

    monkeypatch.setattr(Intake, "reconsider", slowly)
    box.clock.synchronised = False
    for name, end in (("patient", "2999-01-01T00:00:00Z"), ("late", "2026-11-23T10:41:00Z")):
        box.send("set_method", {"id": name, "model": "kanji", "method": "int8", "expires_at": end})
    box._drain()
    assert [box.report(name)["state"] for name in ("patient", "late")] == ["accepted", "accepted"]
    box.clock.synchronised = True
    box.settle()
    box.engine.turn(wait_s=0)
    box.settle()
    assert ended(box).count("late") == 1
    assert box.report("late")["state"] == "expired"


def test_what_begins_while_others_are_superseded_goes_on(box: Box) -> None:
    """A repair that is begun when the first of them ends lets the next one begin."""
    box.deploy("before", model="kana", method="nf4")
    box.settle()
    Path(box.journal.served()["kana"].current.artifact).write_bytes(DAMAGED)
    how: dict[str, dict[str, Any]] = {"old": {"method": "nf4"}, "urgent": {"method": "fp4", "priority": 5}}
    for body in (deploy_body(name, **how.get(name, {"method": "int8"})) for name in ("old", "urgent", "new")):
        box.journal.save(Operation(body["id"], "deploy", "kanji", body["id"], {"schema": 1, **body}), [])
    box._start()
    box.engine._operations.take_up()
    box.keeper.restore("boot")
    box.runner.pump()  # the server is known before the waiting operations are looked at
    box.engine.handle(Started())
    box.connect()
    box.settle()
    assert [box.report(name)["state"] for name in ("old", "urgent", "new")] == ["superseded", "succeeded", "succeeded"]


def test_what_has_begun_does_not_expire(box: Box) -> None:
    box.deploy("d-1", expires_at="2026-11-23T10:41:00Z")
    box.go_to("d-1", Phase.BUILDING)
    box.clock.advance(600)
    box.settle()
    assert box.report("d-1")["state"] == "succeeded"


def test_nothing_expires_by_a_clock_that_cannot_be_trusted(box: Box) -> None:
    hold(box)
    box.deploy("late", expires_at="2026-11-23T10:41:00Z")
    box._drain()
    box.clock.synchronised = False
    box.clock.advance(1e4)
    box.clock.seconds -= 1e4  # only the wall clock jumps; timers would end the phase
    box.settle()
    assert box.report("late")["state"] == "succeeded"


@pytest.mark.parametrize("phase", [phase for phase in LINES["deploy"] if phase is not Phase.DOWNLOADING])
def test_an_operation_has_one_time_for_all_its_phases_together(box: Box, phase: Phase) -> None:
    box.deploy("before", method="fp4")
    box.settle()
    served = box.serving()
    box.settings = Settings(deployment=Deployment(soak_s=0.0, total_s=100))
    box.reboot()
    box.deploy("slow", method="nf4")
    box.go_to("slow", Phase.DOWNLOADING)
    box.clock.advance(60)
    box.go_to("slow", phase)
    box.clock.advance(50)
    box.engine.turn(wait_s=0)
    box.settle()
    report = box.report("slow")
    assert (report["state"], report["error"]["code"]) == ("timed_out", "timed_out")
    assert "it took 110 s" in report["error"]["detail"]
    assert "100 s are allowed" in report["error"]["detail"]
    assert (("running", "rolling_back") in box.states("slow")) == (RULES[phase].on_failure is OnFailure.ROLL_BACK)
    assert box.serving() == served


def test_time_in_the_queue_is_not_counted(box: Box) -> None:
    box.settings = Settings(deployment=Deployment(soak_s=0.0, total_s=100))
    box.reboot()
    box.deploy("one", model="kana", method="nf4")
    box.go_to("one", Phase.BUILDING)
    box.deploy("two", method="nf4")
    box.clock.advance(90)
    box.settle()
    assert [box.report(name)["state"] for name in ("one", "two")] == ["succeeded", "succeeded"]


def test_a_repeated_command_is_answered_where_each_copy_wants_it(box: Box) -> None:
    for topic, correlation in (("answers/a", b"1"), ("answers/b", b"2")):
        box.deploy("d-1", response_topic="answers/body", correlation_id="0")
        box.settle()
        before = len(box.broker.bodies("answers/body"))
        body = deploy_body("d-1", response_topic="answers/body", correlation_id="0")
        box.send("deploy", body, response_topic=topic, correlation=correlation)
        box.settle()
        (copy,) = [report for report in box.broker.log if report.topic == topic]
        assert copy.correlation == correlation
        assert box.broker.bodies(topic)[0]["state"] == "succeeded"
        assert len(box.broker.bodies("answers/body")) == before + 1


@pytest.mark.parametrize("how", ["properties", "body"])
@pytest.mark.parametrize("body", [{"id": "d-1", "model": "a/b"}, {"id": "not an id", "model": "kanji"}])
def test_a_refusal_goes_where_the_answer_was_asked_for(box: Box, body: dict[str, Any], how: str) -> None:
    if how == "body":
        box.send("deploy", {**body, "response_topic": "answers/me", "correlation_id": "7"})
    else:
        box.send("deploy", body, response_topic="answers/me", correlation=b"7")
    box.settle()
    (answer,) = [report for report in box.broker.log if report.topic == "answers/me"]
    assert answer.correlation == b"7"
    assert box.broker.bodies("answers/me")[0]["error"]["code"] == "bad_request"


def test_a_response_topic_that_nobody_can_publish_to_is_not_used(box: Box) -> None:
    box.send("deploy", {"id": "d-1", "model": "kanji", "response_topic": "a/#"})
    box.settle()
    assert {report.topic for report in box.broker.log} <= {TOPICS.event, TOPICS.operation("d-1")}


def test_several_models_live_side_by_side_and_one_that_fails_leaves_the_others_alone(box: Box) -> None:
    for name, method in (("a", "nf4"), ("b", "fp4"), ("c", "int8")):
        box.deploy(f"d-{name}", model=name, method=method)
    box.settle()
    box.server.fail("canary")
    box.send("set_method", {"id": "s-1", "model": "b", "method": "nf4"})
    box.send("undeploy", {"id": "u-1", "model": "c"})
    box.settle()
    assert box.report("s-1")["state"] == "rolled_back"
    served = {name: item.current.method for name, item in box.journal.served().items()}
    assert served == {"a": "nf4", "b": "fp4"}
    assert box.server.answers() == {name: item.current.id for name, item in box.journal.served().items()}


def test_two_hundred_operations_in_one_life_leave_nothing_behind(tmp_path: Path) -> None:
    # In a process of its own: what other tests set up (handlers that keep what is logged) grows along.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.lifetime", str(tmp_path)], capture_output=True, text=True, check=True
    )
    left = json.loads(done.stdout)
    # What an operation leaves behind is there in both hundreds. The interpreter's own tables, that of interned names
    # above all, grow by leaps: those are in one of them. A record alone has several thousand bytes.
    assert min(left["grown_bytes"]) < 100_000, left
    assert left["descriptors"] == left["descriptors_before"]
    assert (left["open"], left["watches"]) == (0, 0)
    assert left["artifacts"] <= 2, "of the current release and of the previous one"
    assert left["finished"] == 250


def test_an_operation_goes_on_while_commands_without_end_come_in(serving_box: Box) -> None:
    box, turns = serving_box, 0
    box.send("set_method", {"id": "op", "model": "kanji", "method": "fp4-dq"})
    box.go_to("op", Phase.BUILDING)
    while box.report("op")["state"] == "running":
        for number in range(3):
            box.send("status", {"id": f"asked-{turns}-{number}"})
        box.runner.pump()
        box.engine.turn(wait_s=0)
        turns += 1
        assert turns < MANY
    assert box.report("op")["state"] == "succeeded"
