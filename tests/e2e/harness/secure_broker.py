"""The broker of ``deploy/mosquitto`` as shipped, on free ports, with certificates and passwords made for the test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.e2e.harness.feed import Feed
from tests.e2e.harness.mqtt import END_S, HOST, Message, end, free_port, parse
from tests.e2e.harness.tools import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHIPPED = Path(__file__).parents[3] / "deploy" / "mosquitto"
PEOPLE = ("operator", "fleet", "auditor")
PASSWORD = "canary-password"


class Issuer(Protocol):
    """Issues certificates; ``tests.fakes.authority`` does, and the scripts that are shipped."""

    @property
    def file(self) -> Path:
        """The authority's own certificate."""

    def issue(self, common_name: str, *, stem: str | None = None) -> tuple[Path, Path]:
        """Write ``stem.pem`` and ``stem.key`` and return both."""


class SecureBroker:
    """Mosquitto with TLS.

    Args:
        directory: its own.
        authority: issues its certificate and those of devices; it has another directory.
        replacing: what of the shipped configuration is changed besides paths and ports.
        adding: further shipped configuration by the name of its file, and what is changed there.
    """

    def __init__(
        self,
        directory: Path,
        authority: Issuer,
        replacing: Mapping[str, str] | None = None,
        *,
        adding: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._authority = authority
        self._directory = directory
        self.device_port, self.people_port = free_port(), free_port()
        authority.issue("localhost", stem="broker")
        issued = authority.file.parent
        for source in (*SHIPPED.glob("*.acl"), issued / "broker.pem", issued / "broker.key"):
            shutil.copy(source, directory)
        shutil.copy(authority.file, directory / "ca.pem")
        passwords = directory / "people.passwords"
        passwords.write_text("".join(f"{name}:{PASSWORD}\n" for name in PEOPLE))
        subprocess.run([require("mosquitto_passwd"), "-U", str(passwords)], check=True, timeout=END_S)
        owner = pwd.getpwuid(os.geteuid()).pw_name
        paths = {"/etc/mosquitto/nibbled": str(directory)}
        changes = {
            **(replacing or {}),
            **paths,
            "/var/lib/mosquitto/": f"{directory}/",
            "listener 8883": f"listener {self.device_port} {HOST}",
            "listener 8884": f"listener {self.people_port} {HOST}",
            "per_listener_settings true": f"per_listener_settings true\nuser {owner}",
        }
        texts = [_changed(SHIPPED / "mosquitto.conf", changes)]
        texts += [_changed(SHIPPED / name, {**more, **paths}) for name, more in (adding or {}).items()]
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(texts))
        self._process: subprocess.Popen[str] | None = None
        self.log: Feed[str] | None = None

    @property
    def ca_file(self) -> Path:
        """The authority of its certificate."""
        return self._authority.file

    def start(self) -> None:
        """Start, and return once it listens."""
        process = subprocess.Popen([require("mosquitto"), "-c", str(self._config)], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        self._process, self.log = process, Feed(process.stderr, str, "mosquitto")
        self.log.wait(lambda line: " running" in line, timeout_s=END_S)

    def stop(self) -> None:
        """Stop, if it runs."""
        if self._process is not None and self.log is not None:
            end(self._process)
            self.log.join()

    def reload(self) -> None:
        """Let it read again what it reads on SIGHUP, certificates and lists of revoked ones among it."""
        assert self._process is not None
        assert self.log is not None
        mark = self.log.mark()
        self._process.send_signal(signal.SIGHUP)
        self.log.wait(lambda line: "Reloading config" in line, since=mark, timeout_s=END_S)

    def seen(self, words: str, *, timeout_s: float = 30.0) -> str:
        """Return the first line of this run's log with ``words`` in it, waiting for it."""
        assert self.log is not None
        return self.log.wait(lambda line: words in line, timeout_s=timeout_s)

    def options(self, who: str) -> list[str]:
        """Return how a client of mosquitto's logs in as a person or as a device of that name."""
        common = ["-h", "localhost", "--cafile", str(self._authority.file), "-V", "mqttv5"]
        if who in PEOPLE:
            return [*common, "-p", str(self.people_port), "-u", who, "-P", PASSWORD]
        files = self._authority.issue(who, stem=f"client-{who}")
        return [*common, "-p", str(self.device_port), "--cert", str(files[0]), "--key", str(files[1]), "-i", who]

    def publish(self, who: str, topic: str, payload: str, *more: str) -> None:
        """Publish as somebody, QoS 1; a refusal is no error here, since brokers hide refusals."""
        command = [require("mosquitto_pub"), *self.options(who), "-q", "1", "-t", topic, "-m", payload, *more]
        subprocess.run(command, check=False, timeout=END_S, capture_output=True)

    def publish_anonymously(self, topic: str, payload: str) -> None:
        """Try to publish on the devices' listener without a certificate."""
        login = ["-h", "localhost", "--cafile", str(self._authority.file), "-p", str(self.device_port)]
        command = [require("mosquitto_pub"), *login, "-q", "1", "-t", topic, "-m", payload]
        subprocess.run(command, check=False, timeout=END_S, capture_output=True)


class Listener:
    """``mosquitto_sub`` as somebody; what comes is collected.

    Args:
        broker: where.
        who: logs in.
        topics: filters; one of them has to cover ``retained``.
        retained: a topic that an operator may write, by whose retained message the subscription is known to stand.
    """

    def __init__(self, broker: SecureBroker, who: str, *topics: str, retained: str) -> None:
        self._marker = fresh_text()
        broker.publish("operator", retained, self._marker, "-r")
        filters = [part for topic in topics for part in ("-t", topic)]
        command = [require("mosquitto_sub"), *broker.options(who), "-q", "1", *filters, "-F", "%j"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._feed = Feed(self._process.stdout, parse, f"mosquitto_sub of {who}")
        try:
            self.wait(self._marker)
        except BaseException:
            self.close()
            raise

    def wait(self, text: str) -> Message:
        """Return the first message with that payload."""
        return self._feed.wait(lambda message: message.text == text, timeout_s=END_S)

    def wait_topic(self, topic: str) -> Message:
        """Return the first message on that topic."""
        return self._feed.wait(lambda message: message.topic == topic, timeout_s=3 * END_S)

    def wait_for(self, wanted: Callable[[Message], bool], *, since: int = 0, timeout_s: float = END_S) -> Message:
        """Return the first message since a mark that is wanted."""
        return self._feed.wait(wanted, since=since, timeout_s=timeout_s)

    def mark(self) -> int:
        """Return a position: ``since`` of what comes from now on."""
        return self._feed.mark()

    def messages(self) -> list[Message]:
        """Return every message so far."""
        return self._feed.since(0)

    def texts(self) -> list[str]:
        """Return every payload so far."""
        return [message.text for message in self._feed.since(0) if message.text != self._marker]

    def close(self) -> None:
        """Disconnect."""
        end(self._process)
        self._feed.join()


def _changed(file: Path, changes: Mapping[str, str]) -> str:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, f"{file.name} has no {old!r}"
        text = text.replace(old, new)
    return text


def fresh_text() -> str:
    """Return a payload that nobody sent before."""
    return uuid.uuid4().hex
