"""A journal that is gone: the real broker still says that operations are open, and the next life ends them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from paho.mqtt import publish as many

from tests.e2e.harness.device import SERVER
from tests.e2e.harness.mqtt import HOST, publish
from tests.e2e.harness.operator import MODEL, RUNNING, JsonObject

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FINISHED = 1500
DEATH_S = 60.0


@pytest.fixture(scope="module")
def device(start_device: StartDevice) -> Device:
    return start_device("lossy")


def report(operation_id: str, state: str, phase: str | None = None) -> str:
    told = {"schema": 1, "id": operation_id, "command": "deploy", "model": MODEL, "state": state, "phase": phase}
    return json.dumps(told)


def kill(device: Device) -> None:
    children = device.agent.children(SERVER)
    device.agent.kill()
    for child in children:
        assert child.has_ended(DEATH_S)
        child.close()


def ends(device: Device, operation: str, since: int) -> list[JsonObject]:
    """Wait for the end of an operation and return all its ends, after the device said everything again."""
    device.operator.result(operation, since=since)
    device.operator.result(device.operator.send("status"))
    told = device.operator.subscriber.on(device.operator.topic(f"op/{operation}"), since=since)
    return [body for body in told if body["state"] not in RUNNING]


def test_operations_that_a_damaged_journal_lost_end_once_and_no_others(device: Device, world: World) -> None:
    operator, port = device.operator, world.broker.port
    manifest = operator.manifest(world.checkpoint, version="v1")
    assert operator.result(operator.deploy(manifest, method="nf4"))["state"] == "succeeded"
    served = operator.served()
    on_trial = operator.send("set_method", model=MODEL, method="fp4", gate={"soak_s": 600})
    waiting = operator.send("set_method", model=MODEL, method="int8")
    operator.reaches(on_trial, "trial")
    kill(device)

    def topic(operation: str) -> str:
        return operator.topic(f"op/{operation}")

    finished = [f"old-{number}" for number in range(FINISHED)]
    many.multiple([(topic(each), report(each, "failed"), 0, True) for each in finished], hostname=HOST, port=port)
    foreign = "edge/v1/lossy-2/op/theirs"
    publish(port, foreign, report("theirs", "running", "trial"), is_retained=True)
    for file in device.agent.directory.glob("state/journal.db*"):
        file.unlink()
    (device.agent.directory / "state" / "journal.db").write_bytes(b"garbage" * 1000)

    mark = operator.mark()
    device.agent.start()
    for operation, phase in ((on_trial, "trial"), (waiting, "queued")):
        (end,) = ends(device, operation, mark)
        assert (end["state"], end["error"]["code"], end["error"]["phase"]) == ("failed", "state_lost", phase)
        assert end["error"]["kept"].startswith(MODEL)
    assert operator.served()["since"] == served["since"], "the last good release serves"
    others = [message for message in operator.subscriber.all(since=mark) if message.topic in (foreign, topic("old-7"))]
    assert [message.body["error"] for message in others if "error" in message.body] == []

    mark = operator.mark()
    operator.send("set_method", id=waiting, model=MODEL, method="int8")
    assert [end["error"]["code"] for end in ends(device, waiting, mark)] == ["state_lost"]


def test_what_a_device_was_doing_when_its_state_was_wiped_ends_too(device: Device, world: World) -> None:
    operator = device.operator
    kill(device)
    shutil.rmtree(device.agent.directory / "state")
    publish(world.broker.port, operator.topic("op/gone"), report("gone", "running", "building"), is_retained=True)
    mark = operator.mark()
    device.agent.start()
    (end,) = ends(device, "gone", mark)
    assert "journal is new" in end["error"]["detail"]
