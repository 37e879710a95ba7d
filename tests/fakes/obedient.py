"""Many devices in one process that speak the contract over a real broker, and do as they are told.

They keep what devices keep: each operation under its id, which runs once, and what is served and was served before.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from agent.contract import commands
from agent.contract.errors import ErrorCode, ErrorInfo
from agent.contract.reports import SCHEMA, presence
from agent.contract.topics import Topics
from agent.contract.wire import dump, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

JsonObject = dict[str, Any]
Manner = Literal["succeeds", "rolls back", "fails", "hangs"]
PREFIX = "edge/v1"
END_S = 30.0
ERRORS: dict[str, tuple[str, ErrorCode]] = {
    "rolls back": ("rolled_back", ErrorCode.TRIAL_FAILED),
    "fails": ("failed", ErrorCode.GATE_FAILED),
}


def release(version: str, sha256: str = "0" * 64, method: str = "nf4") -> JsonObject:
    """Return what ``reported`` says of one release."""
    return {
        "version": version,
        "sha256": sha256,
        "method": method,
        "state": "serving",
        "since": now(),
        "previous": None,
    }


def now() -> str:
    return rfc3339(datetime.now(timezone.utc))


@dataclass
class FakeBox:
    """One device.

    Attributes:
        topics: its topics.
        manner: what becomes of a deploy or a switch.
        groups, labels: what it says of itself.
        models: what it serves.
        operations: every operation's last state, by id.
        received: every command that it executed, in order, with its name.
        repeated: ids that came again.
        is_online: whether it is there.
    """

    topics: Topics
    manner: Manner = "succeeds"
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    models: dict[str, JsonObject] = field(default_factory=dict)
    operations: dict[str, JsonObject] = field(default_factory=dict)
    received: list[tuple[str, JsonObject]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    is_online: bool = True


class FakeFleet:
    """The devices of one broker.

    Args:
        port: of the broker on the loopback interface.
        delay_s: how long an operation runs.
    """

    def __init__(self, port: int, delay_s: float = 0.02) -> None:
        self._delay_s = delay_s
        self._changed = threading.Condition()
        self._timers: list[threading.Timer] = []
        self.boxes: dict[str, FakeBox] = {}
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_message = self._on_message
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(f"{PREFIX}/+/cmd/+", qos=1)
        assert subscribed.wait(END_S), "the broker does not answer"

    def close(self) -> None:
        """Leave the broker; what is retained stays."""
        for timer in self._timers:
            timer.cancel()
        self._client.disconnect()
        self._client.loop_stop()

    def add(self, name: str, **more: Any) -> FakeBox:
        """Add a device that serves ``kanji`` in version 1, and publish what devices retain."""
        is_online = more.pop("is_online", True)
        box = self.boxes[name] = FakeBox(Topics(PREFIX, name), **{"models": {"kanji": release("1")}, **more})
        self.turn(name, is_online=is_online)
        told = {"schema": SCHEMA, "agent": "0", "groups": list(box.groups), "labels": box.labels}
        self._publish(box.topics.capabilities, told)
        self._report(box)
        return box

    def turn(self, name: str, *, is_online: bool) -> None:
        """Let a device come or go."""
        box = self.boxes[name]
        box.is_online = is_online
        state = "online" if is_online else "offline"
        report = presence(box.topics, state=state, epoch=1, boot_id="b", agent="0", reason=None, at=None)
        self._publish(box.topics.presence, json.loads(report.payload))

    def serve(self, name: str, version: str) -> None:
        """Let a device serve something else, by nobody's command."""
        box = self.boxes[name]
        box.models["kanji"] = release(version)
        self._report(box)

    def received(self, command: str) -> list[str]:
        """Return the devices that executed a command, once per time, in order of their names."""
        return sorted(name for name, box in self.boxes.items() for each, _ in box.received if each == command)

    def versions(self) -> dict[str, str | None]:
        """Return what each device serves under ``kanji``."""
        return {name: box.models.get("kanji", {}).get("version") for name, box in self.boxes.items()}

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that a command changes."""
        with self._changed:
            assert self._changed.wait_for(is_so, END_S), "it did not happen"

    def clear(self, names: Iterable[str]) -> None:
        """Make the broker forget devices and their operations."""
        for box in (self.boxes[name] for name in names):
            for topic in (box.topics.presence, box.topics.capabilities, box.topics.reported):
                self._client.publish(topic, b"", qos=1, retain=True).wait_for_publish(END_S)
            for operation in box.operations:
                self._client.publish(box.topics.operation(operation), b"", qos=1, retain=True).wait_for_publish(END_S)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        device = message.topic.split("/")[2]
        box = self.boxes.get(device)
        name = box.topics.command_name(message.topic) if box is not None else None
        if box is None or name is None or not message.payload:
            return
        with self._changed:
            assert box.is_online, f"{device} got {name} while it was offline"
            command = commands.parse(name, bytes(message.payload), retained=bool(message.retain))
            body = json.loads(message.payload)
            if command.id in box.operations:
                box.repeated.append(command.id)
                self._publish(box.topics.operation(command.id), box.operations[command.id])
            else:
                box.received.append((name, body))
                self._execute(box, name, body)
            self._changed.notify_all()

    def _execute(self, box: FakeBox, name: str, body: JsonObject) -> None:
        if name == "cancel":
            target = box.operations.get(body["operation"])
            is_open = target is not None and target["state"] in ("accepted", "running")
            if target is not None and is_open:
                self._tell(box, target["command"], target["id"], "canceled", ErrorCode.CANCELED)
            self._tell(box, name, body["id"], "succeeded" if is_open else "rejected")
            return
        self._tell(box, name, body["id"], "accepted")
        self._tell(box, name, body["id"], "running")
        if box.manner == "hangs" and name in ("deploy", "set_method"):
            return
        timer = threading.Timer(self._delay_s, self._finish, (box, name, body))
        self._timers.append(timer)
        timer.start()

    def _finish(self, box: FakeBox, name: str, body: JsonObject) -> None:
        with self._changed:
            if box.operations[body["id"]]["state"] != "running":
                return
            if name in ("deploy", "set_method") and box.manner in ERRORS:
                self._tell(box, name, body["id"], *ERRORS[box.manner])
            else:
                self._apply(box, name, body)
                self._tell(box, name, body["id"], "succeeded")
                self._report(box)
            self._changed.notify_all()

    def _apply(self, box: FakeBox, name: str, body: JsonObject) -> None:
        if name == "set_config":
            return
        before = box.models.pop(body["model"], None)
        if name == "rollback":
            assert before is not None
            assert before["previous"] is not None
            box.models[body["model"]] = {**before["previous"], "previous": None}
        elif name != "undeploy":
            command = commands.parse(name, dump(body))
            manifest = (
                command.manifest.manifest() if isinstance(command, commands.Deploy) and command.manifest else None
            )
            kept = (
                release(manifest.version, manifest.files[0].sha256) if manifest else {**(before or {}), "since": now()}
            )
            method = body.get("method", "auto")
            kept["method"] = "nf4" if method == "auto" else method
            box.models[body["model"]] = {**kept, "previous": before and {**before, "previous": None}}

    def _tell(self, box: FakeBox, name: str, operation: str, state: str, code: ErrorCode | None = None) -> None:
        error = code and ErrorInfo(code=code, detail="as it was told to").model_dump(mode="json")
        body = {"schema": SCHEMA, "id": operation, "command": name, "state": state, "error": error, "at": now()}
        box.operations[operation] = body
        self._publish(box.topics.operation(operation), body)

    def _report(self, box: FakeBox) -> None:
        self._publish(box.topics.reported, {"schema": SCHEMA, "models": box.models, "at": now()})

    def _publish(self, topic: str, body: JsonObject) -> None:
        self._client.publish(topic, dump(body), qos=1, retain=True)
