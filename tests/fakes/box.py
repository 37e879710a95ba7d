"""A whole device: the real engine, journal and store among fakes, driven step by step by the test."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from agent.adapters.artifacts import ArtifactStore
from agent.contract.desired import OWN, DesiredMessage
from agent.contract.manifest import Identity
from agent.contract.topics import Topics
from agent.deployment.answering import Answering
from agent.deployment.engine import Engine
from agent.deployment.foresight import Foresight
from agent.deployment.guard import MemoryGuard
from agent.deployment.inbox import Connected, Overhearing, Remembered, ServerLost
from agent.deployment.intake import CommandMessage, Intake
from agent.deployment.keeper import Keeper
from agent.deployment.limits import LimitedDevice
from agent.deployment.lookout import Lookout
from agent.deployment.losses import Losses
from agent.deployment.planner import Planner
from agent.deployment.ports import Ports
from agent.deployment.pursuit import Pursuit
from agent.deployment.reporting import Reporting
from agent.deployment.steps import Steps
from agent.live import LiveSettings
from agent.logbook import Logbook
from agent.planning.model_types import MODEL_TYPES
from agent.planning.plan import Policy
from agent.settings import Deployment, Settings
from tests.fakes.broker import FakeBroker, RecordingTransport
from tests.fakes.clock import FakeClock
from tests.fakes.device import FakeBuilder, FakeDevice, FakeLessons, FakeSources, FakeTrust, checkpoint, sha256
from tests.fakes.journal import FaultyJournal
from tests.fakes.runner import InlineRunner
from tests.fakes.server import FakeServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.deployment.phases import Phase
    from agent.deployment.ports import Signatures

TOPICS = Topics("edge/v1", "box-1")
URL = "https://models.example/kanji.pt"
CONTENT = checkpoint(40_000, 5000, 64)
LOOK_S = 5.0
MAX_TURNS = 1000
"""Turns of ``settle`` after which something goes round in circles."""


class Box:
    """One device. ``reboot`` ends its process and starts the next one on the same disk and broker.

    Args:
        root: its disk.
        signatures: who may deploy; with one given, signatures are required.
    """

    def __init__(self, root: Path, signatures: Signatures | None = None) -> None:
        self._root = root
        self._signatures = signatures
        self.broker = FakeBroker()
        self.clock = FakeClock()
        self.sources = FakeSources()
        self.sources.files[URL] = CONTENT
        self.builder = FakeBuilder()
        self.device = FakeDevice()
        self.lessons = FakeLessons()
        self.policy = Policy()
        self.settings = Settings(deployment=Deployment(soak_s=0.0))
        self.fixed: tuple[str, ...] = ()
        self.statuses = 0
        self.answered: deque[dict[str, str]] = deque(maxlen=20)
        self.logbook = Logbook()
        self._start()

    def _start(self) -> None:
        self.runner = InlineRunner()
        self.server = FakeServer()
        self.journal = FaultyJournal(self._root / "journal.db")
        self.store = ArtifactStore(self._root)
        self.transport = RecordingTransport(self.journal, self.broker)
        self.live = LiveSettings(self.settings, self.journal.config(), fixed=self.fixed)
        device = LimitedDevice(self.device, reserve_bytes=self.live.reserve_bytes, limit_bytes=self.live.limit_bytes)
        self.lookout = Lookout(
            device,
            self.clock,
            interval_s=lambda: LOOK_S,
            is_wanted=lambda: self.live.current.watch.mode != "off",
            post=lambda seen: self.engine.post(seen),  # noqa: PLW0108 - made below
        )
        ports = Ports(self.clock, self.sources, self.store, self.builder, device, self.server, self.lessons)
        planner = Planner(ports, lambda: self.policy)
        self.guard = MemoryGuard(Foresight(planner).would_choose, self.live.watch_policy, on_alarm=self._count_status)
        self.keeper = Keeper(
            self.journal,
            self.server,
            self.store,
            self.runner,
            on_change=lambda: self.answered.append(self.server.answers()),
        )
        self.reporting = Reporting(
            TOPICS,
            self.clock,
            boot_id="boot",
            agent="0",
            facts=self._facts,
            selected=self.keeper.selected,
        )
        self.losses = Losses(self.journal, self.reporting, self.transport, self.clock)
        self.pursuit = Pursuit(self.journal, self.live, self.reporting, self.settings.mqtt.groups)
        self.engine = Engine(
            journal=self.journal,
            transport=self.transport,
            intake=Intake(
                self.journal,
                self._signatures or FakeTrust(),
                self.clock,
                Identity("box-1"),
                self.live,
                require_signature=self._signatures is not None,
                model_types=frozenset({*MODEL_TYPES, "auto"}),
                generation=lambda: self.pursuit.generation,
            ),
            answering=Answering(
                self.journal, self.reporting, self.live, self.logbook, self.clock, on_status=self._count_status
            ),
            pursuit=self.pursuit,
            guard=self.guard,
            steps=lambda: Steps(ports, planner, soak_s=self.live.current.deployment.soak_s),
            runner=self.runner,
            reporting=self.reporting,
            keeper=self.keeper,
            losses=self.losses,
            clock=self.clock,
            total_s=lambda: self.live.current.deployment.total_s,
        )
        self.server.on_exit = lambda detail: self.engine.post(ServerLost(detail))

    def reboot(self) -> None:
        """End the process without a farewell; start the next one, whose server is empty and which connects anew."""
        self.journal.close()
        self.clock.advance(5.0)
        self._start()
        self.engine.recover()
        self.connect()

    def connect(self) -> None:
        """Connect anew; what the broker retains of operations comes along if it is asked for."""
        is_owed = self.losses.is_owed
        self.engine.post(Connected())
        if is_owed:
            self.engine.post(Overhearing(is_granted=True))
            for operation_id, payload in self.broker.retained_operations(TOPICS):
                self.engine.post(Remembered(operation_id, payload))

    def send(self, name: str, payload: dict[str, Any] | bytes, **properties: Any) -> list[str]:
        """Let a command arrive; the returned list gets a word when the agent acknowledges it."""
        acknowledged: list[str] = []
        raw = payload if isinstance(payload, bytes) else json.dumps({"schema": 1, **payload}).encode()
        message = CommandMessage(name, raw, acknowledge=lambda: acknowledged.append("ack"), **properties)
        self.engine.post(message)
        return acknowledged

    def want(self, generation: int, source: str = OWN, *, is_replayed: bool = False, **document: Any) -> list[str]:
        """Let a wanted state arrive; the returned list gets a word when the agent acknowledges it."""
        acknowledged: list[str] = []
        body = {"schema": 1, "generation": generation, **document}
        payload = json.dumps(body).encode()
        self.engine.post(DesiredMessage(source, payload, is_replayed, lambda: acknowledged.append("ack")))
        return acknowledged

    def deploy(self, operation_id: str, content: bytes = CONTENT, url: str = URL, **fields: Any) -> list[str]:
        """Send a deploy of ``content`` as model ``kanji``."""
        return self.send("deploy", deploy_body(operation_id, content, url, **fields))

    def settle(self) -> None:
        """Go on until nothing is left to do."""
        for _ in range(MAX_TURNS):
            self._drain()
            if not self.runner.pump():
                return
        raise AssertionError("the engine does not come to rest")

    def go_to(self, operation_id: str, phase: Phase) -> None:
        """Go on until the operation has entered ``phase`` and its step is about to be taken."""
        for _ in range(MAX_TURNS):
            self._drain()
            if self.record(operation_id).phase is phase:
                return
            assert self.runner.pump(), f"{operation_id} came to rest as {self.record(operation_id)}"
        raise AssertionError(f"{operation_id} never reached {phase}")

    def watch_for(self, seconds: float) -> None:
        """Let time pass with a look at the memory every ``LOOK_S``; what follows from one is done before the next."""
        for _ in range(round(seconds / LOOK_S)):
            self.clock.advance(LOOK_S)
            self.lookout.look()
            self.settle()

    def record(self, operation_id: str) -> Operation:
        """Return the journal's record of an operation."""
        operation = self.journal.operation(operation_id)
        assert operation is not None, f"the journal knows no {operation_id}"
        return operation

    def report(self, operation_id: str) -> Any:
        """Return what the broker retains of an operation."""
        return self.broker.retained(TOPICS.operation(operation_id))

    def states(self, operation_id: str) -> list[tuple[str, str | None]]:
        """Return what was reported of an operation, in order."""
        return self.broker.states(TOPICS.operation(operation_id))

    def serving(self) -> str | None:
        """Return the release of ``kanji`` in the journal, the same as the server answers with and as is reported."""
        item = self.journal.served().get("kanji")
        told = (self.broker.retained(TOPICS.reported) or {"models": {}})["models"].get("kanji")
        current = item.current if item else None
        assert self.server.answers().get("kanji") == (current.id if current else None)
        assert (told and (told["version"], told["method"])) == (current and (current.version, current.method))
        return current.id if current else None

    def _facts(self, served: Mapping[str, Served]) -> dict[str, Any]:
        capabilities: dict[str, Any] = {"methods": {}, "model_types": [], "versions": {}}
        wanted = self.pursuit.facts(served)
        return {"memory": {}, "trust": {}, "config": self.live.overrides(), "capabilities": capabilities, **wanted}

    def _drain(self) -> None:
        while not self.engine._inbox.is_empty():
            self.engine.turn(wait_s=0)

    def _count_status(self) -> None:
        self.statuses += 1


def deploy_body(operation_id: str, content: bytes = CONTENT, url: str = URL, **fields: Any) -> dict[str, Any]:
    """Return a deploy of ``content`` as model ``kanji``."""
    artifact = {"url": url, "sha256": sha256(content), "size": len(content)}
    return {"id": operation_id, "model": "kanji", "artifact": artifact, **fields}
