"""The supervisor process: builds the parts, connects them, starts and stops them in order. No logic of its own.

Order of shutdown: no new commands, the running step is stopped (the journal lets it go on at the next start), the
server drains, the broker hears ``offline``.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import structlog

import agent
from agent import parts, self_test, status_site
from agent.adapters import identity, systemd
from agent.adapters.artifacts import ArtifactStore
from agent.adapters.builder import BuilderProcess
from agent.adapters.clock import SystemClock
from agent.adapters.journal import open_journal
from agent.adapters.lessons import LessonFile
from agent.adapters.mqtt import MqttTransport
from agent.adapters.mqtt_expiry import ExpiredStates
from agent.adapters.processes import give_memory_back, use_one_arena
from agent.adapters.server import ServerProcess
from agent.adapters.signatures import KeyDirectory
from agent.adapters.sockets import listen_unix
from agent.contract.manifest import Identity
from agent.contract.topics import Topics
from agent.core import Core
from agent.deployment.admission import terms
from agent.deployment.inbox import CapabilitiesKnown, ServerLost, Stop
from agent.deployment.limits import LimitedDevice
from agent.deployment.planner import budget_for
from agent.deployment.ports import Ports
from agent.deployment.reporting import describe_operation, describe_served
from agent.deployment.runner import Runner
from agent.devices import system
from agent.devices.probe import DeviceProbe
from agent.health.board import Board
from agent.health.meter import Meter
from agent.health.reporter import HealthReporter
from agent.health.sections import sections
from agent.health.sentence import sentence
from agent.health.trail import AlarmTrail, teller
from agent.health.trying import World
from agent.live import LiveSettings
from agent.logbook import Logbook
from agent.settings import fixed_by_environment
from agent.status_site import OverheardTransport

if TYPE_CHECKING:
    from pathlib import Path

    from agent.deployment.models import Release
    from agent.health.web import StatusSite
    from agent.settings import Settings

log = structlog.get_logger("supervisor")
FIRST_MODELS_S = 60.0
"""How long the self-test waits for what was served before to be served again."""
STOP_MARGIN_S = 30.0
"""What stopping may take besides the drain: the step that is interrupted, a last report, a journal on a slow card."""


class Supervisor:
    """The agent, assembled from a configuration.

    Args:
        settings: as configured.
        logbook: what the log is kept in.

    Raises:
        StartError: when a port is taken or the state directory cannot be used.
    """

    def __init__(self, settings: Settings, logbook: Logbook | None = None) -> None:
        use_one_arena()
        self._logbook = logbook or Logbook()
        self._settings = settings
        state_dir = parts.prepare(settings.state_dir)
        self._claim = parts.claim(state_dir)
        self._control_path = state_dir / "run" / "control.sock"
        self._http, self._control = parts.listen(settings.serving), parts.listen_control(self._control_path)
        self._grpc = parts.listen_grpc(settings.serving)
        self._url = parts.inference_url(self._http, settings.serving)
        self._logbook.keep_in(state_dir / "logs" / "agent.jsonl")
        self._clock = SystemClock()
        self._matrix = parts.matrix(settings)
        self._topics = Topics(settings.mqtt.topic_prefix, settings.device_id)
        self._board = Board(self._topics, self._shown)
        self._journal = open_journal(state_dir / "journal.db", self._board.hear)
        self._live = LiveSettings(settings, self._journal.config(), fixed=fixed_by_environment())
        self._keys = KeyDirectory(settings.trust.keys_dir)
        self._relaxations = parts.relaxations(settings)
        self._builder = BuilderProcess(settings.deployment.build_threads)
        live = self._live
        self._probe = DeviceProbe(
            reserve_bytes=live.reserve_bytes(), limit_bytes=None, self_test=lambda: self_test.run(self._builder)
        )
        self._device = LimitedDevice(self._probe, reserve_bytes=live.reserve_bytes, limit_bytes=live.limit_bytes)
        self._boot_id = system.boot_id()
        self._server = self._make_server()
        self._transport = self._make_transport()
        self._expired = ExpiredStates(self._journal, self._topics, self._clock, is_owed=settings.mqtt.protocol != "5")
        self._told = OverheardTransport(self._transport, self._board.hear)
        self._runner = Runner(name="steps", after=give_memory_back)
        self._server_runner = Runner(name="server-steps")
        self._store = ArtifactStore(state_dir, settings.downloads.disk_reserve)
        self._hardware = parts.hardware()
        self._core = self._make_core(state_dir)
        trail = teller(self._journal, self._core.reporting, self._transport)
        self._alarms = AlarmTrail(trail, own=lambda: self._core.guard.alarms)
        self._health = self._make_health(state_dir)
        self._meter = Meter(lambda: self._server.status(timeout_s=2.0), self._clock.monotonic)
        self._page_access = status_site.access(settings)
        self._is_stopping = False
        self._has_restored = threading.Event()
        self._site = self._make_site()
        self._testing = threading.Thread(target=self._learn_capabilities, name="self-test", daemon=True)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._core.engine.post(Stop()))
        addresses = {"inference": self._url, "grpc": parts.address(self._grpc)}
        log.info("starting", device=self._settings.device_id, agent=agent.__version__, **addresses)
        for detail in parts.differing_names(self._settings):
            log.warning("identity_differs", detail=detail, hint=identity.NEXT_STEP)
        self._runner.start()
        self._server_runner.start()
        self._core.engine.recover()
        self._transport.start()
        self._health.start()
        self._testing.start()
        self._core.lookout.start()
        if self._site is not None:
            self._site.start()
            log.info("page", url=self._site.url)
        systemd.notify("READY=1")
        watchdog = systemd.Watchdog(is_well=lambda: self._server.is_well)
        status = systemd.StatusLine(self._sentence)

        def turned() -> None:
            watchdog.feed()
            status.look()
            if self._expired.look():
                self._transport.flush()

        try:
            self._core.engine.run(turned)
        finally:
            self._stop()

    def _stop(self) -> None:
        log.info("stopping")
        drain_s = self._settings.serving.drain_s
        systemd.notify("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int((drain_s + STOP_MARGIN_S) * 1e6)}")
        self._is_stopping = True
        self._core.engine.interrupt_steps()
        self._core.keeper.stop()
        self._core.lookout.stop()
        self._health.stop()
        self._server.stop(drain_s)
        have_ended = [runner.stop(timeout_s=10.0) for runner in (self._server_runner, self._runner)]
        if not all(have_ended):
            log.warning("step_abandoned")
        self._transport.stop("shutdown")
        if self._site is not None:
            self._site.stop()
        self._journal.close()
        self._control.close()
        self._control_path.unlink(missing_ok=True)
        if self._claim is not None:
            self._claim.close()
        log.info("stopped")
        self._logbook.close()

    def _make_server(self) -> ServerProcess:
        return ServerProcess(
            self._http,
            self._control,
            self._control_path,
            listen=listen_unix,
            grpc=self._grpc,
            options=parts.server_options(self._settings.serving, self._settings.state_dir / "artifacts"),
            silence_s=self._settings.serving.silence_s,
            on_exit=lambda detail: self._core.engine.post(ServerLost(detail)),
            terms=self._terms,
        )

    def _terms(self, model: str, release: Release) -> dict[str, Any]:
        budget, served = self._device.last_budget(), self._journal.served()
        return terms(parts.wanted(self._settings.serving), budget and budget_for(model, budget, served), release)

    def _make_transport(self) -> MqttTransport:
        return MqttTransport(
            parts.broker(self._settings),
            self._topics,
            self._journal,
            self._clock,
            boot_id=self._boot_id,
            agent=agent.__version__,
            groups=self._settings.mqtt.groups,
            overhears=lambda: self._core.losses.is_owed,
            post=lambda message: self._core.engine.post(message),  # noqa: PLW0108 - the engine is made later
        )

    def _make_ports(self, state_dir: Path) -> Ports:
        lessons = LessonFile(state_dir / "learned.json")
        downloader = parts.downloader(self._settings, self._live.download_rate)
        return Ports(self._clock, downloader, self._store, self._builder, self._device, self._server, lessons)

    def _make_core(self, state_dir: Path) -> Core:
        settings = self._settings
        return Core(
            self._live,
            self._make_ports(state_dir),
            journal=self._journal,
            transport=self._told,
            signatures=self._keys,
            logs=self._logbook,
            runner=self._runner,
            server_runner=self._server_runner,
            topics=self._topics,
            identity=Identity(settings.device_id, frozenset(settings.mqtt.groups), self._hardware),
            boot_id=self._boot_id,
            agent=agent.__version__,
            model_types=parts.known_types(),
            policy=lambda: self._live.policy(self._matrix),
            facts=self._facts,
            on_serving=self._on_serving,
            on_status=lambda: self._health.report_now(),  # noqa: PLW0108 - made later
        )

    def _make_health(self, state_dir: Path) -> HealthReporter:
        return HealthReporter(
            self._topics,
            self._told,
            self._clock,
            interval_s=lambda: self._live.current.health.interval_s,
            state_dir=state_dir,
            device=self._device.facts,
            server=self._server.status,
            engine=self._engine_facts,
            relaxations=self._relaxations,
            on_alarms=self._alarms.look,
        )

    def _make_site(self) -> StatusSite | None:
        world = World(
            served=lambda: self._core.keeper.selected(self._journal.served()),
            server=self._server,
            store=self._store,
            device=self._device,
            builder=self._builder,
            submit=self._runner.submit,
            is_busy=lambda: (
                self._is_stopping or any(not each.is_deferred for each in self._core.engine.open_operations)
            ),
            target=self._settings.serving.device,
        )
        return status_site.make(
            self._settings,
            self._status,
            access=self._page_access,
            board=self._board,
            world=world,
            post=self._core.engine.post,
        )

    def _on_serving(self) -> None:
        self._has_restored.set()
        self._health.report_now()

    def _learn_capabilities(self) -> None:
        if self._journal.served():
            # Both load torch, which takes memory, and seconds of a core: who serves goes first.
            self._has_restored.wait(FIRST_MODELS_S)
        if self._is_stopping:
            return
        log.info("self_test_started")
        self._probe.self_test()
        self._device.budget()  # looked at here, so that no report has to wait for a driver
        self._core.engine.post(CapabilitiesKnown())

    def _facts(self) -> dict[str, Any]:
        tested, budget = self._probe.tested, self._device.last_budget()
        return {
            "memory": budget.to_json() if budget else {},
            "trust": {"require_signature": self._settings.trust.require_signature},
            "capabilities": parts.capabilities(self._settings, tested, self._hardware),
        }

    def _engine_facts(self) -> dict[str, Any]:
        alarms = [*self._transport.alarms, *self._keys.problems()]
        return self._core.health(alarms=alarms, server_starts=self._server.starts)

    def _sentence(self) -> str:
        operations, mode = self._core.engine.open_operations, str(self._core.keeper.mode)
        is_connected, is_restoring = self._transport.is_connected, self._core.keeper.is_restoring
        return sentence(self._health.body, operations, mode, is_connected=is_connected, is_restoring=is_restoring)

    def _status(self) -> dict[str, Any]:
        current = self._journal.served()
        served = self._core.keeper.selected(current)
        return {
            "device_id": self._settings.device_id,
            "agent": agent.__version__,
            "broker": f"{self._settings.mqtt.host}:{self._settings.mqtt.port}",
            "connection": {"connected": self._transport.is_connected, "echo": self._transport.is_echoed},
            "inference": self._url,
            "health": self._health.body,
            "models": {name: describe_served(item, current[name].current) for name, item in served.items()},
            "operations": [describe_operation(each) for each in self._journal.recent_operations(20)],
        }

    def _shown(self) -> dict[str, Any]:
        budget, tested = self._device.last_budget(), self._probe.tested
        usable = [name for name, found in tested.methods.items() if found["ok"]] if tested else []
        return sections(
            self._status(),
            live=self._meter.look(),
            memory=budget.to_json() if budget else {},
            more={"methods": usable, "access": self._page_access.to_json()},
        )
