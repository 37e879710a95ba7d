"""What lies in ``deploy/examples``, on a real device: shell scripts, what Telegraf would make of it, Home Assistant."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jinja2.sandbox import SandboxedEnvironment

from tests.e2e.harness.feed import Feed
from tests.e2e.harness.mqtt import END_S, end
from tests.e2e.harness.telegraf import Config
from tests.e2e.harness.tools import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness.operator import Operator
    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NAME = "example"
EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
SCRIPTS = EXAMPLES / "mosquitto_pub"
DISCOVER = EXAMPLES / "home-assistant" / "discover.sh"
# What the MQTT integration of Home Assistant documents for a sensor and a binary sensor that are discovered,
# https://www.home-assistant.io/integrations/sensor.mqtt/ and binary_sensor.mqtt
COMMON = {
    "availability", "availability_mode", "availability_template", "availability_topic", "default_entity_id",
    "device", "device_class", "enabled_by_default", "encoding", "entity_category", "entity_picture", "expire_after",
    "force_update", "icon", "json_attributes_template", "json_attributes_topic", "name", "origin",
    "payload_available", "payload_not_available", "platform", "qos", "state_topic", "unique_id", "value_template",
}  # fmt: skip
OF_SENSOR = {
    "last_reset_value_template",
    "options",
    "state_class",
    "suggested_display_precision",
    "unit_of_measurement",
}
DOCUMENTED = {"sensor": COMMON | OF_SENSOR, "binary_sensor": COMMON | {"off_delay", "payload_off", "payload_on"}}
OF_DEVICE = {
    "configuration_url", "connections", "hw_version", "identifiers", "manufacturer", "model", "model_id", "name",
    "serial_number", "suggested_area", "sw_version", "via_device",
}  # fmt: skip
UNITS = {"data_size": "B", "temperature": "°C"}


@pytest.fixture(scope="module")
def environment(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The options of the broker where mosquitto's clients look for them."""
    require("jq")
    config = tmp_path_factory.mktemp("config")
    for program in ("mosquitto_pub", "mosquitto_sub"):
        (config / program).write_text(f"-h 127.0.0.1\n-p {world.broker.port}\n")
    return {**os.environ, "XDG_CONFIG_HOME": str(config), "TIMEOUT": "150"}


