"""The wanted state on a real broker: retained, kept through a restart, superseding what went before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.mqtt import publish
from tests.e2e.harness.operator import MODEL, JsonObject, Operator

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def device(start_device: StartDevice) -> Device:
    return start_device("wanted")


def want(world: World, operator: Operator, generation: int, methods: dict[str, str], **fields: Any) -> int:
    """Publish a generation that wants the model by these methods, one name each; return a mark before it."""
    mark = operator.mark()
    models = {
        name: {
            "manifest": world.signer.seal(operator.manifest(world.checkpoint, model=name)),
            "method": method,
            "gate": {"dataset": world.dataset.reference()},
        }
        for name, method in methods.items()
    }
    body: JsonObject = {"schema": 1, "generation": generation, "models": models, **fields}
    publish(world.broker.port, operator.topic("desired"), json.dumps(body), is_retained=True)
    return mark


def reached(operator: Operator, generation: int, since: int) -> JsonObject:
    return operator.subscriber.wait(
        operator.topic("reported"), lambda body: body["generation"] == generation, since=since, timeout_s=150
    )


def test_a_retained_generation_is_served_and_the_next_one_takes_its_place(device: Device, world: World) -> None:
    operator = device.operator
    want(world, operator, 1, {MODEL: "fp4"})
    mark = want(world, operator, 2, {MODEL: "nf4", "second": "nf4"}, config={"health": {"interval_s": 2}})
    told = reached(operator, 2, mark)
    assert {name: model["method"] for name, model in told["models"].items()} == {MODEL: "nf4", "second": "nf4"}
    assert told["desired"]["missing"] == {}
    assert told["config"] == {"health": {"interval_s": 2.0}}
    assert operator.result(f"gen1-{MODEL}")["state"] == "superseded"
    assert operator.history(f"gen2-{MODEL}")[-1]["state"] == "succeeded"


def test_an_older_generation_is_ignored_and_an_absent_model_goes(device: Device, world: World) -> None:
    operator = device.operator
    mark = want(world, operator, 1, {})
    event = operator.event(lambda body: body["event"] == "desired_rejected", since=mark)
    assert event["error"]["code"] == "stale_generation"
    mark = want(world, operator, 3, {MODEL: "nf4"})
    told = reached(operator, 3, mark)
    assert set(told["models"]) == {MODEL}
    assert operator.result("gen3-second")["command"] == "undeploy"


def test_what_was_wanted_while_the_device_was_away_is_served_after_its_return(device: Device, world: World) -> None:
    operator = device.operator
    device.agent.kill()
    mark = want(world, operator, 4, {MODEL: "fp4"})
    device.agent.start()
    told = reached(operator, 4, mark)
    assert told["models"][MODEL]["method"] == "fp4"
