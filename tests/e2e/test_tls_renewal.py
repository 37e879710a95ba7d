"""A device on TLS with a client certificate and a real mosquitto: shipped roles suffice, renewal needs no restart."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import ROOT, Agent
from tests.e2e.harness.secure_broker import PASSWORD, Listener, SecureBroker
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "tls-box"
SEEN_BY_SUBJECT = {  # so that the broker's log tells one certificate from the next
    "use_identity_as_username true": "use_subject_as_username true",
    "use_username_as_clientid true\n": "",
    "acl_file /etc/mosquitto/nibbled/devices.acl\n": "",
}


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def agent(tmp_path: Path, authority: Authority, world: World) -> Iterator[Agent]:
    certificate, key = authority.issue(DEVICE)
    environment = {
        "NIBBLED_MQTT__HOST": "localhost",
        "NIBBLED_MQTT__CA_FILE": str(authority.file),
        "NIBBLED_MQTT__CERT_FILE": str(certificate),
        "NIBBLED_MQTT__KEY_FILE": str(key),
        "NIBBLED_STATUS__ENABLED": "true",
        "NIBBLED_STATUS__PORT": "0",
    }
    agent = Agent(DEVICE, tmp_path, 0, world.keys_dir, "tests.e2e.harness.synchronised_agent", environment)
    yield agent
    agent.close()


def start(agent: Agent, broker: SecureBroker) -> None:
    agent.broker_port = broker.device_port
    broker.start()
    agent.start()


def health(agent: Agent) -> Any:
    with urllib.request.urlopen(agent.logged("page")["url"] + "status.json", timeout=10) as response:  # noqa: S310 - loopback
        return json.load(response)["health"]


def reconnect(broker: SecureBroker) -> None:
    broker.stop()
    broker.start()


def test_the_shipped_roles_let_a_device_and_its_operator_do_their_work(
    agent: Agent, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broker = SecureBroker(tmp_path_factory.mktemp("mosquitto"), authority)
    start(agent, broker)
    listener = Listener(broker, "auditor", "edge/v1/#", retained="edge/v1/other/desired")
    try:
        agent.logged("connected")
        login = ["--host", "localhost", "--port", str(broker.people_port), "--ca-file", str(authority.file)]
        login += ["--username", "operator", "--password", PASSWORD, "--device", DEVICE, "--json"]
        nibblectl = [sys.executable, "-c", "from agent.fleet.cli import main; main()", *login]
        config = '{"health": {"interval_s": 1}}'
        done = subprocess.run(
            [*nibblectl, "set-config", config], capture_output=True, cwd=ROOT, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert (told["command"], told["state"]) == ("set_config", "succeeded")
        topics = {"presence", "capabilities", "reported", "health", "telemetry", "event", f"op/{told['id']}"}
        for name in topics:
            listener.wait_topic(f"edge/v1/{DEVICE}/{name}")
        read = subprocess.run([*nibblectl, "status"], capture_output=True, cwd=ROOT, timeout=60, check=True)
        assert json.loads(read.stdout)["presence"]["state"] == "online"
        assert [entry for entry in agent.log() if entry.get("event") == "publish_refused"] == []
    finally:
        listener.close()
        broker.stop()


def test_certificates_are_renewed_without_a_restart_and_an_expired_one_is_an_alarm_with_back_off(
    agent: Agent, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broker = SecureBroker(tmp_path_factory.mktemp("mosquitto"), authority, SEEN_BY_SUBJECT)
    start(agent, broker)
    try:
        broker.seen("serialNumber=1,")
        pid = agent.pid

        authority.issue(DEVICE, number=2)
        reconnect(broker)
        broker.seen("serialNumber=2,")

        authority.issue(DEVICE, number=3, begin=datetime.now(timezone.utc) - timedelta(days=2))
        mark = agent.mark()
        reconnect(broker)
        broker.seen("certificate")
        times = []
        for _ in range(4):
            times.append(agent.logged("certificate_alarm", since=mark, timeout_s=60.0))
            mark += agent.log(since=mark).index(times[-1]) + 1
        assert "expired at" in times[0]["detail"]
        moments = [datetime.fromisoformat(each["timestamp"].replace("Z", "+00:00")) for each in times]
        pauses = [(after - before).total_seconds() for before, after in pairwise(moments)]
        assert pauses[-1] > 1.5 * pauses[0], pauses
        assert any("expired at" in reason for reason in health(agent)["reasons"])
        assert (agent.is_running, agent.pid) == (True, pid)

        authority.issue(DEVICE, number=4)
        broker.seen("serialNumber=4,", timeout_s=60.0)
        assert agent.pid == pid
    finally:
        broker.stop()
