"""thin-edge.io in our words: topics, the table of states, and one device's commands brought to agree. Pure.

The other side's state is what is retained on ``te/…/cmd/<type>/<id>``: this module reads it, compares it with the
operation, and says what has to be published. Nothing else is remembered, so a bridge may be restarted at any time.

A command that was cleared while no bridge ran shows by its absence. That counts only where the broker hands over a
capability: a bridge had it retained, and it is subscribed to behind the commands. A broker that forgot everything, or
lets nothing be read, says nothing about commands.

Source: thin-edge.io documentation, "MQTT API", "Device Management API" and "User-defined Operation Workflows".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.errors import RefusalError
from agent.contract.topics import is_id
from agent.contract.wire import dump, parse_object
from agent.deployment.phases import State
from agent.fleet.bridge import requests
from agent.fleet.bridge.requests import BRIDGED, Command, Foreign, Note
from agent.fleet.shapes import is_over

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.fleet.bridge.requests import Out, Seal
    from agent.fleet.view import Device

JsonObject = dict[str, Any]
INIT, SCHEDULED, EXECUTING, SUCCESSFUL, FAILED = "init", "scheduled", "executing", "successful", "failed"
STATUS: dict[State, str] = {
    State.ACCEPTED: SCHEDULED,
    State.RUNNING: EXECUTING,
    State.SUCCEEDED: SUCCESSFUL,
    State.FAILED: FAILED,
    State.REJECTED: FAILED,
    State.EXPIRED: FAILED,
    State.CANCELED: FAILED,
    State.TIMED_OUT: FAILED,
    State.SUPERSEDED: FAILED,
    State.ROLLED_BACK: FAILED,
    State.ROLLBACK_FAILED: FAILED,
}
OWN = "nibbled"
"""Names the service, the fragment of the twin, and the part of a command that only the bridge writes."""
TYPE_PREFIX = "nibbled_"
MAIN = "main"
RESEND_S = 60.0
MAX_STATE_BYTES = 1 << 20
"""More than a device takes: what is too large for it is answered, and a state has the request and the answer in it."""
_NOT_FIELDS = ("status", "reason", OWN)


@dataclass(frozen=True)
class EntityTopics:
    """The topics of one device under thin-edge's root.

    Attributes:
        root: ``te`` unless the installation says otherwise.
        entity: the device's name there, ``main`` for the one that thin-edge runs on.

    Raises:
        ValueError: either is more than one level.
    """

    root: str
    entity: str

    def __post_init__(self) -> None:
        for name, level in (("root", self.root), ("device", self.entity)):
            if not is_id(level):
                raise ValueError(f"thin-edge {name} {level!r} must match ^[A-Za-z0-9_-]{{1,64}}$")

    @property
    def device(self) -> str:
        """What the topics of the device begin with."""
        return f"{self.root}/device/{self.entity}///"

    @property
    def commands(self) -> str:
        """The filter that covers every command of the device."""
        return f"{self.device}cmd/+/+"

    @property
    def capabilities(self) -> str:
        """The filter that covers what the device says that it can do."""
        return f"{self.device}cmd/+"

    @property
    def service(self) -> str:
        """Where the service is registered."""
        return f"{self.root}/device/{self.entity}/service/{OWN}"

    @property
    def health(self) -> str:
        """Whether the service is up."""
        return f"{self.service}/status/health"

    @property
    def twin(self) -> str:
        """What the device serves."""
        return f"{self.device}twin/{OWN}"

    def capability(self, command: str) -> str:
        """Where the device says that it can do a command."""
        return f"{self.device}cmd/{TYPE_PREFIX}{command}"

    def command(self, kind: str, request: str) -> str:
        """Where the state of one command is retained."""
        return f"{self.device}cmd/{kind}/{request}"


def told(operation: Mapping[str, Any]) -> JsonObject:
    """Return what of a command's state follows from the last report of its operation.

    A state that a newer device made up counts as running.
    """
    state, error = operation.get("state"), requests.part(operation, "error")
    status = STATUS[State(state)] if state in list(State) else EXECUTING
    own = {key: operation.get(key) for key in ("state", "phase", "progress")}
    decision = requests.part(operation, "decision")
    own = {"operation": operation.get("id"), **own, "method": decision.get("method"), "error": error or None}
    body: JsonObject = {"status": status, OWN: {key: value for key, value in own.items() if value is not None}}
    return {**body, "reason": _reason(error) or str(state)} if status == FAILED else body


def refused(refusal: RefusalError) -> JsonObject:
    """Return the state of a command that no device gets to see."""
    error = refusal.info().model_dump(mode="json")
    return {"status": FAILED, "reason": _reason(error), OWN: {"error": error}}


def twin(models: Mapping[str, JsonObject], presence: Mapping[str, Any]) -> JsonObject:
    """Return the fragment of the twin: the agent's version, and of each model what is served."""
    of_each = ("version", "method", "model_type", "state", "agreement")
    return {
        "agent": presence.get("agent"),
        "models": {name: {key: told.get(key) for key in of_each} for name, told in sorted(models.items())},
    }


