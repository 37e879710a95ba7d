"""A person with a shell: sends commands to one device and reads what it answers, by messages alone."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from tests.e2e.harness.mqtt import clear, publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.harness.files import HostedFile
    from tests.e2e.harness.mqtt import Subscriber
    from tests.e2e.harness.signing import Signer

JsonObject = dict[str, Any]
RUNNING = frozenset({"accepted", "running"})
MODEL = "kanji"
OPERATION_S = 150.0
"""How long an operation may take when other tests want the same processor cores."""


class Operator:
    """Drives one device.

    Args:
        device_id: whom.
        port: the broker's.
        subscriber: hears everything.
        signer: signs manifests.
        dataset: evaluation data that deploys name in their gate.
    """

    def __init__(self, device_id: str, port: int, subscriber: Subscriber, signer: Signer, dataset: HostedFile) -> None:
        self._root = f"edge/v1/{device_id}"
        self._device_id = device_id
        self._port = port
        self._signer = signer
        self._dataset = dataset
        self._numbers = itertools.count(1)
        self.subscriber = subscriber

    def topic(self, name: str) -> str:
        """Return the device's topic of that name."""
        return f"{self._root}/{name}"

    def mark(self) -> int:
        """Return a position: ``since`` of what comes from now on."""
        return self.subscriber.mark()

    def send(self, command: str, *, is_retained: bool = False, **fields: Any) -> str:
        """Publish a command and return its id, a fresh one unless given."""
        number = next(self._numbers)
        body = {"schema": 1, "id": f"{command}-{number}", **fields}
        self.send_text(command, json.dumps(body), is_retained=is_retained)
        return str(body["id"])

    def send_text(self, command: str, text: str, *, is_retained: bool = False) -> None:
        """Publish any text as a command."""
        publish(self._port, self.topic(f"cmd/{command}"), text, is_retained=is_retained)

    def clear(self, command: str) -> None:
        """Take back a retained command."""
        clear(self._port, self.topic(f"cmd/{command}"))

    def manifest(self, file: HostedFile, **changes: Any) -> JsonObject:
        """Return a manifest for ``file`` with a sequence above all before."""
        number = next(self._numbers)
        body: JsonObject = {
            "model": MODEL,
            "version": f"v{number}",
            "sequence": 100 + number,
            "audience": {"devices": [self._device_id]},
            "files": [{"name": "checkpoint_best.pt", **file.reference()}],
        }
        return {**body, **changes}

    def deploy(self, manifest: JsonObject, *, gate: JsonObject | None = None, **fields: Any) -> str:
        """Sign a manifest, send it in a ``deploy`` and return the operation's id."""
        wanted = {"dataset": self._dataset.reference(), **(gate or {})}
        return self.send("deploy", model=MODEL, manifest=self._signer.seal(manifest), gate=wanted, **fields)

    def await_online(self) -> None:
        """Wait for a device's first birth: it follows its first subscription, before which commands are lost."""
        self.subscriber.wait(self.topic("presence"), lambda body: body["state"] == "online")

    def history(self, operation_id: str, *, since: int = 0, timeout_s: float = OPERATION_S) -> list[JsonObject]:
        """Wait for an operation's terminal state and return everything that was said of it, in order."""
        topic = self.topic(f"op/{operation_id}")
        self.subscriber.wait(topic, lambda body: body["state"] not in RUNNING, since=since, timeout_s=timeout_s)
        return self.subscriber.on(topic, since=since)

    def result(self, operation_id: str, *, since: int = 0) -> JsonObject:
        """Wait for an operation's terminal state and return it."""
        return self.history(operation_id, since=since)[-1]

    def reaches(self, operation_id: str, phase: str, *, with_progress: bool = False) -> JsonObject:
        """Wait until an operation is in a phase, and with ``with_progress`` until it tells how far it is."""
        return self.subscriber.wait(
            self.topic(f"op/{operation_id}"),
            lambda body: body["phase"] == phase and (not with_progress or body["progress"] is not None),
            timeout_s=OPERATION_S,
        )

    def event(self, wanted: Callable[[JsonObject], bool], *, since: int = 0) -> JsonObject:
        """Return the first line of the audit trail that is wanted."""
        return self.subscriber.wait(self.topic("event"), wanted, since=since)

    def served(self) -> JsonObject:
        """Ask the device what it serves and return what it says of the model."""
        mark = self.mark()
        self.send("status")
        model: JsonObject = self.subscriber.wait(self.topic("reported"), since=mark)["models"][MODEL]
        return model
