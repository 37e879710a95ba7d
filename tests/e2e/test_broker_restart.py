"""The broker stops, forgets everything and starts again: the device says by itself what a fleet has to know."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "forgotten"


@pytest.fixture
def broker(world: World, tmp_path: Path) -> Iterator[Broker]:  # noqa: ARG001 - the world has looked for the tools
    broker = Broker(tmp_path)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def test_a_broker_that_lost_its_database_is_told_everything_again(broker: Broker, world: World, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        agent = Agent(DEVICE, tmp_path, broker.port, world.keys_dir)
        stack.callback(agent.close)
        agent.start()
        before = _listen(stack, broker)
        epoch = before.wait(_topic("presence"))["epoch"]
        before.wait(_topic("capabilities"), lambda body: body["methods"] != {})

        broker.stop()
        broker.wipe()
        broker.start()
        agent.logged("disconnected")
        after = _listen(stack, broker)

        # An earlier birth that the broker had not acknowledged may come first: the library sends it again.
        assert after.wait(_topic("presence"), lambda body: body["epoch"] > epoch)["state"] == "online"
        assert after.wait(_topic("capabilities"))["methods"]["nf4"]["ok"]
        assert after.wait(_topic("reported"))["models"] == {}
        operator = Operator(DEVICE, broker.port, after, world.signer, world.dataset)
        assert operator.result(operator.send("status"))["state"] == "succeeded"
        retained = _listen(stack, broker)
        for name in ("presence", "capabilities", "reported"):
            assert retained.wait_message(_topic(name)).is_retained


def _topic(name: str) -> str:
    return f"edge/v1/{DEVICE}/{name}"


def _listen(stack: contextlib.ExitStack, broker: Broker) -> Subscriber:
    subscriber = Subscriber(broker.port)
    stack.callback(subscriber.close)
    return subscriber
