"""A fleet manager's connection: publishes commands and follows operations to their end."""

from __future__ import annotations

import queue
import uuid
from typing import TYPE_CHECKING, Any

from agent.contract.wire import dump
from agent.fleet import shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.adapters.mqtt_operator import Messages
    from agent.contract.topics import Topics

JsonObject = dict[str, Any]


class NoAnswerError(Exception):
    """A device did not say anything in time."""


class FleetClient:
    """Talks to one device over a broker.

    Args:
        messages: an open connection to the broker.
        topics: the device's topics.
        seal: returns a command, given its name, as it is to be sent.
    """

    def __init__(
        self,
        messages: Messages,
        topics: Topics,
        seal: Callable[[str, JsonObject], JsonObject] = lambda _name, body: body,
    ) -> None:
        self._messages = messages
        self._topics = topics
        self._seal = seal

    def send(self, name: str, **fields: Any) -> str:
        """Publish a command and return its id, a fresh one unless given."""
        body = {"schema": 1, "id": f"{name.replace('_', '-')}-{uuid.uuid4().hex[:12]}", **fields}
        self._messages.publish(self._topics.command(name), dump(self._seal(name, body)))
        return str(body["id"])

    def follow(self, operation_id: str, timeout_s: float) -> Iterator[JsonObject]:
        """Yield every state of an operation until a terminal one.

        Raises:
            NoAnswerError: when the device is silent for ``timeout_s`` seconds.
            UnreadableError: what came is no state of an operation.
        """
        last, topic = "", self._topics.operation(operation_id)
        with self._messages.listen(topic) as inbox:
            while True:
                try:
                    state = shapes.read(topic, inbox.get(timeout=timeout_s), shapes.Operation)
                except queue.Empty:
                    silence = f"no word on operation {operation_id} for {timeout_s:.0f} s"
                    raise NoAnswerError(f"{silence}{last and f'; the last one: {last}'}") from None
                yield state
                last = state.get("detail") or " ".join(filter(None, (state["state"], state.get("phase"))))
                if shapes.is_over(state):
                    return

    def keeps(self, topic: str, timeout_s: float) -> bool:
        """Return whether a message is on a topic, or comes within ``timeout_s`` seconds."""
        try:
            self._next(topic, timeout_s)
        except NoAnswerError:
            return False
        return True

    def read(self, topic: str, timeout_s: float, shape: type[shapes.Message] = shapes.Message) -> JsonObject:
        """Return the next message on a topic, a retained one at once.

        Args:
            topic: without wildcards.
            timeout_s: how long it may take.
            shape: what it has to have.

        Raises:
            NoAnswerError: when none comes within ``timeout_s`` seconds.
            UnreadableError: it has not.
        """
        return shapes.read(topic, self._next(topic, timeout_s), shape)

    def _next(self, topic: str, timeout_s: float) -> bytes:
        with self._messages.listen(topic) as inbox:
            try:
                return inbox.get(timeout=timeout_s)
            except queue.Empty:
                raise NoAnswerError(f"nothing on {topic} for {timeout_s:.0f} s") from None
