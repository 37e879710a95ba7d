"""What a rollout concludes from a device's reports holds for a device with the real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.fleet.rollout import commands
from agent.fleet.rollout.events import Purpose
from agent.fleet.rollout.plan import Plan
from tests.fakes.box import TOPICS, deploy_body

if TYPE_CHECKING:
    from tests.fakes.box import Box

DEVICE = TOPICS.device


def plan(name: str, **fields: Any) -> Plan:
    command = {"name": name, **{key: value for key, value in fields.items() if key not in ("schema", "id")}}
    return Plan.model_validate({"schema": 1, "id": "r", "command": command, "waves": [{"name": "all", "percent": 100}]})


def carried_out(box: Box, plan: Plan) -> tuple[str, dict[str, Any]] | str:
    """Let the device do what the plan says, let a minute pass, and return what would take it back."""
    box.send(*commands.command(plan, DEVICE))
    box.settle()
    operation = box.report(commands.operation_id(plan, DEVICE, Purpose.DO))
    assert commands.state_of(operation) == "succeeded", commands.why(operation)
    box.clock.advance(60.0)
    reported = box.broker.retained(TOPICS.reported)
    assert commands.serves(plan, reported) is True
    return commands.undo(plan, DEVICE, reported, operation)


def test_what_a_rollout_brought_is_taken_back_to_what_was_served_before(serving_box: Box) -> None:
    found = carried_out(serving_box, plan("set_method", model="kanji", method="fp4-dq"))
    assert not isinstance(found, str), found
    serving_box.send(*found)
    serving_box.settle()
    assert found[0] == "rollback"
    assert (serving_box.serving() or "").endswith("-nf4")


def test_what_was_served_before_the_rollout_is_not_taken_back(serving_box: Box) -> None:
    serving_box.clock.advance(60.0)
    assert (
        carried_out(serving_box, plan("set_method", model="kanji", method="nf4")) == "kanji was served like this before"
    )


def test_a_first_release_is_taken_back_by_serving_nothing(box: Box) -> None:
    found = carried_out(box, plan("deploy", **deploy_body("any")))
    assert not isinstance(found, str), found
    box.send(*found)
    box.settle()
    assert found[0] == "undeploy"
    assert box.serving() is None
