"""Commands that waited for a device: what the broker kept is taken in order, each answered once, in little memory.

What is beyond the broker's limit is lost where it waits, the newest first; the operator's PUBACK says nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import HOST, Broker, Subscriber
from tests.e2e.harness.operator import Operator
from tests.e2e.harness.processes import resident_bytes
from tests.e2e.harness.tools import require
from tests.faults.harness_network import READY_S, minutes

if TYPE_CHECKING:
    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DEVICE = "offline"
MOST_GROWTH_BYTES = 12 << 20
"""1,500 commands took 7 MiB; when all of them waited in memory they took 17 to 22."""
SHIPPED = Path(__file__).parents[2] / "deploy" / "mosquitto" / "mosquitto.conf"


def publish_all(port: int, topic: str, bodies: list[str]) -> None:
    """Publish every body with QoS 1 over one connection, in order."""
    command = [require("mosquitto_pub"), "-h", HOST, "-p", str(port), "-t", topic, "-q", "1", "-l"]
    subprocess.run(command, input="\n".join(bodies) + "\n", text=True, check=True, timeout=60)


def shipped_limits() -> str:
    """Return the lines of the broker's shipped configuration that limit what waits."""
    return "".join(f"{line}\n" for line in SHIPPED.read_text().splitlines() if line.startswith("max_queued"))


@pytest.mark.parametrize(
    ("settings", "sent", "kept"),
    [
        pytest.param("max_queued_messages 150\n", 200, 150, id="a broker that keeps 150"),
        pytest.param("", 1500, 1000, id="a broker as Debian sets it", marks=minutes),
        pytest.param(shipped_limits(), 1500, 1500, id="a broker as shipped", marks=minutes),
    ],
)
def test_commands_that_waited_are_answered_in_order_and_once(
    world: World, tmp_path: Path, settings: str, sent: int, kept: int
) -> None:
    broker = Broker(tmp_path, settings)
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        broker.start()
        subscriber = Subscriber(broker.port)
        stack.callback(subscriber.close)
        operator = Operator(DEVICE, broker.port, subscriber, world.signer, world.dataset)
        agent = Agent(DEVICE, tmp_path, broker.port, world.keys_dir)
        stack.callback(agent.close)
        agent.start()
        subscriber.wait(operator.topic("capabilities"), lambda body: bool(body["methods"]), timeout_s=READY_S)
        before = resident_bytes(agent.pid)
        agent.terminate()
        bodies = [json.dumps({"schema": 1, "id": f"q-{number}", "operation": "none"}) for number in range(sent)]
        publish_all(broker.port, operator.topic("cmd/cancel"), bodies)

        mark = operator.mark()
        agent.start()
        subscriber.wait(
            operator.topic("capabilities"), lambda body: bool(body["methods"]), since=mark, timeout_s=READY_S
        )
        subscriber.wait(operator.topic(f"op/q-{kept - 1}"), since=mark, timeout_s=300)
        operator.result(operator.send("status", id="last"))

        root = operator.topic("op/q-")
        told = [message.topic.removeprefix(root) for message in subscriber.all() if message.topic.startswith(root)]
        assert told == [str(number) for number in range(kept)]
        grown = resident_bytes(agent.pid) - before
        assert grown < MOST_GROWTH_BYTES, f"from {before >> 20} MiB by {grown >> 20} MiB"