def health(presence: Mapping[str, Any]) -> JsonObject:
    """Return the health of the service: ``up`` while the device is connected. What ails a model is in its own words."""
    body = {"status": "up" if presence.get("state") == "online" else "down"}
    return {**body, "time": presence["at"]} if presence.get("at") else body


def _reason(error: Mapping[str, Any]) -> str:
    what = ": ".join(str(error[key]) for key in ("code", "detail") if error.get(key))
    return f"{what} ({error['hint']})" if error.get("hint") else what


class EntityCommands:
    """The commands of one device.

    Args:
        device: as it is heard; somebody else keeps it up to date.
        topics: its own, there.
        bridge: name of the bridge, which ids of operations begin with.
        seal: makes of a command what is to be sent.
    """

    def __init__(self, device: Device, topics: EntityTopics, *, bridge: str, seal: Seal) -> None:
        self._device = device
        self._topics = topics
        self._bridge = bridge
        self._seal = seal
        self._states: dict[tuple[str, str], JsonObject] = {}
        self._crossed: set[tuple[str, str]] = set()
        self._refused: dict[tuple[str, str], RefusalError] = {}
        self._is_told = False
        self._operations_seen = 0
        self._canceled: set[str] = set()
        self._sent: dict[str, tuple[Command, float]] = {}
        self._published: dict[str, bytes] = {}
        self._out: list[Out] = []

    @property
    def root(self) -> str:
        """What its topics there begin with."""
        return self._topics.device

    @property
    def filters(self) -> tuple[str, ...]:
        """What to listen to there, in this order."""
        return (self._topics.commands, self._topics.capabilities)

    def take(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool = False) -> None:  # noqa: ARG002 - it has no timers
        """Take in the state of a command; an empty one is what its requester clears it with."""
        kind, _, request = topic.removeprefix(f"{self._topics.device}cmd/").partition("/")
        if not kind.startswith(TYPE_PREFIX):
            return
        if not request:
            self._is_told |= is_retained
        elif payload:
            self._written(topic, (kind, request), payload, is_retained=is_retained)
        else:
            self._cleared((kind, request))

    def act(self, now_s: float) -> list[Out]:
        """Return what is to be sent and said now."""
        self._describe()
        self._tidy()
        for key, state in list(self._states.items()):
            if state.get("status", INIT) not in (SUCCESSFUL, FAILED):  # those are their requester's
                self._serve(key, state, now_s)
        out, self._out = self._out, []
        return out

    def _written(self, topic: str, key: tuple[str, str], payload: bytes, *, is_retained: bool) -> None:
        try:
            state = parse_object(payload, MAX_STATE_BYTES)
        except RefusalError as refusal:
            self._out.append(Note(f"{topic}: {refusal.detail}"))
            self._states.setdefault(key, {"status": FAILED})  # it is there, and its requester's
            return
        if OWN in state and state.get("status", INIT) != INIT and not is_retained:
            self._crossed.add(key)  # the echo of what this bridge published: a newer state may be on its way
            return
        self._refused.pop(key, None)
        self._states[key] = state

    def _tidy(self) -> None:
        """Take back what was published of a command that was being cleared; cancel what has no command any more."""
        for key in sorted(self._crossed - self._states.keys()):
            self._out.append(Foreign(self._topics.command(*key), b"", retain=True))
        self._crossed.clear()
        if self._is_told and self._operations_seen != len(self._device.operations):
            self._operations_seen = len(self._device.operations)
            asked_for = {self._operation(key) for key in self._states}
            for operation_id in sorted(requests.open_operations(self._bridge, self._device) - asked_for):
                self._cancel(operation_id, "its command is not there any more")

    def _describe(self) -> None:
        said = self._device.said
        commands = said.get("capabilities", {}).get("commands")
        if isinstance(commands, list):
            for name in BRIDGED:
                self._publish(self._topics.capability(name), {} if name in commands else None)
        if presence := said.get("presence"):
            self._publish(self._topics.service, {"@type": "service", "name": OWN, "type": "service"})
            self._publish(self._topics.health, health(presence))
            if "reported" in said:
                self._publish(self._topics.twin, twin(self._device.models, presence))

    def _serve(self, key: tuple[str, str], state: JsonObject, now_s: float) -> None:
        operation_id = self._operation(key)
        operation = self._device.operations.get(operation_id)
        if operation is None and key not in self._refused:
            self._send(key, state, now_s)
        if key in self._refused:
            wanted = refused(self._refused[key])
        elif operation is not None:
            wanted = told(operation)
        else:
            return  # it stays what it is until the device has said a word
        fresh = {**{name: value for name, value in state.items() if name != OWN}, **wanted}
        if fresh != state:
            self._states[key] = fresh
            moved = fresh["status"] != state.get("status")
            note = f"{self._device.name} {operation_id}: {key[0]}/{key[1]} is {fresh['status']}" if moved else ""
            self._out.append(Foreign(self._topics.command(*key), dump(fresh), retain=True, note=note))

    def _send(self, key: tuple[str, str], state: JsonObject, now_s: float) -> None:
        operation_id = self._operation(key)
        before = self._sent.get(operation_id)
        if before is not None and now_s - before[1] < RESEND_S:
            return
        fields = {name: value for name, value in state.items() if name not in _NOT_FIELDS}
        name = key[0].removeprefix(TYPE_PREFIX)
        try:
            body = requests.command(name, fields, operation_id)
            if self._device.presence != "online":
                return
            sealed = before[0].body if before else self._seal(self._device.name, name, body)
        except RefusalError as refusal:
            self._refused[key] = refusal
            return
        sent = Command(self._device.name, name, sealed, f"{self._device.name} {operation_id}: {name} for {key[1]}")
        self._sent[operation_id] = (sent, now_s)
        self._out.append(sent)

    def _cleared(self, key: tuple[str, str]) -> None:
        """Forget a command; one that is cleared before its end is canceled."""
        self._states.pop(key, None)
        self._refused.pop(key, None)
        operation_id = self._operation(key)
        was_sent = self._sent.pop(operation_id, None) is not None
        operation = self._device.operations.get(operation_id)
        is_open = was_sent if operation is None else not is_over(operation)
        if is_open:
            self._cancel(operation_id, f"{key[0]}/{key[1]} was cleared")

    def _cancel(self, operation_id: str, why: str) -> None:
        if operation_id not in self._canceled:
            self._canceled.add(operation_id)
            self._out.append(requests.cancel(self._device.name, operation_id, why, self._seal))

    def _publish(self, topic: str, body: JsonObject | None) -> None:
        """Have a state retained, None to have none, unless it is what was published last."""
        payload = b"" if body is None else dump(body)
        if self._published.get(topic, None) != payload:
            self._published[topic] = payload
            self._out.append(Foreign(topic, payload, retain=True))

    def _operation(self, key: tuple[str, str]) -> str:
        return requests.operation_id(self._bridge, self._topics.device, *key)
