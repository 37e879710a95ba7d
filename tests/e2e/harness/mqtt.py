"""Debian's broker and its two command-line clients. No MQTT library: an operator with a shell sees the same."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.e2e.harness.feed import Feed
from tests.e2e.harness.tools import require

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JsonObject = dict[str, Any]
HOST = "127.0.0.1"
END_S = 60.0


@dataclass(frozen=True)
class Message:
    """One message as a subscriber got it."""

    topic: str
    text: str
    is_retained: bool

    @property
    def body(self) -> JsonObject:
        """The payload as a JSON object."""
        value: JsonObject = json.loads(self.text)
        return value


class Broker:
    """Mosquitto on a free port of the loopback interface, with its database in ``directory``.

    Args:
        directory: for its files.
        settings: lines for its configuration.
    """

    def __init__(self, directory: Path, settings: str = "") -> None:
        self.port = free_port()
        self._program = require("mosquitto")
        self._database = directory / "mosquitto.db"
        self._config = directory / "mosquitto.conf"
        owner = pwd.getpwuid(os.geteuid()).pw_name
        self._config.write_text(
            f"listener {self.port} {HOST}\nallow_anonymous true\nlog_dest stderr\nuser {owner}\n"
            f"persistence true\npersistence_location {directory}/\n{settings}",
            encoding="utf-8",
        )
        self._process: subprocess.Popen[str] | None = None
        self._log: Feed[str] | None = None

    def start(self) -> None:
        """Start and return once it serves: before its loop runs, mosquitto forgets a SIGTERM."""
        process = subprocess.Popen([self._program, "-c", str(self._config)], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        self._process, self._log = process, Feed(process.stderr, str, "mosquitto")
        self._log.wait(lambda line: " running" in line, timeout_s=END_S)
        publish(self.port, "harness/started", "now")

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None and self._log is not None:
            end(self._process)
            self._log.join()

    def save(self) -> None:
        """Write the database now, as ``autosave_interval`` does."""
        assert self._process is not None, "the broker was not started"
        self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End it with SIGKILL: what its database says is what was saved last."""
        assert self._process is not None, "the broker was not started"
        assert self._log is not None, "the broker was not started"
        self._process.kill()
        self._process.wait(END_S)
        self._log.join()

    def wipe(self) -> None:
        """Forget every retained message and session; it must have been ended."""
        self._database.unlink(missing_ok=True)


class Subscriber:
    """``mosquitto_sub`` on everything that the broker has."""

    def __init__(self, port: int) -> None:
        marker = f"harness/{uuid.uuid4().hex}"
        publish(port, marker, "subscribed", is_retained=True)
        command = [require("mosquitto_sub"), "-h", HOST, "-p", str(port), "-t", "#", "-q", "1"]
        self._process = subprocess.Popen([*command, "-F", "%j"], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._feed = Feed(self._process.stdout, parse, "mosquitto_sub")
        self._feed.wait(lambda message: message.topic == marker, timeout_s=END_S)

    def mark(self) -> int:
        """Return a position: ``since`` of what comes from now on."""
        return self._feed.mark()

    def all(self, *, since: int = 0) -> list[Message]:
        """Return everything that came since a mark, whatever the topic."""
        return self._feed.since(since)

    def on(self, topic: str, *, since: int = 0) -> list[JsonObject]:
        """Return the bodies of what came on ``topic`` since a mark."""
        return [message.body for message in self._feed.since(since) if message.topic == topic and message.text]

    def wait(
        self,
        topic: str,
        wanted: Callable[[JsonObject], bool] = lambda _body: True,
        *,
        since: int = 0,
        timeout_s: float = 60.0,
    ) -> JsonObject:
        """Return the first body on ``topic`` that is wanted."""
        return self.wait_message(topic, wanted, since=since, timeout_s=timeout_s).body

    def wait_message(
        self,
        topic: str,
        wanted: Callable[[JsonObject], bool] = lambda _body: True,
        *,
        since: int = 0,
        timeout_s: float = 60.0,
    ) -> Message:
        """Return the first message on ``topic`` whose body is wanted."""
        return self._feed.wait(
            lambda message: message.topic == topic and bool(message.text) and wanted(message.body),
            since=since,
            timeout_s=timeout_s,
            about=lambda message: message.topic == topic,
        )

    def wait_text(self, wanted: Callable[[Message], bool], *, since: int = 0, timeout_s: float = 60.0) -> Message:
        """Return the first message since a mark that is wanted, whether it has a body or not."""
        return self._feed.wait(wanted, since=since, timeout_s=timeout_s)

    def close(self) -> None:
        """Disconnect."""
        end(self._process)
        self._feed.join()


def end(process: subprocess.Popen[str]) -> None:
    """Terminate a process, by force if it does not heed."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def publish(port: int, topic: str, payload: str, *, is_retained: bool = False) -> None:
    """Publish with ``mosquitto_pub``, QoS 1."""
    _publish(port, topic, "-s", *(["-r"] if is_retained else []), payload=payload)


def clear(port: int, topic: str) -> None:
    """Make the broker forget what it retains on ``topic``."""
    _publish(port, topic, "-r", "-n")


def _publish(port: int, topic: str, *options: str, payload: str = "") -> None:
    program = require("mosquitto_pub")
    command = [program, "-h", HOST, "-p", str(port), "-t", topic, "-q", "1", *options]
    subprocess.run(command, input=payload, text=True, check=True, timeout=END_S)


def take_over(port: int, client_id: str) -> None:
    """Connect under another client's name: the broker ends that one's connection, which keeps its session."""
    program = require("mosquitto_pub")
    command = [program, "-h", HOST, "-p", str(port), "-V", "5", "-i", client_id, "-c", "-x", "60"]
    subprocess.run([*command, "-t", "taken/over", "-n"], check=True, timeout=END_S)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def parse(line: str) -> Message:
    """Return the message that a line of `mosquitto_sub -F %j` tells."""
    told = json.loads(line)
    return Message(told["topic"], told.get("payload") or "", bool(told["retain"]))
