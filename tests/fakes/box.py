"""A whole device: the real engine, journal and store among fakes, driven step by step by the test."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from agent.adapters.artifacts import ArtifactStore
from agent.contract.desired import OWN, DesiredMessage, HaltMessage, RetainedMessage
from agent.contract.manifest import Identity
from agent.contract.topics import Topics
from agent.core import Core
from agent.deployment.inbox import Connected, Echoed, Overhearing, Remembered, ServerLost
from agent.deployment.intake import CommandMessage
from agent.deployment.limits import LimitedDevice
from agent.deployment.ports import Ports
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
    from pathlib import Path

    from agent.deployment.machine import Operation
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
        self.quiet_s = 0.0
        self.connections = 0
        self.retained: dict[tuple[type[RetainedMessage], str], bytes] = {}
        self.statuses = 0
        self.answered: deque[dict[str, str]] = deque(maxlen=20)
        self.logbook = Logbook()
        self._start()

    def _start(self) -> None:
        self.runner = InlineRunner()
        self.server = FakeServer()
        self.journal = FaultyJournal(self._root / "journal.db")
        self.store = ArtifactStore(self._root)
        self.transport = RecordingTransport(self.journal, self.broker, self.connections)
        trust = self.settings.trust.model_copy(update={"require_signature": self._signatures is not None})
        settings = self.settings.model_copy(update={"trust": trust})
        self.live = LiveSettings(settings, self.journal.config(), fixed=self.fixed)
        device = LimitedDevice(self.device, reserve_bytes=self.live.reserve_bytes, limit_bytes=self.live.limit_bytes)
        self.core = core = Core(
            self.live,
            Ports(self.clock, self.sources, self.store, self.builder, device, self.server, self.lessons),
            journal=self.journal,
            transport=self.transport,
            signatures=self._signatures or FakeTrust(),
            logs=self.logbook,
            runner=self.runner,
            server_runner=self.runner,
            topics=TOPICS,
            identity=Identity("box-1"),
            boot_id="boot",
            agent="0",
            model_types=frozenset({*MODEL_TYPES, "auto"}),
            policy=lambda: self.policy,
            facts=self._facts,
            on_serving=lambda: self.answered.append(self.server.answers()),
            on_status=self._count_status,
            quiet_s=self.quiet_s,
        )
        self.engine, self.keeper, self.guard = core.engine, core.keeper, core.guard
        self.lookout, self.losses = core.lookout, core.losses
        self.server.on_exit = lambda detail: self.engine.post(ServerLost(detail))

    def reboot(self) -> None:
        """End the process without a farewell; start the next one, whose server is empty and which connects anew."""
        self.journal.close()
        self.clock.advance(5.0)
        self._start()
        self.engine.recover()
        self.connect()

    def connect(self) -> None:
        """Connect anew; what the broker retains of groups and, if it is asked for, of operations comes along."""
        is_owed = self.losses.is_owed
        self.connections += 1
        self.transport.number = self.connections
        self.engine.post(Connected())
        for kind in (HaltMessage, DesiredMessage):  # in the order in which they are subscribed to
            for group in self.settings.mqtt.groups:
                if (kind, group) in self.retained:
                    self._tell(kind, group, self.retained[kind, group], is_replayed=True)
        self.engine.post(Echoed(self.connections))
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
        """Let a wanted state arrive; the returned list gets a word when the agent acknowledges it.

        Of a group it is retained, and reaches a device without a connection with the next one.
        """
        payload = json.dumps({"schema": 1, "generation": generation, **document}).encode()
        return self._publish(DesiredMessage, source, payload, is_replayed=is_replayed)

    def halt(self, group: str, halt: dict[str, Any] | bytes | None = None, **fields: Any) -> list[str]:
        """Let a group's halt arrive, by its fields or as it is, or its end for ``b""``; as ``want`` does."""
        payload = halt if isinstance(halt, bytes) else json.dumps({"schema": 1, **(halt or {}), **fields}).encode()
        return self._publish(HaltMessage, group, payload)

    def _publish(
        self, kind: type[RetainedMessage], source: str, payload: bytes, *, is_replayed: bool = False
    ) -> list[str]:
        if source != OWN:
            self.retained[kind, source] = payload
            if not payload:
                del self.retained[kind, source]
        if source != OWN and not self.transport.is_connected:
            return []
        return self._tell(kind, source, payload, is_replayed=is_replayed)

    def _tell(self, kind: type[RetainedMessage], source: str, payload: bytes, *, is_replayed: bool) -> list[str]:
        acknowledged: list[str] = []
        heard = kind(source, payload, is_replayed, lambda: acknowledged.append("ack"), self.connections)
        self.engine.post(heard)
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

    def _facts(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"hardware": None, "groups": [], "labels": {}}
        capabilities: dict[str, Any] = {"methods": {}, "model_types": [], "versions": {}, **identity}
        return {"memory": {}, "trust": {}, "capabilities": capabilities}

    def _drain(self) -> None:
        while not self.engine._inbox.is_empty():
            self.engine.turn(wait_s=0)

    def _count_status(self) -> None:
        self.statuses += 1


def deploy_body(operation_id: str, content: bytes = CONTENT, url: str = URL, **fields: Any) -> dict[str, Any]:
    """Return a deploy of ``content`` as model ``kanji``."""
    artifact = {"url": url, "sha256": sha256(content), "size": len(content)}
    return {"id": operation_id, "model": "kanji", "artifact": artifact, **fields}
