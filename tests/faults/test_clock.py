"""Clocks that are wrong and that jump: nothing but dates depends on wall time, and dates wait for a clock that is set.

The supervisor's clock is moved while it runs, see `tests.faults.clocked_agent`.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.operator import Operator
from tests.faults.clocked_agent import DIRECTORY, IS_SET, OFFSET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "clockless"
YEAR_S = 31_557_600


class Clock:
    """The wall clock of one device, and what its kernel says of it."""

    def __init__(self, directory: Path) -> None:
        self._offset, self._is_set = directory / OFFSET, directory / IS_SET
        self.environment = {DIRECTORY: str(directory)}

    def move_to(self, moment: datetime) -> None:
        """Let it say ``moment`` now and go on from there."""
        self.move_by((moment - datetime.now(timezone.utc)).total_seconds())

    def move_by(self, seconds: float) -> None:
        """Let it be wrong by so much."""
        draft = self._offset.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self._offset)

    def discipline(self, *, is_set: bool) -> None:
        """Let the kernel say whether it is set."""
        if is_set:
            self._is_set.touch()
        else:
            self._is_set.unlink(missing_ok=True)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def operator(world: World) -> Operator:
    return Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset)


@pytest.fixture
def agent(world: World, tmp_path: Path, clock: Clock) -> Iterator[Agent]:
    module = "tests.faults.clocked_agent"
    agent = Agent(DEVICE, tmp_path, world.broker.port, world.keys_dir, module, environment=clock.environment)
    with contextlib.closing(agent):
        yield agent


def rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def test_dates_wait_for_a_clock_that_is_set_and_jumps_of_years_stop_nothing(
    world: World, operator: Operator, agent: Agent, clock: Clock
) -> None:
    now = datetime.now(timezone.utc)
    dates = {"not_before": rfc3339(now - timedelta(days=1)), "expires": rfc3339(now + timedelta(days=1))}
    clock.move_to(datetime(1970, 1, 1, 0, 1, tzinfo=timezone.utc))
    clock.discipline(is_set=True)  # whatever the kernel says, 1970 is not now
    mark = operator.mark()
    agent.start()
    presence = world.subscriber.wait(operator.topic("presence"), lambda body: body["state"] == "online", since=mark)
    assert presence["at"].startswith("1970")

    waiting = operator.deploy(operator.manifest(world.checkpoint, **dates), method="nf4")
    told = world.subscriber.wait(operator.topic("event"), lambda body: body.get("id") == waiting, since=mark)
    undated = operator.send("status")
    assert operator.result(undated)["state"] == "succeeded"
    health = world.subscriber.wait(operator.topic("health"), since=mark)
    assert health["clock_synchronised"] is False
    assert told["event"] == "command_accepted"
    deferred = world.subscriber.on(operator.topic(f"op/{waiting}"), since=mark)[-1]
    assert (deferred["state"], "deferred" in str(deferred)) == ("accepted", True)

    clock.move_to(now)  # NTP answers at last
    operator.reaches(waiting, "downloading")
    assert operator.result(waiting)["state"] == "succeeded"

    switch = operator.send("set_method", model="kanji", method="nf4-dq", gate={"soak_s": 4})
    for phase, years in (("building", 9), ("loading", -30), ("trial", 40)):
        operator.reaches(switch, phase)
        clock.move_by(years * YEAR_S)
    ended = operator.result(switch)
    assert ended["state"] == "succeeded", ended
    served = operator.served()
    assert served["method"] == "nf4-dq"
    assert agent.is_running
    assert [entry for entry in agent.log() if entry.get("level") in ("error", "critical")] == []
