"""A device that takes signed commands only, on a real broker: what ``nibblectl`` sends with a key, and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent.fleet import keys
from tests.e2e.harness.device import ROOT, Agent
from tests.e2e.harness.mqtt import publish
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "strict"
INTERVAL = '{"health": {"interval_s": 2}}'


class Fleet:
    """An operator with a key, and the device that trusts it."""

    def __init__(self, world: World, operator: Operator, directory: Path) -> None:
        self._port = world.broker.port
        self.operator = operator
        self.trust = directory / "trust.d"
        self.trust.mkdir()
        self.key, public = keys.generate(directory, "fleet")
        public.rename(self.trust / "fleet.pub")

    def run(
        self, *arguments: str, device: str = DEVICE, stdin: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent.fleet.cli", "--port", str(self._port), "--device", device, *arguments]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def sign(self, name: str, body: dict[str, object], device: str = DEVICE) -> str:
        """Return a message as ``nibblectl sign-command`` prints it."""
        done = self.run("sign-command", name, "-", "--key", str(self.key), device=device, stdin=json.dumps(body))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def publish(self, topic: str, payload: str, *, is_retained: bool = False) -> None:
        publish(self._port, self.operator.topic(topic), payload, is_retained=is_retained)


@pytest.fixture(scope="module")
def fleet(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp(DEVICE)
    operator = Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset)
    fleet = Fleet(world, operator, directory)
    environment = {"NIBBLED_TRUST__REQUIRE_COMMAND_SIGNATURE": "true"}
    agent = Agent(DEVICE, directory, world.broker.port, fleet.trust, environment=environment)
    agent.start()
    operator.await_online()
    yield fleet
    agent.close()


def test_a_command_without_a_key_is_refused_and_with_one_it_is_done(fleet: Fleet) -> None:
    without = fleet.run("set-config", INTERVAL)
    assert without.returncode == 1, without.stdout + without.stderr
    assert "untrusted_key" in without.stdout
    assert "nibblectl --sign-key NAME.key" in without.stdout

    with_key = fleet.run("--sign-key", str(fleet.key), "set-config", INTERVAL)
    assert with_key.returncode == 0, with_key.stdout + with_key.stderr
    from_environment = fleet.run("set-config", INTERVAL, NIBBLECTL_SIGN_KEY=str(fleet.key))
    assert from_environment.returncode == 0, from_environment.stdout + from_environment.stderr
    interval = {"health": {"interval_s": 2.0}}
    fleet.operator.subscriber.wait(fleet.operator.topic("reported"), lambda body: body["config"] == interval)


def test_what_was_signed_for_another_device_or_changed_is_refused(fleet: Fleet) -> None:
    body = {"schema": 1, "id": "captured", "config": {"health": {"interval_s": 3600}}}
    fleet.publish("cmd/set_config", fleet.sign("set_config", body, device="another"))
    error = fleet.operator.result("captured")["error"]
    assert error["code"] == "bad_signature"
    assert "'another', this is device 'strict'" in error["detail"]

    fleet.publish("cmd/set_config", fleet.sign("set_config", {**body, "id": "changed"}).replace("3600", "3601", 1))
    assert fleet.operator.result("changed")["error"]["detail"] == "'config' is not what was signed"


def test_a_wanted_state_is_taken_over_when_it_is_signed(fleet: Fleet) -> None:
    document = {"schema": 1, "generation": 4, "models": {}, "config": {"health": {"interval_s": 3}}}
    mark = fleet.operator.mark()
    fleet.publish("desired", json.dumps(document), is_retained=True)
    refused = fleet.operator.event(lambda body: body["event"] == "desired_rejected", since=mark)
    assert refused["error"]["code"] == "untrusted_key"

    fleet.publish("desired", fleet.sign("desired", document), is_retained=True)
    told = fleet.operator.subscriber.wait(
        fleet.operator.topic("reported"), lambda body: body["generation"] == 4, since=mark, timeout_s=60
    )
    assert told["config"] == {"health": {"interval_s": 3.0}}
