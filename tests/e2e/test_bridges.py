"""``nibblectl bridge`` as a process: a real mosquitto, the agent's real engine, and a stand-in for AWS IoT Jobs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.adapters.mqtt_operator import BrokerError, Messages
from agent.fleet import keys
from agent.fleet.bridge import requests
from agent.fleet.cli import main
from tests.e2e.harness.aws_jobs import JobsAtBroker
from tests.e2e.harness.device import ROOT
from tests.e2e.harness.feed import Feed
from tests.e2e.harness.mqtt import Broker, Subscriber, clear, free_port, publish, take_over
from tests.e2e.harness.tools import OF_A_FLEET, require
from tests.fakes.device import checkpoint, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JsonObject = dict[str, Any]
pytestmark = [pytest.mark.e2e]

BOX, THING = "box-1", "line-3-box-1"
URL, CONTENT = "https://models.example/kanji.pt", checkpoint(4096, 64)
DEPLOY = {"model": "kanji", "artifact": {"url": URL, "sha256": sha256(CONTENT), "size": len(CONTENT)}, "method": "nf4"}
LONG = {"soak_s": 30}
"""A gate whose trial outlasts the test: what comes meanwhile waits."""
COMMAND = "te/device/main///cmd/nibbled_deploy/c8y-1"


def operation(job: str, number: int = 1) -> str:
    return requests.operation_id("aws", THING, job, number)


def job(command: str, **fields: Any) -> JsonObject:
    return {"nibbled": {"command": command, **fields}}


class BridgeProcess:
    """The program, with what it prints."""

    def __init__(self, port: int, *arguments: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "agent.fleet.cli", "--port", str(port), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        assert self.process.stdout is not None
        self.told = Feed(self.process.stdout, str.strip, "nibblectl bridge")

    def wait(self, words: str, *, since: int = 0) -> str:
        return self.told.wait(lambda line: words in line, since=since)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.told.join()


class Site:
    """A broker, a device and a person who listens."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        folder = directory / "broker"
        folder.mkdir()
        self.broker = Broker(folder)
        stack.callback(self.broker.stop)
        self.broker.start()
        self.subscriber = Subscriber(self.broker.port)
        stack.callback(self.subscriber.close)
        told = {"names": [BOX], "port": self.broker.port, "directory": str(directory / "disk"), "bad": [], "groups": []}
        told |= {"files": {URL: CONTENT.hex()}, "method": "nf4", "interval_s": 5.0, "soak_s": 0.1}
        self.device = subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.process", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        stack.callback(self.stop_device)
        stack.callback(self.device.kill)  # its farewell would wait for the trial that is under way
        self.subscriber.wait(self.topic("presence"), lambda body: body["state"] == "online")

    def topic(self, name: str) -> str:
        return f"edge/v1/{BOX}/{name}"

    def stop_device(self) -> None:
        assert self.device.stdin is not None
        self.device.stdin.close()
        self.device.wait(60.0)

    def bridge(self, *arguments: str, **more: Any) -> BridgeProcess:
        started = BridgeProcess(self.broker.port, *arguments, **more)
        self._stack.callback(started.kill)
        return started

    def jobs(self) -> JobsAtBroker:
        service = JobsAtBroker(self.broker.port)
        self._stack.callback(service.close)
        return service

    def state(self, operation: str, *states: str) -> JsonObject:
        return self.subscriber.wait(self.topic(f"op/{operation}"), lambda body: body["state"] in states)

    def busy(self) -> None:
        """Let somebody else's deploy run, and not end."""
        body = {"schema": 1, "id": "mine", **DEPLOY, "gate": LONG}
        publish(self.broker.port, self.topic("cmd/deploy"), json.dumps(body))
        self.subscriber.wait(self.topic("op/mine"), lambda body: body["phase"] == "trial")


AWS = ("bridge", "aws-jobs", "--things-prefix", "line-3-")
TE = ("bridge", "thin-edge", "--main", BOX)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for tool in OF_A_FLEET:
        require(tool)
    with contextlib.ExitStack() as stack:
        yield Site(tmp_path, stack)