def run(environment: dict[str, str], script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def deployed(start_device: StartDevice, world: World, kanji: Path, environment: dict[str, str]) -> Device:
    """A device to which ``deploy.sh`` has deployed the demo's model."""
    device = start_device(NAME)
    gate = json.dumps({"dataset": world.dataset.reference()})
    done = run(
        {**environment, "GATE": gate},
        "deploy.sh",
        NAME,
        "kanji",
        str(kanji / "checkpoint_best.pt"),
        world.checkpoint.url,
        str(world.signer.key),
        "1",
        "nf4",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()][-1] == "succeeded"
    return device


@pytest.fixture
def operator(deployed: Device) -> Operator:
    return deployed.operator


def test_the_scripts_deploy_switch_and_follow_and_say_what_failed(
    operator: Operator, environment: dict[str, str]
) -> None:
    assert operator.served()["version"] == "1"
    switched = run(environment, "set-method.sh", NAME, "kanji", "fp4")
    assert switched.returncode == 0, switched.stdout + switched.stderr
    assert operator.served()["method"] == "fp4"
    failed = run(environment, "set-method.sh", NAME, "nobody", "fp4")
    assert failed.returncode == 1
    assert "rejected" in failed.stdout
    assert failed.stderr == "deploy it\n", "the hint"
    operation = operator.send("rollback", model="kanji")
    again = run(environment, "follow.sh", NAME, operation)
    assert (again.returncode, "succeeded" in again.stdout) == (0, True)
    assert operator.served()["method"] == "nf4"


def test_nothing_to_follow_ends_with_a_question(environment: dict[str, str], world: World) -> None:
    assert world.broker.port
    done = run({**environment, "TIMEOUT": "1"}, "follow.sh", NAME, "never-sent")
    assert done.returncode == 3
    assert "is the device online?" in done.stderr
    assert run(environment, "follow.sh").returncode == 2


def test_telegraf_s_paths_lead_to_what_the_device_says(operator: Operator) -> None:
    config = Config.shipped()
    mark = operator.mark()
    operator.send("status")
    health = operator.subscriber.wait(operator.topic("health"), lambda body: body["models"], since=mark)
    bodies = {
        "health": health,
        "presence": operator.subscriber.wait(operator.topic("presence")),
        "reported": operator.subscriber.wait(operator.topic("reported"), since=mark),
    }
    told = {metric.name: metric for kind, body in bodies.items() for metric in config.read(operator.topic(kind), body)}
    assert {metric.tags["device"] for metric in told.values()} == {NAME}
    fields = {f"{metric.name}_{field}": value for metric in told.values() for field, value in metric.fields.items()}
    missing = config.names() - set(fields)
    assert missing == {f"nibbled_fleet_device_gpu_{name}" for name in _without_gpu(health)}
    assert fields["nibbled_fleet_presence_online"] is True
    assert fields["nibbled_fleet_health_ok"] is (health["status"] == "ok")
    assert fields["nibbled_fleet_health_clock_synchronised"] is health["clock_synchronised"]
    assert fields["nibbled_fleet_device_memory_total_bytes"] == health["device"]["memory"]["total_bytes"] > 0
    served = bodies["reported"]["models"]["kanji"]
    assert told["nibbled_fleet_served"].tags == {
        "device": NAME, "model": "kanji", "version": served["version"], "method": served["method"],
    }  # fmt: skip
    assert fields["nibbled_fleet_served_artifact_bytes"] == served["artifact_bytes"]
    assert fields["nibbled_fleet_model_resident_bytes"] == health["models"]["kanji"]["resident_bytes"]
    assert math.isnan(fields["nibbled_fleet_model_latency_p99_ms"]) or fields["nibbled_fleet_model_latency_p99_ms"] > 0


def _without_gpu(health: dict[str, Any]) -> set[str]:
    names = {
        "temperature_celsius": "temperature_c",
        "utilisation_percent": "utilisation_percent",
        "power_watts": "power_w",
    }
    return {name for name, key in names.items() if (health["device"]["gpu"] or {}).get(key) is None}


def test_every_metric_of_telegraf_goes_to_exactly_one_output() -> None:
    config = Config.shipped()
    outputs = config.parsed["outputs"]["prometheus_client"]
    passed = [name for output in outputs for name in output["namepass"]]
    measurements = {name for each in config.names() for name in passed if each.startswith(f"{name}_")}
    assert sorted(passed) == sorted(measurements)
    assert all(any(name.startswith(f"{each}_") for each in passed) for name in config.names())


@pytest.fixture
def discovering(deployed: Device, environment: dict[str, str]) -> Iterator[None]:
    """``discover.sh`` while it runs, once it has told of the device."""
    assert deployed.agent.is_running
    process = subprocess.Popen(
        [str(DISCOVER)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    feed = Feed(process.stdout, str, "discover.sh")
    try:
        feed.wait(lambda line: line == f"told Home Assistant of {NAME}\n", timeout_s=3 * END_S)
        yield
    finally:
        os.killpg(process.pid, 15)
        end(process)


def test_home_assistant_is_told_of_entities_whose_templates_read_what_the_device_says(
    discovering: None,  # noqa: ARG001 - it runs meanwhile
    operator: Operator,
    environment: dict[str, str],
) -> None:
    operator.subscriber.wait(f"homeassistant/sensor/nibbled_{NAME}/requests/config")  # the last one
    found = {
        message.topic: message.body
        for message in operator.subscriber.all()
        if message.topic.startswith("homeassistant/") and f"/nibbled_{NAME}/" in message.topic and message.text
    }
    assert len(found) == 6
    values = {}
    for topic, entity in found.items():
        _, component, node, name, last = topic.split("/")
        assert (node, last) == (f"nibbled_{NAME}", "config")
        assert set(entity) <= DOCUMENTED[component]
        assert set(entity["device"]) <= OF_DEVICE
        assert entity["unique_id"] == f"nibbled_{NAME}_{name}"
        assert entity.get("unit_of_measurement") == UNITS.get(entity.get("device_class", ""))
        assert _render(operator, entity["availability_topic"], entity["availability_template"]) == "online"
        values[name] = _render(operator, entity["state_topic"], entity["value_template"])
        if "json_attributes_topic" in entity:
            told = _render(operator, entity["json_attributes_topic"], entity["json_attributes_template"])
            assert isinstance(json.loads(told), dict)
        if "options" in entity:
            assert values[name] in entity["options"]
    assert values["served"] == "kanji 1 nf4"
    assert int(values["memory_available"]) > 0
    assert int(values["requests"]) >= 0
    assert values["problem"] in ("ON", "OFF")

    mark = operator.mark()
    command = [str(DISCOVER), "--forget", NAME]
    subprocess.run(command, env=environment, check=True, timeout=3 * END_S, capture_output=True)
    for topic in found:
        operator.subscriber.wait_text(lambda message: (message.topic, message.text) == (topic, ""), since=mark)  # noqa: B023 - used at once


def _render(operator: Operator, topic: str, template: str) -> str:
    """Return what Home Assistant's language of templates, Jinja, makes of the newest message of a topic."""
    operator.subscriber.wait(topic)
    body = operator.subscriber.on(topic)[-1]
    return SandboxedEnvironment().from_string(template).render(value_json=body)
