"""The whole story on one device: deploy, infer, switch, roll back, report, stop; with the tools of any Debian."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import BUILDER
from tests.e2e.harness.inference import load
from tests.e2e.harness.mqtt import Subscriber
from tests.e2e.harness.operator import MODEL, JsonObject
from tests.e2e.harness.processes import descendants, mapped_files, resident_bytes

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LINE = ["downloading", "verifying", "planning", "building", "loading", "canary", "activating", "trial"]
MAX_SUPERVISOR_BYTES = 64 * 2**20


@pytest.fixture(scope="module")
def device(start_device: StartDevice) -> Device:
    return start_device("story")


@pytest.fixture(scope="module")
def history(device: Device, world: World) -> list[JsonObject]:
    """Everything that was said of the deploy that all tests here build on."""
    manifest = device.operator.manifest(world.checkpoint, version="v1")
    return device.operator.history(device.operator.deploy(manifest, method="auto"))


def test_a_signed_deploy_goes_through_every_phase_in_order_and_succeeds(history: list[JsonObject]) -> None:
    assert history[0]["state"] == "accepted"
    assert (history[-1]["state"], history[-1]["error"]) == ("succeeded", None)
    running = [body["phase"] for body in history if body["state"] == "running"]
    assert list(dict.fromkeys(running)) == LINE
    sequence = [body["seq"] for body in history]
    assert sequence == sorted(sequence)


def test_reported_repeats_what_the_decision_chose_and_measured(device: Device, history: list[JsonObject]) -> None:
    decision, model = history[-1]["decision"], device.operator.served()
    gate = decision["measured"]["gate"]
    assert (model["version"], model["model_type"], model["state"]) == ("v1", "cnn", "serving")
    assert model["method"] == decision["method"]
    assert (model["agreement"], model["accuracy"]) == (gate["agreement"], gate["accuracy"])
    assert model["artifact_bytes"] == decision["measured"]["artifact_bytes"]
    assert model["artifact_bytes"] * 5 <= decision["measured"]["source_bytes"]


@pytest.mark.usefixtures("history")
def test_held_out_images_are_read_over_http_as_well_as_reported(device: Device, world: World) -> None:
    """The images are a sample of those that the gate measured with, hence the two in a hundred."""
    assert world.images.accuracy(device.agent.url, MODEL) >= device.operator.served()["accuracy"] - 0.02


def test_switching_and_rolling_back_under_load_fails_no_request(
    device: Device, history: list[JsonObject], world: World
) -> None:
    operator, first = device.operator, history[-1]["decision"]["method"]
    with load(device.agent.url, MODEL, world.images.inputs[:1]) as statuses:
        for method in ("nf4-dq", "fp4"):
            assert operator.result(operator.send("set_method", model=MODEL, method=method))["state"] == "succeeded"
            assert operator.served()["method"] == method
        assert operator.result(operator.send("rollback", model=MODEL))["state"] == "succeeded"
    assert operator.served()["method"] == "nf4-dq" != first
    assert set(statuses) == {"200"}, statuses
    assert statuses["200"] > 10


@pytest.mark.usefixtures("history")
def test_status_makes_the_device_say_everything_again(device: Device) -> None:
    operator = device.operator
    mark = operator.mark()
    assert operator.result(operator.send("status"))["state"] == "succeeded"
    reported = operator.subscriber.wait(operator.topic("reported"), since=mark)
    capabilities = operator.subscriber.wait(operator.topic("capabilities"), since=mark)
    health = operator.subscriber.wait(operator.topic("health"), since=mark)
    assert reported["models"].keys() == health["models"].keys() == {MODEL}
    assert capabilities["methods"]["nf4"]["ok"]
    assert health["status"] in ("ok", "degraded")


@pytest.mark.usefixtures("history")
def test_the_supervisor_stays_small_and_the_builders_memory_is_gone(device: Device) -> None:
    pid = device.agent.pid
    assert resident_bytes(pid) <= MAX_SUPERVISOR_BYTES
    foreign = [path for path in mapped_files(pid) if any(word in path for word in ("torch", "numpy", "bitsandbytes"))]
    assert foreign == []
    assert descendants(pid, BUILDER) == []


@pytest.mark.usefixtures("history")
def test_sigterm_says_goodbye_and_leaves_no_process_behind(device: Device, world: World) -> None:
    agent, operator = device.agent, device.operator
    children, mark = agent.children(), operator.mark()
    assert children
    assert agent.terminate() == 0
    presence = operator.subscriber.wait(operator.topic("presence"), since=mark)
    assert (presence["state"], presence["reason"]) == ("offline", "shutdown")
    later = Subscriber(world.broker.port)
    with contextlib.closing(later):
        retained = later.wait(operator.topic("presence"))
    assert (retained["state"], retained["reason"]) == ("offline", "shutdown"), "its echo was taken for a stale will"
    for child in children:
        assert child.has_ended(timeout_s=60.0)
        child.close()
