"""Between the broker's messages and the machine's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.contract.errors import RefusalError
from agent.contract.topics import FleetTopics, Topics, is_id
from agent.contract.wire import dump, parse_object
from agent.deployment.phases import State
from agent.fleet.rollout import commands
from agent.fleet.rollout.events import NotNeeded, Present, Purpose, Serves, Told
from agent.fleet.rollout.membership import Known
from agent.fleet.rollout.plan import UNDONE_BY_ROLLBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from agent.adapters.mqtt_operator import Heard, Messages
    from agent.fleet.rollout.events import Send, Word
    from agent.fleet.rollout.plan import Plan

JsonObject = dict[str, Any]


def unsigned(_device: str, _name: str, body: JsonObject) -> JsonObject:
    """Return a command as it is."""
    return body


class Link:
    """The fleet as a rollout sees it.

    Args:
        plan: the plan.
        messages: an open connection to the broker.
        prefix: of every topic.
        seal: returns a command as it is to be sent, given the device and the command's name.
    """

    def __init__(
        self,
        plan: Plan,
        messages: Messages,
        prefix: str,
        seal: Callable[[str, str, JsonObject], JsonObject] = unsigned,
    ) -> None:
        self._plan = plan
        self._messages = messages
        self._prefix = prefix
        self._topics = FleetTopics(prefix)
        self._seal = seal
        self._known: dict[str, Known] = {}
        self._reported: dict[str, JsonObject] = {}
        self._operations: dict[str, JsonObject] = {}
        self._held: dict[str, tuple[str, JsonObject]] = {}
        self._told: dict[tuple[str, str], Word] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """What to listen to."""
        kinds = (self._topics.every(kind) for kind in ("presence", "capabilities", "reported"))
        return (*kinds, self._topics.operations)

    @property
    def known(self) -> dict[str, Known]:
        """The devices that the broker knows, with what they say of themselves."""
        return dict(self._known)

    def words(self, heard: Iterable[Heard]) -> list[Word]:
        """Return what messages say that was not said before."""
        found: list[Word] = []
        for message in heard:
            parsed = self._topics.parse(message.topic)
            if parsed is None or not message.payload:
                continue
            try:
                body = parse_object(message.payload)
            except RefusalError:
                continue  # no device of ours says that
            for word in self._words(*parsed, body):
                key = (word.device, f"{type(word).__name__} {getattr(word, 'purpose', '')}")
                if self._told.get(key) != word:
                    self._told[key] = word
                    found.append(word)
        return found

    def send(self, send: Send) -> Word | None:
        """Send a device what it is to be sent; return what is known of it without an answer.

        Raises:
            RefusedMessageError: the broker refuses it.
            BrokerError: the broker did not take it.
        """
        device, message = send.device, self._message(send)
        if isinstance(message, str):
            return NotNeeded(device, message)
        name, body = message
        topic = Topics(self._prefix, device).command(name)
        self._messages.publish(topic, dump(self._seal(device, name, body)), expiry_s=self._plan.pace.timeout_s)
        return None

    def is_needless(self, send: Send) -> bool:
        """Return whether nothing will be sent, as there is nothing to take back."""
        return send.purpose is Purpose.UNDO and isinstance(self._message(send), str)

    def _message(self, send: Send) -> tuple[str, JsonObject] | str:
        """Return name and body of a command, or why there is none."""
        device = send.device
        if send.purpose is Purpose.DO:
            return commands.command(self._plan, device)
        if send.purpose is Purpose.CANCEL:
            return commands.cancel(self._plan, device)
        return commands.undo(self._plan, device, self._reported.get(device), self._operations.get(device))

    def _words(self, device: str, kind: str, body: JsonObject) -> Iterator[Word]:
        if kind == "presence":
            self._known.setdefault(device, Known())
            yield Present(device, body.get("state") == "online")
        elif kind == "capabilities":
            self._known[device] = _known(body)
        elif kind == "reported":
            self._reported[device] = body
            if device in self._held:
                yield from self._operation(device, *self._held.pop(device))
            yield from self._serving(device)
        elif kind.startswith("op/"):
            yield from self._operation(device, kind.removeprefix("op/"), body)

    def _operation(self, device: str, operation: str, body: JsonObject) -> Iterator[Word]:
        purpose, state = commands.purpose_of(self._plan, device, operation), commands.state_of(body)
        if purpose is None or state is None:
            return
        if state == State.SUCCEEDED and self._is_older(device, body):
            self._held[device] = (operation, body)  # or it would be judged by what it served before
            return
        if purpose is Purpose.DO:
            self._operations[device] = body
        yield Told(device, purpose, state, commands.why(body))
        yield from self._serving(device)

    def _serving(self, device: str) -> Iterator[Word]:
        """Yield what a device serves, as far as the command says what that should be."""
        is_ours = commands.serves(self._plan, self._reported.get(device))
        if is_ours is not None:
            yield Serves(device, is_ours, self._is_since(device))

    def _is_since(self, device: str) -> bool:
        """Return whether what a device serves was told after the success of its operation, by its own clock."""
        operation = self._operations.get(device, {})
        if commands.state_of(operation) != State.SUCCEEDED:
            return False
        moments = self._moments(device, operation)
        return moments is not None and moments[0] > moments[1]

    def _is_older(self, device: str, operation: JsonObject) -> bool:
        """Return whether a device has yet to say what it serves since an operation; it does so right after its end."""
        if self._plan.command.name not in UNDONE_BY_ROLLBACK:
            return False
        moments = self._moments(device, operation)
        return moments is not None and moments[0] < moments[1]

    def _moments(self, device: str, operation: JsonObject) -> tuple[str, str] | None:
        """Return when a device said what it serves and when an operation ended, by its clock; None without either."""
        served, ended = self._reported.get(device, {}).get("at"), operation.get("at")
        return (served, ended) if isinstance(served, str) and isinstance(ended, str) else None


def _known(body: JsonObject) -> Known:
    """Return groups and labels from ``capabilities``; an agent that is too old to tell them has none."""
    groups, labels = body.get("groups"), body.get("labels")
    return Known(
        frozenset(each for each in groups if isinstance(each, str) and is_id(each))
        if isinstance(groups, list)
        else frozenset(),
        {name: str(value) for name, value in labels.items()} if isinstance(labels, dict) else {},
    )
