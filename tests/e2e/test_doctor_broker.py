"""The doctor's own try at a real mosquitto: what it finds, and that it leaves everything as it was."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.adapters.broker import Broker
from agent.adapters.mqtt_client import RECEIVE_MAXIMUM
from agent.adapters.mqtt_trial import Stage, Trial, go, reach
from agent.contract.topics import Topics
from tests.e2e.harness import mqtt
from tests.e2e.harness.mqtt import END_S, HOST, free_port
from tests.e2e.harness.secure_broker import SecureBroker, fresh_text
from tests.e2e.harness.tools import require
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e]

DEVICE = "box-a"
TOPICS = Topics("edge/v1", DEVICE)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecureBroker]:
    broker = SecureBroker(tmp_path_factory.mktemp("mosquitto"), authority)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def settings(secure: SecureBroker, authority: Authority) -> Broker:
    """How the device logs in."""
    certificate, key = authority.issue(DEVICE)
    files = {"ca_file": str(authority.file), "cert_file": str(certificate), "key_file": str(key)}
    return Broker("localhost", secure.device_port, use_tls=True, **files)


def trial(broker: Broker, topics: Topics = TOPICS) -> Trial:
    return go(broker, topics, "boot", "0")


def listen(secure: SecureBroker, *options: str) -> str:
    """Run ``mosquitto_sub`` as the device and return what it prints."""
    command = [require("mosquitto_sub"), *secure.options(DEVICE), "-q", "1", "-t", TOPICS.commands, *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=END_S).stdout


def retained(secure: SecureBroker) -> str:
    """Return the presence that the broker retains, as an auditor reads it."""
    command = [require("mosquitto_sub"), *secure.options("auditor"), "-t", TOPICS.presence, "-C", "1", "-W", "5"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=END_S).stdout.strip()


def presence(state: str) -> str:
    return json.dumps({"schema": 1, "state": state, "epoch": 7, "reason": None})


def test_the_shipped_roles_let_a_message_come_back_over_tls(settings: Broker) -> None:
    found = trial(settings)
    assert (found.stage, found.detail) == (Stage.DONE, "")
    assert found.round_trip_ms is not None
    assert found.certificate_ends is not None
    assert trial(settings).stage is Stage.DONE


def test_commands_that_wait_for_the_device_still_wait_afterwards(secure: SecureBroker, settings: Broker) -> None:
    listen(secure, "-c", "-x", "3600", "-E")
    texts = [fresh_text() for _ in range(RECEIVE_MAXIMUM + 4)]
    for text in texts:
        secure.publish("operator", TOPICS.command("status"), text)
    assert trial(settings).stage is Stage.DONE
    assert listen(secure, "-c", "-x", "3600", "-C", str(len(texts)), "-W", "5").split() == texts


def test_a_retained_farewell_stays_as_it_is(secure: SecureBroker, settings: Broker) -> None:
    secure.publish(DEVICE, TOPICS.presence, presence("offline"), "-r")
    assert trial(settings).stage is Stage.DONE
    assert retained(secure) == presence("offline")


def test_online_that_nobody_stands_behind_becomes_offline(secure: SecureBroker, settings: Broker) -> None:
    secure.publish(DEVICE, TOPICS.presence, presence("online"), "-r")
    assert trial(settings).stage is Stage.DONE
    told = json.loads(retained(secure))
    assert (told["state"], told["epoch"], told["reason"]) == ("offline", 7, "connection lost")


def test_a_device_that_may_not_write_is_told_so(settings: Broker) -> None:
    found = trial(settings, Topics("edge/v1", "box-b"))
    assert found.stage is Stage.WRITE
    assert "authorized" in found.detail.lower()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize(("right", "stage"), [("write", Stage.READ), ("readwrite", Stage.DONE)])
def test_a_grant_that_delivers_nothing_is_found_out(tmp_path: Path, right: str, stage: Stage, version: str) -> None:
    rules = tmp_path / "acl"
    rules.write_text(f"topic {right} edge/v1/#\ntopic readwrite harness/#\n")
    broker = mqtt.Broker(tmp_path, f"acl_file {rules}\n")
    broker.start()
    try:
        found = trial(Broker(HOST, broker.port, version=version))
    finally:
        broker.stop()
    assert found.stage is stage


def test_who_is_not_let_in_is_told_at_which_door(settings: Broker, tmp_path_factory: pytest.TempPathFactory) -> None:
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    closed = free_port()
    assert trial(replace(settings, cert_file=None, key_file=None)).stage in (Stage.LOGIN, Stage.TLS)
    assert trial(replace(settings, ca_file=str(foreign.file))).stage is Stage.TLS
    assert reach(replace(settings, ca_file=str(foreign.file))).stage is Stage.TLS
    assert trial(replace(settings, port=closed)) == Trial(Stage.CONNECTION, "Connection refused")
    assert reach(replace(settings, port=closed)).stage is Stage.CONNECTION
    assert trial(replace(settings, host="no-such-host.invalid")).stage is Stage.NAME
    assert reach(settings).stage is Stage.DONE
