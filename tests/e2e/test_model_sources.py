"""Models that lie where a team keeps them: from a command on the broker to an answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes.hub import COMMIT, SIGNATURE, hub
from tests.fakes.mlflow_server import mlflow

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SETTINGS = {"NIBBLED_DOWNLOADS__ALLOWED_SCHEMES": '["http", "hf", "models"]', "NIBBLED_LOGGING__LEVEL": "debug"}


def deployed(device: Device, world: World, url: str) -> dict[str, object]:
    """Deploy the trained checkpoint from an address and return how that ended."""
    entry = {"name": "checkpoint_best.pt", **world.checkpoint.reference(), "url": url}
    manifest = device.operator.manifest(world.checkpoint, files=[entry])
    return device.operator.result(device.operator.deploy(manifest, method="nf4"))


def test_a_checkpoint_is_deployed_from_a_hugging_face_repository_with_a_token_that_nobody_sees(
    tmp_path: Path, start_device: StartDevice, world: World
) -> None:
    with hub(world.checkpoint.content) as there:
        there.token, there.large = "hf_canaryToken", "checkpoint_best.pt"
        file = tmp_path / "hub.token"
        file.write_text(there.token)
        file.chmod(0o600)
        environment = {
            **SETTINGS,
            "NIBBLED_DOWNLOADS__HUGGING_FACE_ENDPOINT": there.site.url,
            "NIBBLED_DOWNLOADS__TOKEN_FILES": json.dumps({there.site.host: str(file)}),
        }
        device = start_device("hub", environment=environment)
        failed = deployed(device, world, "hf://acme/kanji@main/checkpoint_best.pt")
        assert (failed["state"], failed["error"]["code"]) == ("failed", "forbidden_source")  # type: ignore[index]
        ended = deployed(device, world, f"hf://acme/kanji@{COMMIT}/checkpoint_best.pt")
        assert (ended["state"], ended["error"]) == ("succeeded", None)
        assert device.operator.served()["sha256"] == world.checkpoint.reference()["sha256"]
    said = json.dumps([device.agent.log(), [message.text for message in device.operator.subscriber.all()]])
    assert "checkpoint_best.pt" in said
    assert "hf_canaryToken" not in said
    assert SIGNATURE not in said


def test_a_checkpoint_is_deployed_from_an_mlflow_registry(
    tmp_path: Path, start_device: StartDevice, world: World
) -> None:
    with mlflow(tmp_path) as server:
        file = tmp_path / "checkpoint_best.pt"
        file.write_bytes(world.checkpoint.content)
        version = server.register("kanji", file)
        device = start_device(
            "registry", environment={**SETTINGS, "NIBBLED_DOWNLOADS__MLFLOW_TRACKING_URI": server.url}
        )
        ended = deployed(device, world, f"models:/kanji/{version}/checkpoint_best.pt")
        assert (ended["state"], ended["error"]) == ("succeeded", None)
        assert device.operator.served()["sha256"] == world.checkpoint.reference()["sha256"]
