"""The server or the builder is killed with SIGKILL; the agent goes on, and so does the model."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import BUILDER, SERVER
from tests.e2e.harness.operator import MODEL

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEATH_S = 60.0


@pytest.fixture
def device(serving_device: Device) -> Device:
    return serving_device


def test_a_killed_server_comes_back_from_the_packed_artifact_by_itself(device: Device, world: World) -> None:
    operator, mark = device.operator, device.operator.mark()
    accuracy, served = world.images.accuracy(device.agent.url, MODEL), operator.served()
    (server,) = device.agent.children(SERVER)
    server.send(signal.SIGKILL)
    assert server.has_ended(DEATH_S)
    server.close()
    event = operator.event(lambda body: body["event"] == "server_lost", since=mark)
    assert "SIGKILL" in event["detail"]
    operator.subscriber.wait(
        operator.topic("health"),
        lambda body: body["server_pid"] not in (None, server.pid) and MODEL in body["models"],
        since=mark,
    )
    assert world.images.accuracy(device.agent.url, MODEL) == accuracy
    assert operator.served() == served
    events = {body["event"] for body in operator.subscriber.on(operator.topic("event"), since=mark)}
    assert "operation_moved" not in events


@pytest.mark.parametrize(("parent", "lives"), [("os.getppid()", True), ("1", False)])
def test_a_server_whose_supervisor_ended_while_it_was_importing_ends_too(parent: str, *, lives: bool) -> None:
    code = f"import os; from agent.serving.process import tie_to_parent; tie_to_parent({parent})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is lives
    assert ("OrphanError" in done.stderr) is not lives


def test_a_killed_builder_fails_its_operation_only(device: Device, world: World) -> None:
    operator, supervisor = device.operator, device.agent.pid
    before, accuracy = operator.served(), world.images.accuracy(device.agent.url, MODEL)
    operation = operator.send("set_method", model=MODEL, method="fp4")
    operator.reaches(operation, "building", with_progress=True)
    (builder,) = device.agent.children(BUILDER)
    builder.send(signal.SIGKILL)
    ended = operator.result(operation)
    builder.close()
    assert (ended["state"], ended["error"]["code"]) == ("failed", "build_killed")
    assert "SIGKILL" in ended["error"]["detail"]
    assert ended["error"]["retryable"]
    assert (device.agent.is_running, device.agent.pid) == (True, supervisor)
    assert operator.served() == before
    assert world.images.accuracy(device.agent.url, MODEL) == accuracy


def test_a_server_that_dies_during_a_build_is_back_before_its_end(device: Device, world: World) -> None:
    operator = device.operator
    accuracy = world.images.accuracy(device.agent.url, MODEL)
    operation = operator.send("set_method", model=MODEL, method="int8")
    operator.reaches(operation, "building", with_progress=True)
    (builder,), (server,) = device.agent.children(BUILDER), device.agent.children(SERVER)
    builder.send(signal.SIGSTOP)  # the build lasts until it is let go on
    server.send(signal.SIGKILL)
    assert server.has_ended(DEATH_S)
    server.close()
    assert world.images.accuracy(device.agent.url, MODEL) == accuracy, "asked while nothing of the build moves"
    assert operator.subscriber.on(operator.topic(f"op/{operation}"))[-1]["phase"] == "building"
    builder.send(signal.SIGCONT)
    builder.close()
    assert operator.result(operation)["state"] == "succeeded"
