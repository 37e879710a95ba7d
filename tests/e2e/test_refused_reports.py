"""A broker that lets a device in and does not take all of its reports: people hear of it, and nothing goes round."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "refused"


def test_a_report_that_the_broker_refuses_is_an_alarm_in_health_and_on_the_trail(world: World, tmp_path: Path) -> None:
    rights = tmp_path / "acl"
    rights.write_text(f"topic readwrite #\ntopic deny edge/v1/{DEVICE}/reported\n")
    broker = Broker(tmp_path, f"acl_file {rights}\n")
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        broker.start()
        subscriber = Subscriber(broker.port)
        stack.callback(subscriber.close)
        agent = Agent(DEVICE, tmp_path, broker.port, world.keys_dir)
        stack.callback(agent.close)
        agent.start()
        operator = Operator(DEVICE, broker.port, subscriber, world.signer, world.dataset)
        refused = "the last as Not authorized: let the device write its own topics"
        told = subscriber.wait(operator.topic("health"), lambda body: any(refused in each for each in body["reasons"]))
        assert told["status"] == "degraded"
        assert refused in operator.event(lambda body: body["event"] == "alarm")["reason"]
        assert operator.result(operator.send("status"))["state"] == "succeeded"
        assert len([entry for entry in agent.log() if entry.get("event") == "publish_refused"]) < 10
