"""Storage that flips a bit under a served model: the release before answers, and the model is built again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import SERVER
from tests.e2e.harness.operator import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEATH_S = 60.0


@pytest.fixture(scope="module")
def device(start_device: StartDevice, world: World) -> Device:
    device = start_device("worn")
    operator = device.operator
    first = operator.deploy(operator.manifest(world.checkpoint, version="v1"), method="fp4")
    assert operator.result(first)["state"] == "succeeded"
    second = operator.send("set_method", model=MODEL, method="nf4")
    assert operator.result(second)["state"] == "succeeded"
    return device


def flip(path: Path) -> None:
    """Change one bit near the end of a file, behind any header."""
    content = bytearray(path.read_bytes())
    content[-200] ^= 0x04
    path.write_bytes(content)


def artifact(device: Device, method: str) -> Path:
    (path,) = device.agent.directory.glob(f"state/artifacts/*/{method}/cnn_*.safetensors")
    return path


def power_cut(device: Device) -> None:
    (server,) = device.agent.children(SERVER)
    device.agent.kill()
    assert server.has_ended(DEATH_S)
    server.close()


def repaired(device: Device, since: int) -> dict[str, Any]:
    """Wait for the end of the repair that the device began by itself, and return it."""
    told = device.operator.event(lambda body: body["event"] == "release_unusable", since=since)
    end = device.operator.event(
        lambda body: body["event"] == "operation_ended" and str(body["id"]).startswith("repair-"), since=since
    )
    return {"told": told, "end": end}


def test_a_flipped_bit_is_noticed_and_the_model_is_built_again(device: Device, world: World) -> None:
    operator = device.operator
    before = operator.served()
    whole = artifact(device, "nf4").read_bytes()
    power_cut(device)
    flip(artifact(device, "nf4"))
    mark = operator.mark()
    device.agent.start()

    found = repaired(device, mark)
    assert found["told"]["answers"].endswith("-fp4"), "what was before answers meanwhile"
    assert "is damaged" in found["told"]["detail"]
    assert found["end"]["state"] == "succeeded"
    assert artifact(device, "nf4").read_bytes() == whole
    assert (operator.served()["method"], operator.served()["version"]) == ("nf4", before["version"])
    assert world.images.accuracy(device.agent.url, MODEL) >= before["accuracy"] - 0.02


def test_with_the_checkpoint_damaged_too_the_release_before_goes_on(device: Device, world: World) -> None:
    operator = device.operator
    power_cut(device)
    flip(artifact(device, "nf4"))
    (source,) = (
        path for path in device.agent.directory.glob("state/artifacts/*/source") if (path.parent / "nf4").is_dir()
    )
    flip(source)
    mark = operator.mark()
    device.agent.start()

    end = repaired(device, mark)["end"]
    assert (end["state"], end["error"]["code"]) == ("failed", "checksum_mismatch")
    assert end["error"]["kept"].endswith("-fp4")
    served = operator.served()
    assert served["method"] == "fp4"
    assert world.images.accuracy(device.agent.url, MODEL) >= served["accuracy"] - 0.02

    again = operator.deploy(operator.manifest(world.checkpoint, version="v1"), method="nf4")
    assert operator.result(again)["state"] == "succeeded", "the file is fetched anew"
    assert operator.served()["method"] == "nf4"
