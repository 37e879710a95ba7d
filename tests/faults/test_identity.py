"""Two devices with one id: neither storms the broker, both say it, and no command runs twice on one of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "twin"
FIRST_S = (0.5, 2.5, 5.0)
"""What each wait is at least, and half of what it is at most: the first time a device cannot know why it was ended."""


def takeovers(agent: Agent, count: int) -> list[float]:
    """Wait until the device was thrown out ``count`` times; return the waits in seconds that followed."""
    mark = 0
    waits: list[float] = []
    while len(waits) < count:
        entry = agent.logged("disconnected", since=mark, timeout_s=60.0)
        mark = agent.log().index(entry, mark) + 1
        waits.append(entry["next_try_in_s"])
    return waits


def test_two_devices_with_one_id_wait_longer_every_time_and_say_so(world: World, tmp_path: Path) -> None:
    operator = Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset)
    with contextlib.ExitStack() as stack:
        twins = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            agent = Agent(DEVICE, tmp_path / name, world.broker.port, world.keys_dir)
            stack.callback(agent.close)
            agent.start()
            twins.append(agent)
            operator.await_online()
        mark = operator.mark()
        commands = [operator.send("status") for _ in range(5)]
        told = world.subscriber.wait(
            operator.topic("health"), lambda body: any("second device" in each for each in body["reasons"]), since=mark
        )
        commands += [operator.send("status") for _ in range(5)]
        waits = takeovers(twins[0], 3)
        for each in commands:
            operator.result(each)

        assert all(least <= wait <= 2 * least for wait, least in zip(waits, FIRST_S, strict=True))
        assert told["status"] == "degraded"
        ran = [[entry["id"] for entry in twin.log() if entry.get("event") == "command"] for twin in twins]
        assert all(len(ids) == len(set(ids)) for ids in ran)
        assert set(commands) == {each for ids in ran for each in ids}
