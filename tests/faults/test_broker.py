"""The broker is killed, or comes back without a memory: what was done meanwhile is told, and nothing is lost."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.operator import MODEL, RUNNING, Operator
from tests.faults.harness_network import logged_end

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "steady"
END_S = 120.0


def test_what_was_done_while_the_broker_was_dead_is_told_once_it_lives(world: World, tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        broker.start()
        operator = operator_on(stack, broker, world)
        agent = Agent(DEVICE, tmp_path, broker.port, world.keys_dir)
        stack.callback(agent.close)
        agent.start()
        operator.await_online()
        broker.save()

        slow = world.files.host("slowly.pt", world.checkpoint.content)
        slow.bytes_per_s = len(slow.content) // 2
        deploy = operator.deploy(operator.manifest(slow, version="one"), method="nf4")
        operator.reaches(deploy, "downloading")
        broker.kill()
        assert logged_end(agent, deploy, END_S)["state"] == "succeeded"
        broker.start()
        operator = operator_on(stack, broker, world)
        told_whole(operator, deploy, version="one", method="nf4")

        switch = operator.send("set_method", id="switch", model=MODEL, method="nf4-dq", gate={"soak_s": 2})
        operator.reaches(switch, "trial")
        broker.stop()
        broker.wipe()
        assert logged_end(agent, switch, END_S)["state"] == "succeeded"
        broker.start()
        operator = operator_on(stack, broker, world)
        told_whole(operator, switch, version="one", method="nf4-dq")
        operator.subscriber.wait(operator.topic("capabilities"), lambda body: body["methods"]["nf4"]["ok"])
        retained = operator_on(stack, broker, world).subscriber
        for name in ("presence", "reported", "capabilities", f"op/{switch}"):
            assert retained.wait_message(operator.topic(name)).is_retained
        assert agent.is_running


def operator_on(stack: contextlib.ExitStack, broker: Broker, world: World) -> Operator:
    """Return an operator who hears what this life of the broker says."""
    subscriber = Subscriber(broker.port)
    stack.callback(subscriber.close)
    return Operator(DEVICE, broker.port, subscriber, world.signer, world.dataset)


def told_whole(operator: Operator, operation: str, **served: Any) -> None:
    """Demand an operation's one end, the line of the audit trail on it, what is served, and a device that is there."""
    states = {body["state"] for body in operator.history(operation)}
    assert states - RUNNING == {"succeeded"}
    operator.event(lambda body: (body["event"], body.get("id")) == ("operation_ended", operation))
    operator.subscriber.wait(operator.topic("presence"), lambda body: body["state"] == "online")
    operator.subscriber.wait(
        operator.topic("reported"), lambda body: served.items() <= body["models"].get(MODEL, {}).items()
    )
