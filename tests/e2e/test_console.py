"""``nibbled doctor`` and ``nibbled status`` beside a real agent that runs, which neither of them disturbs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import ROOT, Agent
from tests.e2e.harness.mqtt import free_port
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "examined"


@pytest.fixture
def agent(tmp_path: Path, world: World) -> Iterator[Agent]:
    environment = {"NIBBLED_STATUS__ENABLED": "true", "NIBBLED_STATUS__PORT": str(free_port())}
    agent = Agent(DEVICE, tmp_path, world.broker.port, world.keys_dir, environment=environment)
    agent.start()
    Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset).await_online()
    agent.logged("connected")
    yield agent
    agent.close()


def run(agent: Agent, command: str) -> tuple[int, Any]:
    """Run a command of the device as a person does: the same configuration, another process."""
    arguments = [sys.executable, "-m", "agent", command, "--config", str(agent.directory / "nibbled.toml"), "--json"]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin", **agent.environment}
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_doctor_and_the_status_read_the_running_agent_and_leave_it_connected(agent: Agent) -> None:
    mark = agent.mark()
    status, told = run(agent, "doctor")
    checks = {check["name"]: check for check in told["checks"]}
    assert (checks["broker"]["state"], checks["broker rights"]["state"]) == ("ok", "ok")
    assert "came back to it" in checks["broker rights"]["detail"]
    assert f"runs as {DEVICE}" in checks["agent"]["detail"]
    assert checks["method nf4"]["state"] == "ok"
    assert status == (0 if told["ok"] else 1)

    _, shown = run(agent, "status")
    assert shown["device_id"] == DEVICE
    assert shown["connection"] == {"connected": True, "echo": True}
    assert [entry for entry in agent.log(since=mark) if entry.get("event") in ("connected", "disconnected")] == []


def test_a_killed_agent_is_missed_and_the_broker_is_tried_by_the_doctor_itself(agent: Agent) -> None:
    agent.logged("listening", timeout_s=120.0)  # from now on the server ends with its parent
    children = agent.children()
    agent.kill()
    for child in children:  # the server holds the control socket for as long as it takes to end
        assert child.has_ended(30.0)
        child.close()
    _, told = run(agent, "doctor")
    checks = {check["name"]: check for check in told["checks"]}
    assert "none runs" in checks["agent"]["detail"]
    assert (checks["broker"]["state"], checks["broker rights"]["state"]) == ("ok", "ok")
    assert "came back in" in checks["broker rights"]["detail"]
