"""A site's own broker and one in the cloud, both as shipped: what is said while the line is cut arrives afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.broker import Broker
from tests.e2e.harness.mqtt import END_S, HOST, free_port
from tests.e2e.harness.secure_broker import Listener, SecureBroker
from tests.e2e.harness.tools import require
from tests.fakes.authority import Authority
from tests.fakes.device import checkpoint
from tests.faults.harness_network import Link
from tests.simulation.device import SimulatedDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.harness.mqtt import Message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NAME, GROUP, SITE = "box-a", "north", "site-north"
DEVICE, LINK = f"edge/v1/{NAME}", f"sites/{SITE}/link"
URL, CONTENT = "https://models.example/kanji.pt", checkpoint(4096, 64)
ARTIFACT = {"url": URL, "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
WAITING = ("presence", "reported", "capabilities", "event", "op", "log")
"""What may not be lost; `health` may."""
ARRIVES_S = 90.0


class Site:
    """A site with one device, and the cloud; the line between them can be cut."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        authority = Authority(_new(folder / "authority"))
        port = free_port()
        sites = {"listener 8885": f"listener {port} {HOST}"}
        self.cloud = SecureBroker(_new(folder / "cloud"), authority, adding={"sites.conf": sites})
        stack.callback(self.cloud.stop)
        self.cloud.start()
        self.line = Link(port)
        stack.callback(self.line.close)
        bridge = {"cloud.example.com:8885": f"{HOST}:{self.line.port}", "restart_timeout 2 60": "restart_timeout 1 2"}
        self.broker = SecureBroker(_new(folder / "site"), authority, adding={"bridge.conf": bridge})
        for file in authority.issue(SITE):
            shutil.copy(file, folder / "site")
        shutil.copy(authority.file, folder / "site" / "cloud-ca.pem")
        stack.callback(self.broker.stop)
        self.broker.start()
        certificate, key = (str(file) for file in authority.issue(NAME))
        self.device = SimulatedDevice(
            NAME,
            folder / NAME,
            Broker(
                "localhost",
                self.broker.device_port,
                ca_file=str(authority.file),
                cert_file=certificate,
                key_file=key,
                use_tls=True,
            ),
            groups=[GROUP],
            files={URL: CONTENT},
            fails=None,
            interval_s=600.0,
            soak_s=0.1,
        )
        self.in_the_cloud = self._listen(stack, self.cloud)
        self.at_the_site = self._listen(stack, self.broker)
        self.device.start()
        stack.callback(self.device.stop)

    def _listen(self, stack: contextlib.ExitStack, broker: SecureBroker) -> Listener:
        listener = Listener(broker, "auditor", "edge/v1/#", "sites/#", retained="edge/v1/nobody/desired")
        stack.callback(listener.close)
        return listener

    def cut(self) -> None:
        """Cut the line; returns when both brokers say that the bridge is down."""
        listeners = (self.in_the_cloud, self.at_the_site)
        marks = [listener.mark() for listener in listeners]
        self.line.cut()
        self.line.reset()
        for listener, mark in zip(listeners, marks, strict=True):
            listener.wait_for(is_link("0"), since=mark, timeout_s=ARRIVES_S)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(stack, tmp_path)


def is_link(state: str) -> Callable[[Message], bool]:
    """Return whether a message says so of the bridge."""
    return lambda message: (message.topic, message.text) == (LINK, state)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def send(broker: SecureBroker, command: str, operation: str, **fields: Any) -> None:
    """Send a command as an operator of that broker."""
    body = {"schema": 1, "id": operation, **fields}
    broker.publish("operator", f"{DEVICE}/cmd/{command}", json.dumps(body))


def ends(listener: Listener, operation: str) -> str:
    """Wait for an operation's end and return its state."""

    def is_end(message: Message) -> bool:
        return message.topic == f"{DEVICE}/op/{operation}" and message.body["state"] not in ("accepted", "running")

    return str(listener.wait_for(is_end, timeout_s=ARRIVES_S).body["state"])


def retained(broker: SecureBroker, topic: str) -> str:
    """Return what a broker retains on a topic."""
    command = [
        require("mosquitto_sub"),
        *broker.options("auditor"),
        "-t",
        topic,
        "-C",
        "1",
        "-W",
        "20",
        "--retained-only",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=3 * END_S).stdout.strip()


def said(listener: Listener) -> set[tuple[str, str]]:
    """Return what was heard of the device that may not be lost."""
    return {
        (message.topic, message.text)
        for message in listener.messages()
        if message.topic.startswith(f"{DEVICE}/") and message.topic.split("/")[3] in WAITING
    }


def test_a_command_in_the_cloud_reaches_a_device_at_the_site_and_nothing_is_lost_while_the_line_is_cut(
    site: Site,
) -> None:
    site.in_the_cloud.wait_for(is_link("1"), timeout_s=ARRIVES_S)
    site.in_the_cloud.wait_topic(f"{DEVICE}/presence")
    send(site.cloud, "deploy", "d-1", model="kanji", version="v1", artifact=ARTIFACT, method="nf4")
    assert ends(site.in_the_cloud, "d-1") == "succeeded"

    site.cut()
    send(site.cloud, "set_method", "s-1", model="kanji", method="fp4")
    goal = {"schema": 1, "generation": 1, "models": {"kanji": {"artifact": ARTIFACT, "version": "v2", "method": "nf4"}}}
    site.cloud.publish("fleet", f"edge/v1/_group/{GROUP}/desired", json.dumps(goal), "-r")
    send(site.broker, "set_config", "c-1", config={"watch": {"mode": "alarm"}})
    send(site.broker, "rollback", "r-1", model="kanji")
    assert ends(site.at_the_site, "c-1") == "succeeded"
    assert ends(site.at_the_site, "r-1") != "succeeded", "there is nothing before it"
    assert not any("/op/c-1" in message.topic for message in site.in_the_cloud.messages())
    assert not any("/op/s-1" in message.topic for message in site.at_the_site.messages())

    site.line.mend()
    assert ends(site.in_the_cloud, "s-1") == "succeeded"
    site.in_the_cloud.wait_for(
        lambda message: message.topic == f"{DEVICE}/event" and message.body["event"] == "desired_reached",
        timeout_s=ARRIVES_S,
    )
    assert ends(site.in_the_cloud, "c-1") == "succeeded"
    send(site.broker, "status", "last")
    assert ends(site.in_the_cloud, "last") == "succeeded"
    heard = said(site.at_the_site)  # before the mark: what the broker hands over keeps its order
    site.broker.publish("box-b", "edge/v1/box-b/event", '{"schema": 1, "event": "mark"}')
    site.in_the_cloud.wait_for(lambda message: '"mark"' in message.text, timeout_s=ARRIVES_S)
    assert heard - said(site.in_the_cloud) == set()
    assert retained(site.broker, f"edge/v1/_group/{GROUP}/desired") == json.dumps(goal)
    assert json.loads(retained(site.cloud, f"{DEVICE}/presence"))["state"] == "online"