def test_a_job_of_aws_is_carried_out_by_a_bridge_that_is_killed_on_the_way(site: Site) -> None:
    jobs, first = site.jobs(), site.bridge(*AWS)
    jobs.create(THING, "j-1", job("deploy", **DEPLOY, gate={"soak_s": 2}))
    site.subscriber.wait(site.topic(f"op/{operation('j-1')}"), lambda body: body["phase"] == "trial")
    jobs.wait(THING, "j-1", "IN_PROGRESS")
    first.kill()
    site.state(operation("j-1"), "succeeded")
    site.bridge(*AWS)
    done = jobs.wait(THING, "j-1", "SUCCEEDED", "FAILED", "REJECTED")
    assert (done.status, done.details["operation"], done.details["method"]) == ("SUCCEEDED", operation("j-1"), "nf4")
    assert len(site.subscriber.on(site.topic("cmd/deploy"))) == 1


def test_jobs_come_one_after_the_other_and_what_is_refused_is_rejected(site: Site) -> None:
    jobs = site.jobs()
    jobs.create(THING, "first", job("deploy", **DEPLOY))
    jobs.create(THING, "nonsense", job("deploy", model="kanji"))
    jobs.create(THING, "refused", job("rollback", model="nobody"))
    site.bridge(*AWS, BOX)
    assert jobs.wait(THING, "refused", "REJECTED").details["code"] == "unknown_model"
    assert jobs.wait(THING, "nonsense", "REJECTED").details["code"] == "bad_request"
    assert jobs.wait(THING, "first", "SUCCEEDED").details["state"] == "succeeded"


def test_a_job_that_is_canceled_there_is_canceled_on_the_device(site: Site) -> None:
    site.busy()
    jobs = site.jobs()
    site.bridge(*AWS)
    jobs.create(THING, "j-1", job("set_method", model="kanji", method="fp4"))
    jobs.wait(THING, "j-1", "IN_PROGRESS")
    jobs.cancel(THING, "j-1")
    assert site.state(operation("j-1"), "canceled", "succeeded")["state"] == "canceled"


def test_an_update_behind_the_bridge_s_back_is_taken_in(site: Site) -> None:
    site.busy()
    jobs, bridge = site.jobs(), site.bridge(*AWS)
    jobs.create(THING, "j-1", job("set_method", model="kanji", method="fp4"))
    jobs.wait(THING, "j-1", "IN_PROGRESS")
    jobs.touch(THING, "j-1")
    body = {"schema": 1, "id": "c", "operation": operation("j-1")}
    publish(site.broker.port, site.topic("cmd/cancel"), json.dumps(body))
    bridge.wait("VersionMismatch")
    assert jobs.wait(THING, "j-1", "FAILED").details["code"] == "canceled"


def test_a_bridge_outlives_its_broker(site: Site) -> None:
    jobs, bridge = site.jobs(), site.bridge(*AWS)
    bridge.wait("is bridged")
    mark = bridge.told.mark()
    site.broker.stop()
    bridge.wait("again in", since=mark)
    site.broker.start()
    bridge.wait("is bridged", since=mark)
    jobs.create(THING, "j-1", job("self_test"))
    jobs.wait(THING, "j-1", "SUCCEEDED")


def test_a_bridge_says_whom_it_does_not_know_and_begins_anew_when_it_is_cut_off(site: Site) -> None:
    bridge = site.bridge(*TE, "--client-id", "bridge-1", BOX, "box-9")
    bridge.wait("nothing is known of box-9 yet")
    take_over(site.broker.port, "bridge-1")
    bridge.wait("; again in 2 s")  # it is told so, or by a message that is not acknowledged


def test_what_goes_to_devices_is_signed_where_there_is_a_key(site: Site, tmp_path: Path) -> None:
    private, _ = keys.generate(tmp_path, "operator")
    jobs = site.jobs()
    site.bridge("--sign-key", str(private), *AWS)
    jobs.create(THING, "j-1", job("rollback", model="kanji"))
    sent = site.subscriber.wait(site.topic("cmd/rollback"))
    assert sent["signature"]["signatures"][0]["keyid"] == "operator"
    assert sent["id"] == operation("j-1")
    jobs.wait(THING, "j-1", "REJECTED")


