"""Collects the state of health and publishes it at an interval; the page and the metrics read the same body."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import structlog

from agent.contract import reports
from agent.devices import system

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agent.contract.topics import Topics
    from agent.deployment.ports import Clock, Transport

log = structlog.get_logger("health")
JsonObject = dict[str, Any]
_MODES = {
    "last_good": "the server kept dying: the releases before are served (mode last_good)",
    "safe": "the server kept dying: nothing is served (mode safe)",
}


class HealthReporter:
    """Publishes health until it is stopped.

    Args:
        topics, transport, clock: where to and when.
        interval_s: returns the seconds between two reports, give or take a tenth, as configured now.
        state_dir: whose file system is watched.
        device: returns the device's facts.
        server: returns the server's status, or raises.
        engine: returns ``mode``, what is ``served``, the open ``operations``, the ``alarms``, a sentence each, as
            ``problem`` why what is served may not answer, None if there is no reason, and ``is_starting``: whether
            what was served before the start is being loaded for the first time.
        relaxations: security settings that were relaxed on purpose.
        on_alarms: hears of the alarms at every report.
    """

    def __init__(
        self,
        topics: Topics,
        transport: Transport,
        clock: Clock,
        *,
        interval_s: Callable[[], float],
        state_dir: Path,
        device: Callable[[], JsonObject],
        server: Callable[[], JsonObject],
        engine: Callable[[], JsonObject],
        relaxations: tuple[str, ...],
        on_alarms: Callable[[Sequence[str]], None] = lambda _alarms: None,
    ) -> None:
        self._topics = topics
        self._transport = transport
        self._clock = clock
        self._interval_s = interval_s
        self._state_dir = state_dir
        self._device = device
        self._server = server
        self._engine = engine
        self._relaxations = relaxations
        self._on_alarms = on_alarms
        self._stop = threading.Event()
        self._now = threading.Event()
        self._body: JsonObject = {"status": "starting", "reasons": []}
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    @property
    def body(self) -> JsonObject:
        """The last state of health."""
        return self._body

    def start(self) -> None:
        """Start reporting."""
        self._thread.start()

    def report_now(self) -> None:
        """Report without waiting for the interval: something changed, or somebody asked."""
        self._now.set()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Stop reporting."""
        self._stop.set()
        self._now.set()
        self._thread.join(timeout_s)

    def collect(self) -> JsonObject:
        """Return the state of health now. Never raises: what cannot be read is a reason."""
        reasons: list[str] = []
        device = _try(self._device, "device", reasons)
        server = _try(self._server, "server", reasons)
        engine = dict(self._engine())
        pid, problem, is_starting = server.get("pid"), engine.pop("problem"), engine.pop("is_starting")
        missing = [name for name in engine["served"] if name not in server.get("models", {})]
        if engine["mode"] in _MODES:
            reasons.append(_MODES[engine["mode"]])
        if missing and engine["mode"] != "safe":
            reasons.append(f"{', '.join(missing)}: no answer, {problem or _switched(engine) or 'the server lacks it'}")
        reasons += engine["alarms"]
        reasons += [f"relaxed: {name}" for name in self._relaxations]
        is_failing = engine["mode"] == "safe" or bool(missing and not is_starting)  # no alarm for every start
        return {
            "status": "failing" if is_failing else "degraded" if reasons else "ok",
            "reasons": reasons,
            "device": device,
            "cpu": system.load(),
            "disk": system.disk(self._state_dir),
            "relaxations": list(self._relaxations),
            "clock_synchronised": self._clock.is_synchronised(),
            "models": server.get("models", {}),
            "supervisor_rss_bytes": system.resident_bytes(),
            "server_rss_bytes": system.resident_bytes(pid) if pid else None,
            "server_pid": pid,
            **engine,
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._publish()
            except Exception:
                log.exception("health_failed")
            jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads a fleet's reports
            self._now.wait(self._interval_s() * jitter)
            self._now.clear()

    def _publish(self) -> None:
        self._body = body = self.collect()
        at, interval_s = self._clock.now(), self._interval_s()
        self._transport.publish(reports.health(self._topics, body, interval_s=interval_s, at=at))
        numbers = flat_numbers(body)
        self._transport.publish(reports.telemetry(self._topics, numbers, interval_s=interval_s, at=at))
        self._on_alarms(body["alarms"])


def flat_numbers(body: JsonObject) -> dict[str, float]:
    """Return the numbers that collectors plot, with units in their names."""
    memory = (body.get("device") or {}).get("memory", {})
    models: JsonObject = body.get("models", {})
    numbers: dict[str, float | None] = {
        "supervisor_rss_bytes": body.get("supervisor_rss_bytes"),
        "server_rss_bytes": body.get("server_rss_bytes"),
        "memory_available_bytes": memory.get("available_bytes"),
        "memory_total_bytes": memory.get("total_bytes"),
        "disk_free_bytes": (body.get("disk") or {}).get("free_bytes"),
        "models_served": len(models),
        "requests": sum(model["requests"] for model in models.values()),
        "failures": sum(model["failures"] for model in models.values()),
        "open_operations": len(body.get("operations", ())),
        "relaxations": len(body.get("relaxations", ())),
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _try(read: Callable[[], JsonObject], what: str, reasons: list[str]) -> JsonObject:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - a broken witness is a reason, not an end
        reasons.append(f"{what}: {getattr(error, 'detail', error)}")  # the code of a StepError belongs to operations
        return {}


def _switched(engine: JsonObject) -> str | None:
    """Return which operation may have taken a model away for the moment, in words."""
    running = [each for each in engine["operations"] if each["state"] == "running"]
    return f"operation {running[0]['id']} is {running[0]['phase']}" if running else None
