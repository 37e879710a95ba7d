"""Clocks that are wrong and that jump: nothing but dates depends on wall time, and dates wait for a clock that is set.

The supervisor's clock is moved while it runs, see `tests.e2e.harness.clocked_agent`.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.clocked_agent import MODULE, Clock
from tests.e2e.harness.device import Agent
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

YEAR_S = 31_557_600


@pytest.fixture
def device() -> str:
    return f"clockless-{uuid.uuid4().hex[:8]}"  # the broker remembers what was said of a device before


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def operator(world: World, device: str) -> Operator:
    return Operator(device, world.broker.port, world.subscriber, world.signer, world.dataset)


@pytest.fixture
def agent(world: World, device: str, tmp_path: Path, clock: Clock) -> Iterator[Agent]:
    agent = Agent(device, tmp_path, world.broker.port, world.keys_dir, MODULE, environment=clock.environment)
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


def test_a_manifest_is_over_when_a_clock_that_is_set_says_so_and_good_before(
    world: World, operator: Operator, agent: Agent, clock: Clock
) -> None:
    now = datetime.now(timezone.utc)
    end, late = now + timedelta(hours=1), now + timedelta(hours=2)
    manifest = operator.manifest(world.checkpoint, expires=rfc3339(end))
    clock.move_to(late)
    clock.discipline(is_set=True)
    agent.start()
    operator.await_online()

    ended = operator.result(operator.deploy(manifest, method="nf4"))
    error = ended["error"]
    assert (ended["state"], error["code"], error["retryable"]) == ("expired", "expired", False)
    told = re.fullmatch(r"the manifest expired at (\S+), the clock here says (\S+)", error["detail"])
    assert told is not None, error["detail"]
    ends, says = (datetime.fromisoformat(each.replace("Z", "+00:00")) for each in told.groups())
    assert ends == end.replace(microsecond=0)
    assert timedelta() <= says - late < timedelta(minutes=30)
    assert error["hint"] == "sign a fresh one with a later --expires, or set the clock if it is wrong"
    assert operator.subscriber.on(operator.topic("reported"))[-1]["models"] == {}

    clock.move_to(now)
    assert operator.result(operator.deploy(manifest, method="nf4"))["state"] == "succeeded"
