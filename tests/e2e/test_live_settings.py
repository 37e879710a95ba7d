"""Settings changed over MQTT on a running device, and what the watch of the memory makes of a smaller budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.operator import MODEL, JsonObject, Operator

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

HASTY = {"interval_s": 0.2, "down_after_s": 0.5, "up_after_s": 0.5, "min_dwell_s": 0}


@pytest.fixture(scope="module")
def device(start_device: StartDevice, world: World) -> Device:
    """A device that serves a model by the method that it chose itself."""
    device = start_device("live")
    manifest = device.operator.manifest(world.checkpoint, version="v1")
    assert device.operator.result(device.operator.deploy(manifest, method="auto"))["state"] == "succeeded"
    return device


def set_config(operator: Operator, config: JsonObject) -> JsonObject:
    return operator.result(operator.send("set_config", config=config))


def reported_config(operator: Operator) -> JsonObject:
    mark = operator.mark()
    operator.send("status")
    config: JsonObject = operator.subscriber.wait(operator.topic("reported"), since=mark)["config"]
    return config


def needs(operator: Operator) -> dict[str, int]:
    """Return what the device expects each method to take, from the record of a ``replan`` that changes nothing."""
    decision = operator.result(operator.send("replan", model=MODEL))["decision"]
    return {candidate["method"]: candidate["estimated_bytes"] for candidate in decision["candidates"]}


def watched(operator: Operator, since: int) -> JsonObject:
    """Wait for the end of the operation that the watch begins, and return it."""
    event = operator.event(lambda body: body["event"] == "budget_changed", since=since)
    assert event["id"].startswith("watch-")
    return operator.result(event["id"], since=since)


def test_a_wrong_setting_is_refused_and_a_right_one_is_in_force_and_reported(device: Device) -> None:
    operator = device.operator
    refused = set_config(operator, {"memory": {"reserve": "a lot"}})
    assert (refused["state"], refused["error"]["code"]) == ("rejected", "bad_request")
    assert "memory.reserve" in refused["error"]["detail"]

    changed = set_config(operator, {"health": {"interval_s": 3}})
    assert changed["state"] == "succeeded"
    assert changed["decision"]["config"] == {"health.interval_s": {"old": 1.0, "new": 3.0}}
    assert reported_config(operator) == {"health": {"interval_s": 3.0}}


def test_a_smaller_budget_makes_the_device_plan_again_and_a_larger_one_too(device: Device) -> None:
    operator = device.operator
    assert set_config(operator, {"watch": HASTY})["state"] == "succeeded"
    expected, mark = needs(operator), operator.mark()
    limit = (expected["nf4"] + expected["nf4-dq"]) // 2
    assert operator.served()["method"] == "nf4"
    assert set_config(operator, {"memory": {"budget": limit}})["state"] == "succeeded"
    down = watched(operator, mark)
    assert (down["state"], down["command"]) == ("succeeded", "replan"), down["error"]
    assert operator.served()["method"] in ("nf4-dq", "fp4-dq")
    assert operator.served()["chosen_by"] == "auto"

    mark = operator.mark()
    assert set_config(operator, {"memory": {"budget": None}})["state"] == "succeeded"
    up = watched(operator, mark)
    assert up["state"] == "succeeded", up["error"]
    assert operator.served()["method"] == "nf4"


def test_health_of_a_restarted_device_is_never_without_a_reason_and_waits_for_no_interval(device: Device) -> None:
    operator = device.operator
    assert set_config(operator, {"health": {"interval_s": 3600}})["state"] == "succeeded"
    assert device.agent.terminate() == 0
    mark = operator.mark()
    device.agent.start()
    topic = operator.topic("health")
    well = operator.subscriber.wait(topic, lambda body: MODEL in body["models"], since=mark)
    assert well["status"] != "failing"
    told = operator.subscriber.on(topic, since=mark)
    assert [body for body in told if body["status"] == "failing" and not body["reasons"]] == []
    assert set_config(operator, {"health": {"interval_s": 3}})["state"] == "succeeded"


def test_what_was_changed_outlives_the_agent_until_it_is_taken_back(device: Device) -> None:
    operator, before = device.operator, reported_config(device.operator)
    assert before["health"] == {"interval_s": 3.0}
    mark = operator.mark()
    assert device.agent.terminate() == 0
    (last,) = [entry for entry in device.agent.log() if entry.get("event") == "disconnected"]
    assert (last["level"], last.get("next_try_in_s")) == ("info", None), "an agent that stops announces no next try"
    device.agent.start()
    operator.subscriber.wait(operator.topic("presence"), lambda body: body["state"] == "online", since=mark)
    assert reported_config(operator) == before

    taken_back = {section: dict.fromkeys(keys) for section, keys in before.items()}
    assert set_config(operator, taken_back)["state"] == "succeeded"
    assert reported_config(operator) == {}
