"""The same device on MQTT 3.1.1: commands, answers in the body's topic, the wanted state, presence."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.mqtt import publish
from tests.e2e.harness.operator import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def device(start_device: StartDevice) -> Iterator[Device]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIBBLED_MQTT__PROTOCOL", "3.1.1")
        patch.setenv("NIBBLED_MQTT__GROUPS", '["one", "two", "three"]')
        yield start_device("old", module="tests.e2e.harness.synchronised_agent")


def test_a_deploy_runs_through_and_answers_where_the_body_says(device: Device, world: World) -> None:
    operator = device.operator
    reply: dict[str, Any] = {"response_topic": "answers/old", "correlation_id": "42"}
    operation = operator.deploy(operator.manifest(world.checkpoint), method="nf4", **reply)
    assert operator.result(operation)["state"] == "succeeded"
    answer = operator.subscriber.wait("answers/old", lambda body: body["state"] == "succeeded")
    assert answer["id"] == operation
    again = operator.mark()
    operator.send("set_method", id="s-1", model=MODEL, method="fp4", **reply)
    operator.subscriber.wait(
        "answers/old", lambda body: body["id"] == "s-1" and body["state"] == "succeeded", since=again
    )


def test_a_group_s_document_reaches_the_last_of_more_groups_than_one_subscription_takes(
    device: Device, world: World
) -> None:
    operator = device.operator
    mark = operator.mark()
    entry = {
        "manifest": world.signer.seal(operator.manifest(world.checkpoint)),
        "method": "nf4",
        "gate": {"dataset": world.dataset.reference()},
    }
    body = {"schema": 1, "generation": 1, "models": {MODEL: entry}}
    publish(world.broker.port, "edge/v1/_group/three/desired", json.dumps(body), is_retained=True)
    event = operator.event(lambda body: body["event"] == "desired_reached", since=mark)
    assert event["generations"] == {"three": 1}
    assert operator.served()["method"] == "nf4"


def test_a_command_left_retained_runs_once_at_most_however_often_it_is_replayed(device: Device) -> None:
    """3.1.1 delivers it to a session without the flag; the replay at the next subscription carries it."""
    operator = device.operator
    operation = operator.send("set_method", is_retained=True, model=MODEL, method="int8")
    assert operator.result(operation)["state"] == "succeeded"
    since = operator.served()["since"]
    for _ in range(2):
        mark = operator.mark()
        device.agent.terminate()
        device.agent.start()
        told = operator.event(lambda body: body["event"] == "command_rejected", since=mark)
        assert told["error"]["code"] == "retained_command"
        assert operator.served()["since"] == since
    operator.clear("set_method")


def test_states_of_operations_that_ended_long_ago_are_cleared(device: Device) -> None:
    """A broker of MQTT 3.1.1 keeps them for ever; the time of an end is set back in the journal for it."""
    operator = device.operator
    old, young = (operator.send("undeploy", model="none-such") for _ in range(2))
    for operation in (old, young):
        assert operator.result(operation)["state"] == "rejected"
    device.agent.terminate()
    with contextlib.closing(sqlite3.connect(device.agent.directory / "state" / "journal.db")) as db, db:
        (record,) = db.execute("SELECT record FROM operation WHERE id = ?", (old,)).fetchone()
        body = json.loads(record)
        body["facts"]["ended_at"] = "2026-01-01T00:00:00.000Z"
        db.execute("UPDATE operation SET record = ? WHERE id = ?", (json.dumps(body), old))
    mark = operator.mark()
    device.agent.start()
    device.agent.logged("states_cleared")
    assert operator.result(operator.send("status"))["state"] == "succeeded"
    cleared = [message.topic for message in operator.subscriber.all(since=mark) if not message.text]
    assert cleared == [operator.topic(f"op/{old}")]
    again = operator.mark()
    operator.send("undeploy", id=old, model="none-such")
    assert operator.result(old, since=again)["error"]["code"] == "unknown_model", "the id is still known"
