"""The device that the pages speak of: `box-17`, with a broker, a file server and the agent itself, all of them real."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.docs.sandbox import Surroundings
from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import publish

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.mqtt import Broker, Message, Subscriber

NAME, GROUP = "box-17", "lab"
ROOT = f"edge/v1/{NAME}"
RUNNING = ("accepted", "running")
SETTLED = ("desired_reached", "desired_missed", "desired_rejected")
OPERATION_S = 120.0


@dataclass(frozen=True)
class Place:
    """The device and what it talks to.

    Attributes:
        root: of the machine's folders.
        ports: by the number that the pages name.
        files_url: what its file server's addresses begin with.
    """

    root: Path
    ports: dict[int, int]
    broker: Broker
    subscriber: Subscriber
    files_url: str
    _markers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def keys_dir(self) -> Path:
        """What the device trusts."""
        return self.root / "etc" / "nibbled" / "trust.d"

    def agent(self) -> Agent:
        """Return the agent, not started, configured below ``root`` and on the pages' ports."""
        self.keys_dir.mkdir(parents=True)
        tokens = self.keys_dir.with_name("page.tokens")
        tokens.write_text(f"{secrets.token_hex()}\n")
        tokens.chmod(0o600)
        environment = {
            "NIBBLED_MQTT__GROUPS": f'["{GROUP}"]',
            "NIBBLED_STATUS__ENABLED": "true",
            "NIBBLED_STATUS__PORT": str(self.ports[8002]),
            "NIBBLED_STATUS__TOKEN_FILE": str(tokens),
            "NIBBLED_SERVING__HTTP_PORT": str(self.ports[8000]),
        }
        module = "tests.e2e.harness.synchronised_agent"  # whatever the clock of the machine that tests
        return Agent(NAME, self.keys_dir.parent, self.broker.port, self.keys_dir, module, environment)

    def surroundings(self) -> Surroundings:
        """Return what is different for a page: names that lead nowhere, ports that are taken, folders of root."""
        clients = self.root / "clients"
        clients.mkdir(exist_ok=True)
        for program in ("mosquitto_pub", "mosquitto_rr", "mosquitto_sub"):
            (clients / program).write_text(f"-p {self.broker.port}\n")
        state = self.keys_dir.parent / "state"
        environment = {
            "XDG_CONFIG_HOME": str(clients),
            "NIBBLECTL_PORT": str(self.broker.port),
            "NIBBLED_DEVICE_ID": NAME,
            "NIBBLED_STATE_DIR": str(state),
            "NIBBLED_MQTT__PORT": str(self.broker.port),
            "NIBBLED_SERVING__HTTP_PORT": str(self.ports[8000]),
            "NIBBLED_STATUS__PORT": str(self.ports[8002]),
            "NIBBLED_TRUST__KEYS_DIR": str(self.keys_dir),
            "DOCS_LOG": str(state / "logs" / "agent.jsonl"),
        }
        texts = {
            "broker.example.com": "127.0.0.1",
            "https://files.example.com": self.files_url,
            ".venv/bin/": "",
        }
        return Surroundings(self.root, environment, self.ports, texts)

    def settle(self, since: int) -> dict[str, str]:
        """Wait until everything asked for since a mark is over; return how each ended, by its id."""
        ends: dict[str, str] = {}
        for message in self._said(since):
            if message.topic.startswith(f"{ROOT}/cmd/"):
                operation = str(message.body["id"])
                ends[operation] = self._end(operation, since)["state"]
            elif message.topic in (f"{ROOT}/desired", f"edge/v1/_group/{GROUP}/desired") and message.text:
                event = self.subscriber.wait(
                    f"{ROOT}/event", lambda body: body["event"] in SETTLED, since=since, timeout_s=OPERATION_S
                )["event"]
                ends["desired"] = "succeeded" if event == "desired_reached" else event
        return ends

    def _said(self, since: int) -> list[Message]:
        # The broker hands messages over in the order in which they came: what was sent before the marker is there.
        marker = f"harness/docs/{next(self._markers)}"
        publish(self.broker.port, marker, "{}")
        self.subscriber.wait(marker, since=since)
        return self.subscriber.all(since=since)

    def _end(self, operation: str, since: int) -> dict[str, Any]:
        return self.subscriber.wait(
            f"{ROOT}/op/{operation}",
            lambda body: body["state"] not in RUNNING,
            since=since,
            timeout_s=OPERATION_S,
        )
