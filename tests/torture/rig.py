"""One tortured device: the real agent with armed fail points, restarted when it died, as systemd would."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.e2e.harness.device import ROOT, Agent
from tests.e2e.harness.feed import NothingCameError
from tests.e2e.harness.operator import MODEL, RUNNING, Operator
from tests.torture.arming import DIRECTORY, MODULES
from tests.torture.points import SUPERVISOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.torture.arming import Plan
    from tests.torture.surroundings import Surroundings

JsonObject = dict[str, Any]
SITE = Path(__file__).parent / "site"
LOOK_S = 0.05
END_S = 5.0
STARTS, SLICE_S, OPERATION_S, READY_S = 4, 0.2, 180.0, 180.0


class TortureError(AssertionError):
    """A device that did not do what it promises; the text says what."""


class Rig:
    """A device and its operator.

    Args:
        world: what it lives in.
        name: of the device.
        popen: starts its processes.
        environment: of these, besides what arms them.

    Attributes:
        group: one that only this device is in.
    """

    def __init__(
        self,
        world: Surroundings,
        name: str,
        popen: type[subprocess.Popen[str]] = subprocess.Popen,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.world = world
        self.group = name
        self.directory = world.root / name
        self.points = self.directory / "points"
        self.points.mkdir(parents=True)
        path = os.pathsep.join((str(SITE), str(ROOT)))
        armed = {"PYTHONPATH": path, DIRECTORY: str(self.points), "TORTURE_PLAIN_TORCH": "1"}
        self.agent = Agent(
            name,
            self.directory,
            world.broker.port,
            world.keys_dir,
            environment={**armed, "NIBBLED_MQTT__GROUPS": f'["{name}"]', **environment},
            popen=popen,
        )
        self.operator = Operator(name, world.broker.port, world.subscriber, world.signer, world.datasets[0])
        self.restarts = 0
        self.manifest: JsonObject | None = None
        self.manifests: dict[str, JsonObject] = {}
        self._armed = ""
        self._names = itertools.count(1)
        self._numbers = itertools.count(1)

    @property
    def state_dir(self) -> Path:
        """Where the agent keeps its state."""
        return self.directory / "state"

    def boot(self) -> None:
        """Start the agent, again while it dies in the attempt; return when it takes commands and knows its methods."""
        for _ in range(STARTS):
            mark = self.operator.mark()
            try:
                self._start()
                self._await("presence", lambda body: body["state"] == "online", mark)
                self._await("capabilities", lambda body: bool(body["methods"]), mark)
            except NothingCameError:
                if not self.agent.has_ended(END_S):
                    raise
                self.restarts += 1
            else:
                return
        raise TortureError(f"the agent ended {STARTS} times while it started")

    def arm(self, plan: Plan) -> str:
        """Arm the device, whatever it is doing; return the name under which the strike is noted."""
        name = self._armed = f"n{next(self._names)}"
        draft = self.points / "plan.tmp"
        draft.write_text(f"{name} {plan.point}={plan.fault}@{plan.number}", encoding="ascii")
        draft.replace(self.points / "plan")
        return name

    def disarm(self) -> None:
        """Let every point be passed from now on."""
        (self.points / "plan").unlink(missing_ok=True)

    def has_struck(self, name: str = "") -> bool:
        """Whether the fault of that name came; that which was armed last if none is given."""
        return (self.points / f"struck.{name or self._armed}").exists()

    def kill(self, role: str, waits: Callable[[], bool] = lambda: False) -> bool:
        """Kill a process of the device; without one look again for as long as it ``waits``. Return whether one died."""
        if role == SUPERVISOR:
            was_running = self.agent.is_running
            if was_running:
                self.agent.kill()
            return was_running
        while True:
            victims = self.agent.children(MODULES[role]) if self.agent.is_running else []
            for victim in victims:
                victim.send(signal.SIGKILL)
                victim.close()
            if victims or not waits():
                return bool(victims)

    def end_of(self, operation: str, mark: int, timeout_s: float = OPERATION_S) -> JsonObject:
        """Wait for an operation's terminal state, starting the agent again whenever it has died."""
        deadline = time.monotonic() + timeout_s
        topic = self.operator.topic(f"op/{operation}")
        while time.monotonic() < deadline:
            self.revive()
            try:
                return self.world.subscriber.wait(
                    topic, lambda body: body["state"] not in RUNNING, since=mark, timeout_s=SLICE_S
                )
            except NothingCameError:
                continue
        raise TortureError(f"{operation} has no end after {timeout_s:.0f} s; last: {self.last(topic, mark)}")

    def has_ended(self, operation: str, mark: int) -> bool:
        """Whether a terminal state of an operation was heard."""
        body = self.last(self.operator.topic(f"op/{operation}"), mark)
        return body is not None and body["state"] not in RUNNING

    def revive(self) -> None:
        """Start the agent if it has died."""
        if not self.agent.is_running:
            self.restarts += 1
            self.agent.close()
            self.boot()

    def last(self, topic: str, mark: int = 0) -> JsonObject | None:
        """Return the last body on a topic since a mark."""
        messages = reversed(self.world.subscriber.all(since=mark))
        return next((message.body for message in messages if message.topic == topic), None)

    def deploy(self, bytes_per_s: int | None = None, **gate: Any) -> str:
        """Deploy a checkpoint that is new to the world; return the operation's id."""
        file = self.world.checkpoint(bytes_per_s)
        manifest = self.manifest = self.manifests[file.reference()["sha256"]] = self.operator.manifest(file)
        return self.operator.deploy(manifest, gate={"soak_s": 0.1, "min_agreement": 0.5, **gate}, method="nf4")

    def set_method(self, method: str, **gate: Any) -> str:
        """Switch the method; return the operation's id."""
        wanted = {"soak_s": 0.1, "min_agreement": 0.5, **gate}
        return self.operator.send("set_method", model=MODEL, method=method, gate=wanted)

    def number(self) -> int:
        """Return a number that is one more each time."""
        return next(self._numbers)

    def await_event(self, name: str, mark: int) -> None:
        """Wait for a line of the audit trail, starting the agent again whenever it has died."""
        deadline = time.monotonic() + OPERATION_S
        topic = self.operator.topic("event")
        while not any(body["event"] == name for body in self.world.subscriber.on(topic, since=mark)):
            if time.monotonic() > deadline:
                raise TortureError(f"no {name} was said in {OPERATION_S:.0f} s")
            self.revive()
            time.sleep(LOOK_S)

    def await_strike(self, name: str, timeout_s: float) -> bool:
        """Wait for a fault that may come after an operation's end, as when a release is unloaded; whether it came."""
        deadline = time.monotonic() + timeout_s
        while not self.has_struck(name) and time.monotonic() < deadline and self.agent.is_running:
            time.sleep(LOOK_S)
        return self.has_struck(name)

    def keep_log(self, what: str) -> None:
        """Write what this run of the agent has logged to stderr, for whoever looks into a case."""
        for entry in self.agent.log():
            sys.stderr.write(f"  {what} | {entry}\n")

    def close(self) -> None:
        """End the agent."""
        self.agent.close()

    def _start(self) -> None:
        self.agent.start()

    def _await(self, name: str, wanted: Any, mark: int) -> None:
        """Wait for a message, or for the agent's death: raises ``NothingCameError`` after either."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.world.subscriber.wait(self.operator.topic(name), wanted, since=mark, timeout_s=SLICE_S)
            except NothingCameError:  # noqa: PERF203 - a poll, not a hot loop
                if not self.agent.is_running or time.monotonic() > deadline:
                    raise
            else:
                return
