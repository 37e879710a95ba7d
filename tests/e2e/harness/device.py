"""The real agent as a process of its own, with a state directory, a log, and nothing shared with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.harness.feed import Feed
from tests.e2e.harness.processes import Process, held_descendants

JsonObject = dict[str, Any]
ROOT = Path(__file__).parents[3]
"""Where ``python -m`` finds both the agent and modules of the tests."""
START_S, STOP_S = 120.0, 30.0
BUILDER, SERVER = "agent.quantization", "agent.serving"
SOAK_S = 0.5

_CONFIG = """\
device_id = "{device_id}"
state_dir = "{directory}/state"
[mqtt]
port = {broker_port}
[serving]
http_port = 0
device = "cpu"
drain_s = 2
[status]
enabled = false
[downloads]
allowed_schemes = ["http"]
allowed_hosts = ["127.0.0.1"]
[trust]
keys_dir = "{keys_dir}"
[memory]
reserve = "64MiB"
[health]
interval_s = 1
[deployment]
soak_s = {soak_s}
[logging]
format = "json"
"""


@dataclass
class Agent:
    """One device.

    Attributes:
        device_id: its name on the broker.
        directory: its own.
        broker_port, keys_dir: whom it talks to and trusts.
        module: what is started with ``python -m``.
        environment: added to this process's, such as ``NIBBLED_…``.
        url: base of the inference API while it runs.
        popen: starts its process.
        root: where its package lies.
    """

    device_id: str
    directory: Path
    broker_port: int
    keys_dir: Path
    module: str = "agent"
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    popen: type[subprocess.Popen[str]] = subprocess.Popen
    root: Path = ROOT
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _log: Feed[JsonObject] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None, "the agent was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the supervisor lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; returns when it listens for inference, not yet for commands."""
        file = self.directory / "nibbled.toml"
        fields = {"device_id": self.device_id, "broker_port": self.broker_port, "keys_dir": self.keys_dir}
        file.write_text(_CONFIG.format(directory=self.directory, soak_s=SOAK_S, **fields), encoding="utf-8")
        command = [sys.executable, "-m", self.module, "run", "--config", str(file)]
        environment = {**os.environ, **self.environment}
        self._process = self.popen(command, stderr=subprocess.PIPE, text=True, cwd=self.root, env=environment)
        assert self._process.stderr is not None
        self._log = Feed(self._process.stderr, _parse, f"log of {self.device_id}")
        self.url = self.logged("starting", timeout_s=START_S)["inference"]

    def logged(self, event: str, *, since: int = 0, timeout_s: float = 60.0) -> JsonObject:
        """Return the first entry of this run's log with that name since a mark, waiting for it if need be."""
        assert self._log is not None, "the agent was not started"
        return self._log.wait(lambda entry: entry.get("event") == event, since=since, timeout_s=timeout_s)

    def mark(self) -> int:
        """Return a position in the log: ``since`` of what comes from now on."""
        assert self._log is not None, "the agent was not started"
        return self._log.mark()

    def log(self, *, since: int = 0) -> list[JsonObject]:
        """Return what this run has logged since a mark."""
        assert self._log is not None, "the agent was not started"
        return self._log.since(since)

    def children(self, module: str = "") -> list[Process]:
        """Return its descendants that run ``module``; all of them when none is named. The caller closes them."""
        return held_descendants(self.pid, module)

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: the end that nobody can prepare for."""
        self._end(signal.SIGKILL)

    def has_ended(self, timeout_s: float) -> bool:
        """Wait for the supervisor's end by itself and return whether it came."""
        assert self._process is not None, "the agent was not started"
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End it if it still runs."""
        if self.is_running:
            self.terminate()

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None, "the agent was not started"
        self._process.send_signal(number)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            if self._log is not None:
                self._log.join()


def _parse(line: str) -> JsonObject:
    """Return a log entry; what is no JSON (a traceback) keeps its text."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {"text": line}
    return entry if isinstance(entry, dict) else {"text": line}
