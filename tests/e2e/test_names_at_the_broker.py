"""An agent whose names at the broker are not its id says so when it starts, and goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import free_port
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_user_name_and_a_common_name_that_are_not_the_device_s_are_warned_of(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("another")
    mqtt = {"USERNAME": "plant", "CERT_FILE": str(certificate), "KEY_FILE": str(key)}
    environment = {f"NIBBLED_MQTT__{name}": value for name, value in mqtt.items()}
    agent = Agent("box-17", tmp_path, free_port(), tmp_path / "trust.d", environment=environment)
    agent.start()
    try:
        agent.logged("server_started", timeout_s=60.0)
        told = [entry for entry in agent.log() if entry["event"] == "identity_differs"]
    finally:
        agent.close()
    assert [entry["level"] for entry in told] == ["warning", "warning"]
    assert told[0]["detail"] == "mqtt.username is 'plant', device_id is 'box-17'"
    assert told[1]["detail"] == f"the common name in {certificate} is 'another', device_id is 'box-17'"
    assert "devices.acl" in told[0]["hint"]
