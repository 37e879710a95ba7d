"""Ctrl-C on a terminal: the kernel tells every process of the foreground, and only the supervisor is to act on it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import START_S, Agent
from tests.e2e.harness.operator import MODEL, RUNNING, Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "terminal"


class Foreground(subprocess.Popen[str]):
    """A process with a group of its own, as a shell starts it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, start_new_session=True)


@pytest.fixture
def agent(world: World, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(DEVICE, tmp_path, world.broker.port, world.keys_dir, popen=Foreground)
    agent.start()
    yield agent
    agent.close()


def test_a_build_goes_on_at_the_next_start_and_the_server_drains(agent: Agent, world: World) -> None:
    operator = Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset)
    operator.await_online()
    operation = operator.deploy(operator.manifest(world.checkpoint, version="v1"), method="nf4")
    operator.reaches(operation, "building", with_progress=True)
    mark = operator.mark()
    os.killpg(agent.pid, signal.SIGINT)
    assert agent.has_ended(START_S)
    events = [entry.get("event") for entry in agent.log()]
    assert "draining" in events
    assert "drain_cut_short" not in events
    assert [body["state"] for body in _reports(operator, operation, mark) if body["state"] not in RUNNING] == []

    agent.start()
    assert operator.result(operation)["state"] == "succeeded"
    assert operator.served()["method"] == "nf4"
    assert MODEL in operator.subscriber.wait(operator.topic("health"), lambda body: bool(body["models"]))["models"]


def _reports(operator: Operator, operation: str, since: int) -> list[Any]:
    return operator.subscriber.on(operator.topic(f"op/{operation}"), since=since)