def test_a_command_of_thin_edge_on_a_broker_of_its_own_goes_its_documented_way(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "thin-edge"
    folder.mkdir()
    other = Broker(folder)
    other.start()
    hears = Subscriber(other.port)
    try:
        profiles = tmp_path / "nibblectl.toml"
        profiles.write_text(f'[profiles.thin-edge]\nhost = "127.0.0.1"\nport = {other.port}\n')
        site.bridge(*TE, "--from", "thin-edge", environment={"NIBBLECTL_PROFILES": str(profiles)})
        assert hears.wait("te/device/main///cmd/nibbled_deploy") == {}
        hears.wait("te/device/main/service/nibbled/status/health", lambda body: body["status"] == "up")
        publish(other.port, COMMAND, json.dumps({"status": "init", **DEPLOY, "extra": 1}), is_retained=True)
        done = hears.wait(COMMAND, lambda body: body["status"] in ("successful", "failed"))
        assert (done["status"], done["extra"], done["model"]) == ("successful", 1, "kanji")
        statuses = [body["status"] for body in hears.on(COMMAND)]
        assert (statuses[0], "executing" in statuses, statuses[-1]) == ("init", True, "successful")
        twin = hears.wait("te/device/main///twin/nibbled", lambda body: bool(body["models"]))
        assert twin["models"]["kanji"]["method"] == "nf4"
        clear(other.port, COMMAND)
        site.stop_device()
        hears.wait("te/device/main/service/nibbled/status/health", lambda body: body["status"] == "down")
        assert site.subscriber.on(COMMAND) == []
    finally:
        hears.close()
        other.stop()


def test_a_command_that_is_cleared_is_canceled_and_a_killed_bridge_goes_on(site: Site) -> None:
    site.busy()
    first = site.bridge(*TE)
    publish(site.broker.port, COMMAND, json.dumps({"status": "init", **DEPLOY, "method": "fp4"}), is_retained=True)
    waiting = site.subscriber.wait(COMMAND, lambda body: body["status"] == "scheduled")
    first.kill()
    mark = site.subscriber.mark()
    site.bridge(*TE)
    site.subscriber.wait("te/device/main/service/nibbled/status/health", since=mark)  # it has heard what is retained
    clear(site.broker.port, COMMAND)
    assert site.state(waiting["nibbled"]["operation"], "canceled")["error"]["code"] == "canceled"


def test_what_cannot_begin_says_why(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        environment = {"NIBBLECTL_PROFILES": str(tmp_path / "none.toml")}
        done = CliRunner().invoke(main, arguments, prog_name="nibblectl", env=environment)
        return done.exit_code, done.stderr

    status, told = run("--port", str(free_port()), "bridge", "aws-jobs")
    assert (status, "Connection refused" in told) == (4, True)
    status, told = run("bridge", "thin-edge", "--from", "site")
    assert (status, "no profile 'site'" in told) == (2, True)
    status, told = run("bridge", "aws-jobs", "a/b")
    assert (status, "device id 'a/b' must match" in told) == (2, True)
    status, told = run("bridge", "aws-jobs", "--name", "n" * 30)
    assert (status, "must be 1 to 29 of" in told) == (2, True)
    status, told = run("bridge", "thin-edge", "--root", "a/b")
    assert (status, "thin-edge root 'a/b' must match" in told) == (2, True)
    (tmp_path / "bad.key").write_text("no key")
    status, told = run("--sign-key", str(tmp_path / "bad.key"), "bridge", "aws-jobs")
    assert (status, "bad.key" in told) == (2, True)


def test_what_cannot_be_sent_without_a_connection_is_the_broker_s_error(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    broker.start()
    try:
        with Messages("127.0.0.1", broker.port, timeout_s=5.0) as messages:
            broker.stop()
            while not messages.was_lost:
                time.sleep(0.01)
            with pytest.raises(BrokerError, match="did not acknowledge a message on a/topic"):
                messages.publish("a/topic", b"{}")
    finally:
        broker.stop()
