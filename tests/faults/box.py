"""A device of its own for faults that nobody else should share, with what is looked at from outside afterwards."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tests.e2e.harness.device import BUILDER, SERVER, Agent
from tests.e2e.harness.inference import ask
from tests.e2e.harness.operator import MODEL, Operator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.harness.processes import Process
    from tests.e2e.harness.world import World

JsonObject = dict[str, Any]
APPEARS_S, POLL_S = 30.0, 0.01
START_S = 150.0
GATE = {"soak_s": 0.1, "min_agreement": 0.5}


class Box:
    """An agent, its operator, and its directory.

    Args:
        name: of the device.
        directory: its own.
        world: around it.
        module: that is started.
        environment: of the agent, such as ``NIBBLED_…``.
    """

    def __init__(self, name: str, directory: Path, world: World, *, module: str = "agent", **environment: str) -> None:
        self.world = world
        self.agent = Agent(name, directory, world.broker.port, world.keys_dir, module, environment)
        self.operator = Operator(name, world.broker.port, world.subscriber, world.signer, world.dataset)
        self.state_dir = directory / "state"
        self._answer: JsonObject | None = None

    def start(self, *, until: Literal["presence", "capabilities"] = "capabilities") -> None:
        """Start the agent; returns when it takes commands, or knows its methods besides."""
        mark, subscriber = self.operator.mark(), self.world.subscriber
        self.agent.start()
        online = self.operator.topic("presence")
        subscriber.wait(online, lambda body: body["state"] == "online", since=mark, timeout_s=START_S)
        if until == "capabilities":
            known = self.operator.topic("capabilities")
            subscriber.wait(known, lambda body: bool(body["methods"]), since=mark, timeout_s=START_S)

    def deploy(self, **fields: Any) -> str:
        """Deploy the demo's checkpoint, or ``file``; return the operation's id. ``gate`` is as in a command."""
        file, gate = fields.pop("file", None) or self.world.checkpoint, fields.pop("gate", GATE)
        return self.operator.deploy(self.operator.manifest(file), gate=gate, **{"method": "nf4", **fields})

    def switch(self, method: str, **gate: Any) -> str:
        """Switch the method; return the operation's id."""
        return self.operator.send("set_method", model=MODEL, method=method, gate={**GATE, **gate})

    def serve(self, **fields: Any) -> JsonObject:
        """Deploy, expect success, and return the operation's report."""
        report = self.operator.result(self.deploy(**fields))
        assert report["state"] == "succeeded", report["error"]
        return report

    def answers(self) -> str:
        """Ask the served model for real and return the version that answered; its answers must be finite."""
        with urllib.request.urlopen(f"{self.agent.url}/models/{MODEL}", timeout=10) as response:  # noqa: S310 - loopback
            (version,) = json.load(response)["versions"]
        logits = ask(self.agent.url, MODEL, self.world.images.inputs[:2])
        assert np.isfinite(logits).all()
        return str(version)

    def child(self, module: str) -> Process:
        """Return the one child of that module, waiting until it is there; the caller closes it."""
        deadline = time.monotonic() + APPEARS_S
        while not (found := self.agent.children(module)):
            assert time.monotonic() < deadline, f"there is no {module}"
            time.sleep(POLL_S)
        assert len(found) == 1
        return found[0]

    def builder(self) -> Process:
        """Return the builder."""
        return self.child(BUILDER)

    def server(self) -> Process:
        """Return the server."""
        return self.child(SERVER)

    def stored_bytes(self) -> int:
        """Return the size of everything in the store, after it came to rest."""
        folders = (self.state_dir / "downloads", self.state_dir / "artifacts")
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    def half_made(self) -> list[str]:
        """Return the names of what is half made in the store."""
        found = [path.name for path in (self.state_dir / "downloads").iterdir()]
        return found + [path.name for path in (self.state_dir / "artifacts").glob("*/*.tmp")]

    def keeps_nothing_half_made(self) -> None:
        """Wait until the store has nothing half made: it is swept after the report of an operation's end."""
        eventually(lambda: not self.half_made(), "the store has nothing half made")

    def status(self, timeout_s: float = 15.0) -> JsonObject:
        """Ask for a report of health and return it."""
        mark = self.operator.mark()
        self.operator.send("status")
        return self.world.subscriber.wait(self.operator.topic("health"), since=mark, timeout_s=timeout_s)


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> float:
    """Ask until it is true and return the seconds that took: another process offers nothing to wait on."""
    began = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - began
        except (OSError, http.client.HTTPException):
            pass
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.05)
