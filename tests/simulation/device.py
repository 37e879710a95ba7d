"""One device of a simulated fleet: the agent's own engine, journal, store and transport, and nothing that computes.

What a fleet is made of is real: every state machine, every commit (on a file system in memory), every message over a
real broker, with the session, the will and the acknowledgements of the product. Only what a device does for itself,
quantizing and answering, is left out; those fakes obey the same contract tests as what they stand for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from agent.adapters.artifacts import ArtifactStore
from agent.adapters.clock import SystemClock
from agent.adapters.journal import SqliteJournal
from agent.adapters.mqtt import MqttTransport
from agent.contract.manifest import Identity
from agent.contract.topics import Topics
from agent.core import Core
from agent.deployment.inbox import Stop
from agent.deployment.limits import LimitedDevice
from agent.deployment.ports import Ports
from agent.deployment.runner import Runner
from agent.health.reporter import HealthReporter
from agent.live import LiveSettings
from agent.logbook import Logbook
from agent.planning.methods import METHODS
from agent.planning.model_types import MODEL_TYPES
from agent.planning.plan import Policy
from agent.settings import Deployment, Health, Mqtt, Settings, Trust
from tests.fakes.device import GOOD_GATE, FakeBuilder, FakeDevice, FakeLessons, FakeSources, FakeTrust
from tests.fakes.server import FakeServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.adapters.broker import Broker

PREFIX = "edge/v1"
RESERVE_BYTES = 1 << 20


class SetClock(SystemClock):
    """The system's clock, taken for synchronised: many machines that simulate are not."""

    def is_synchronised(self) -> bool:
        return True


class SimulatedDevice:
    """One device.

    Args:
        name: its id.
        root: its disk.
        broker: where to connect.
        groups: its groups.
        files: content by URL, what there is to fetch.
        fails: a method that fails its gate here, None for a device on which all work.
        interval_s: of its health.
        soak_s: of a trial that says nothing of it.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        broker: Broker,
        *,
        groups: Sequence[str],
        files: Mapping[str, bytes],
        fails: str | None,
        interval_s: float,
        soak_s: float,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._groups = groups
        settings = Settings(
            device_id=name,
            mqtt=Mqtt(groups=tuple(groups)),
            trust=Trust(require_signature=False),
            deployment=Deployment(soak_s=soak_s),
            health=Health(interval_s=interval_s),
        )
        clock, topics = SetClock(), Topics(PREFIX, name)
        sources, server, builder = FakeSources(), FakeServer(), FakeBuilder()
        sources.files.update(files)
        if fails is not None:
            builder.gates[fails] = {**GOOD_GATE, "agreement": 0.31, "inputs": "dataset"}
        self._journal = SqliteJournal(root / "journal.db")
        live = LiveSettings(settings, self._journal.config())
        device = LimitedDevice(FakeDevice(), reserve_bytes=live.reserve_bytes, limit_bytes=live.limit_bytes)
        self._transport = MqttTransport(
            broker,
            topics,
            self._journal,
            clock,
            boot_id="simulated",
            agent="0",
            groups=groups,
            overhears=lambda: self._core.losses.is_owed,
            post=lambda message: self._core.engine.post(message),  # noqa: PLW0108 - made below
        )
        self._runner = Runner()
        store = ArtifactStore(root, RESERVE_BYTES)
        self._core = Core(
            live,
            Ports(clock, sources, store, builder, device, server, FakeLessons()),
            journal=self._journal,
            transport=self._transport,
            signatures=FakeTrust(),
            logs=Logbook(),
            runner=self._runner,
            server_runner=self._runner,
            topics=topics,
            identity=Identity(name, frozenset(groups)),
            boot_id="simulated",
            agent="0",
            model_types=frozenset({*MODEL_TYPES, "auto"}),
            policy=lambda: live.policy(Policy().matrix),
            facts=self._facts,
        )
        self._health = HealthReporter(
            topics,
            self._transport,
            clock,
            interval_s=lambda: live.current.health.interval_s,
            state_dir=root,
            device=device.facts,
            server=server.status,
            engine=lambda: self._core.health(alarms=self._transport.alarms, server_starts=1),
            relaxations=(),
        )
        self._thread = threading.Thread(target=self._core.engine.run, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        """Begin, as the supervisor does."""
        self._runner.start()
        self._core.engine.recover()
        self._transport.start()
        self._health.start()
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye and end."""
        self._core.engine.post(Stop())
        self._thread.join(10.0)
        self._health.stop()
        self._runner.stop(10.0)
        self._transport.stop("shutdown")
        self._journal.close()

    def _facts(self) -> dict[str, Any]:
        capabilities: dict[str, Any] = {
            "methods": {name: {"ok": True} for name in METHODS},
            "model_types": sorted(MODEL_TYPES),
            "versions": {"nibbled": "0"},
            "hardware": "simulated",
            "groups": list(self._groups),
            "labels": {},
        }
        return {"memory": {}, "trust": {}, "capabilities": capabilities}
