"""The supervisor is killed with SIGKILL in a named phase; the next one takes up what the journal says."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import BUILDER, SERVER
from tests.e2e.harness.operator import MODEL, RUNNING

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEATH_S = 60.0


@pytest.fixture(scope="module")
def device(start_device: StartDevice) -> Device:
    return start_device("resume")


@pytest.fixture(scope="module")
def first(device: Device, world: World) -> str:
    """The version that was fetched across a kill, and serves from then on."""
    half = len(world.checkpoint.content) // 2
    file = world.files.host("held.pt", world.checkpoint.content)
    file.hold_at = half
    operation = device.operator.deploy(device.operator.manifest(file, version="first"), method="nf4")
    device.operator.reaches(operation, "downloading", with_progress=True)
    device.agent.kill()
    file.released.set()
    device.agent.start()
    assert terminal_states(device, operation) == ["succeeded"]
    broken, resumed = file.requests
    assert broken.start == 0 < resumed.start <= half
    assert resumed.start + resumed.sent == len(file.content)
    return "first"


def terminal_states(device: Device, operation: str) -> list[str]:
    """Wait for an operation's end and return all the ends that were told, after the device said everything again."""
    device.operator.history(operation)
    device.operator.result(device.operator.send("status"))
    history = device.operator.subscriber.on(device.operator.topic(f"op/{operation}"))
    return sorted({body["state"] for body in history if body["state"] not in RUNNING})


def kill_with_children(device: Device, modules: set[str]) -> None:
    """Kill the supervisor while it has a child of each module; none may outlive it, stopped ones included."""
    children = [child for module in sorted(modules) for child in device.agent.children(module)]
    assert len(children) == len(modules)
    device.agent.kill()
    for child in children:
        assert child.has_ended(DEATH_S), f"process {child.pid} outlived its supervisor"
        child.close()


def test_a_download_goes_on_where_the_kill_cut_it(device: Device, first: str, world: World) -> None:
    served = device.operator.served()
    assert (served["version"], served["method"]) == (first, "nf4")
    assert world.images.accuracy(device.agent.url, MODEL) >= served["accuracy"] - 0.02


@pytest.mark.usefixtures("first")
def test_a_build_starts_over_and_its_builder_dies_with_the_supervisor(device: Device) -> None:
    operator = device.operator
    operation = operator.send("set_method", model=MODEL, method="nf4-dq")
    operator.reaches(operation, "building", with_progress=True)
    (builder,) = device.agent.children(BUILDER)
    builder.send(signal.SIGSTOP)  # so that the phase cannot end before the kill
    builder.close()
    kill_with_children(device, {BUILDER, SERVER})
    device.agent.start()
    assert terminal_states(device, operation) == ["succeeded"]
    attempts = [body["attempt"] for body in operator.history(operation) if body["phase"] == "building"]
    assert attempts[-1] == 2
    assert operator.served()["method"] == "nf4-dq"


@pytest.mark.usefixtures("first")
def test_a_trial_that_nobody_watched_is_rolled_back(device: Device, world: World) -> None:
    operator = device.operator
    before = operator.served()
    other = "nf4" if before["method"] != "nf4" else "nf4-dq"
    operation = operator.send("set_method", model=MODEL, method=other, gate={"soak_s": 600})
    operator.reaches(operation, "trial")
    kill_with_children(device, {SERVER})
    device.agent.start()
    assert terminal_states(device, operation) == ["rolled_back"]
    error = operator.result(operation)["error"]
    assert (error["code"], error["phase"]) == ("interrupted", "trial")
    assert error["kept"].endswith(before["method"])
    assert operator.served() == before
    assert world.images.accuracy(device.agent.url, MODEL) >= before["accuracy"] - 0.02


@pytest.mark.usefixtures("first")
def test_what_was_served_serves_again_before_the_self_test_begins(device: Device) -> None:
    device.agent.terminate()
    device.agent.start()
    begun = device.agent.logged("self_test_started", timeout_s=60.0)
    assert device.agent.logged("activated")["timestamp"] < begun["timestamp"]
