"""A fleet: a real mosquitto, processes full of simulated devices, and an observer that only listens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from tests.e2e.harness.mqtt import HOST, Broker
from tests.simulation.device import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

JsonObject = dict[str, Any]
PER_PROCESS = 50
"""Devices of one process: their threads share an interpreter, and hinder one another the more there are."""
TICKS = os.sysconf("SC_CLK_TCK")
SETTINGS = "sys_interval 1\nmax_queued_messages 0\n"


class Observer:
    """Listens to what devices tell; knows the last word of each, and counts.

    Args:
        port: of the broker.
    """

    def __init__(self, port: int) -> None:
        self.presence: dict[str, JsonObject] = {}
        self.reported: dict[str, JsonObject] = {}
        self.operations: dict[tuple[str, str], JsonObject] = {}
        self.broker: dict[str, float] = {}
        self.messages = 0
        self._news = threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(HOST, port)
        self._client.loop_start()

    def wait(self, is_done: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Return the seconds until ``is_done``; raises ``TimeoutError`` that says ``what`` did not come."""
        began = time.monotonic()
        with self._news:
            if not self._news.wait_for(is_done, timeout_s):
                raise TimeoutError(f"{what}: not after {timeout_s:.0f} s")
        return time.monotonic() - began

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, *_: object) -> None:
        client.subscribe([(f"{PREFIX}/+/{name}", 1) for name in ("presence", "reported", "op/+", "health")])
        client.subscribe([(f"$SYS/broker/{name}", 0) for name in ("retained messages/count", "heap/current")])

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        with self._news:
            if message.topic.startswith("$SYS/"):
                self.broker[message.topic.removeprefix("$SYS/broker/")] = float(message.payload)
                return
            self.messages += 1
            _, _, device, kind, *rest = message.topic.split("/")
            if not message.payload:
                return
            body = json.loads(message.payload)
            if kind == "presence":
                self.presence[device] = body
            elif kind == "reported":
                self.reported[device] = body
            elif kind == "op":
                self.operations[device, rest[0]] = body
            self._news.notify_all()


@dataclass
class Usage:
    """CPU seconds and resident bytes of processes at one moment."""

    cpu_s: float
    rss_bytes: int

    @classmethod
    def of(cls, pids: Sequence[int]) -> Usage:
        """Return what processes have used up to now."""
        cpu, rss = 0.0, 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += (int(fields[11]) + int(fields[12])) / TICKS
            rss += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        return cls(cpu, rss)


@dataclass
class Fleet:
    """Devices at a broker.

    Attributes:
        names: their ids.
        observer: what is known of them.
    """

    names: tuple[str, ...]
    broker: Broker
    observer: Observer
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """The processes of the devices."""
        return [process.pid for process in self.processes]

    @property
    def broker_pid(self) -> int:
        """The process of the broker."""
        process = self.broker._process
        assert process is not None
        return process.pid

    def start(self, directory: Path, **told: Any) -> None:
        """Start all devices; returns at once."""
        for first in range(0, len(self.names), PER_PROCESS):
            names = self.names[first : first + PER_PROCESS]
            argument = json.dumps({"names": names, "port": self.broker.port, "directory": str(directory), **told})
            command = [sys.executable, "-m", "tests.simulation.process", argument]
            self.processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            )

    def stop(self) -> None:
        """Let all devices say goodbye."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(60.0)

    def online(self) -> bool:
        """Whether every device is online, as far as was told."""
        presence = self.observer.presence
        return all(presence.get(name, {}).get("state") == "online" for name in self.names)

    def epochs(self) -> Mapping[str, int]:
        """Return the number of each device's connection."""
        return {name: int(body["epoch"]) for name, body in self.observer.presence.items()}


@contextlib.contextmanager
def fleet(count: int, directory: Path) -> Iterator[Fleet]:
    """Yield ``count`` devices that are not started, at a broker that runs."""
    broker = Broker(directory, SETTINGS)
    broker.start()
    names = tuple(f"sim-{number:04}" for number in range(count))
    found = Fleet(names, broker, Observer(broker.port))
    try:
        yield found
    finally:
        found.stop()
        found.observer.close()
        broker.stop()
