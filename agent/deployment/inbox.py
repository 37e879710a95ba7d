"""What reaches the engine: its inbox and the messages in it, beside the commands from the broker."""

from __future__ import annotations

import itertools
import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.contract.desired import RetainedMessage
from agent.deployment.intake import CommandMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.contract.reports import Progress
    from agent.deployment.machine import Done, Failed
    from agent.deployment.phases import Phase
    from agent.planning.budget import Budget


@dataclass(frozen=True)
class Outcome:
    """A step of an operation ended."""

    operation_id: str
    event: Done | Failed


@dataclass(frozen=True)
class Reopened:
    """An operation that the agent found open when it started is to go on."""

    operation_id: str


@dataclass(frozen=True)
class Started:
    """The agent started: what an earlier life could not say is said, and what it wanted is wanted again."""


@dataclass(frozen=True)
class Moved:
    """A step got further."""

    operation_id: str
    phase: Phase
    progress: Progress


@dataclass(frozen=True)
class Connected:
    """The broker is there (again): it may have forgotten everything."""


@dataclass(frozen=True)
class Echoed:
    """What this device said on a connection came back, behind what the broker retains of its subscriptions."""

    connection: int


@dataclass(frozen=True)
class Overhearing:
    """The broker answered to the wish to be told this device's own operations; what it has of them follows."""

    is_granted: bool


@dataclass(frozen=True)
class Remembered:
    """What the broker retains of an operation of this device; ``acknowledge`` tells that it was looked at."""

    operation_id: str
    payload: bytes
    acknowledge: Callable[[], None] = field(default=lambda: None, compare=False)


@dataclass(frozen=True)
class Drained:
    """The broker has acknowledged much of what it was handed: there is room for more reports."""


@dataclass(frozen=True)
class ServerLost:
    """The server ended without being asked to."""

    detail: str


@dataclass(frozen=True)
class Fallen:
    """What is made to answer is not what the journal says, or is so again: a release cannot be loaded, or kills."""


@dataclass(frozen=True)
class CapabilitiesKnown:
    """The self-test of this device finished."""


@dataclass(frozen=True)
class BudgetSeen:
    """The memory as it was at ``at``, monotonic seconds."""

    budget: Budget
    at: float


@dataclass(frozen=True)
class Stop:
    """The agent is to end."""


Message = (
    CommandMessage
    | RetainedMessage
    | Outcome
    | Reopened
    | Started
    | Moved
    | Connected
    | Echoed
    | Overhearing
    | Remembered
    | Drained
    | ServerLost
    | Fallen
    | CapabilitiesKnown
    | BudgetSeen
    | Stop
)


class Inbox:
    """Messages in order, from any thread; what goes on with work that was begun comes before what asks for more.

    Whoever floods a device with commands makes others wait, but no operation, and neither a rollback nor the end.
    """

    def __init__(self) -> None:
        self._queue: queue.PriorityQueue[tuple[bool, int, Message]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def is_empty(self) -> bool:
        """Whether nothing waits now."""
        return self._queue.empty()

    def put(self, message: Message) -> None:
        """Take a message in."""
        goes_first = isinstance(message, (Outcome, ServerLost, Stop))
        self._queue.put((not goes_first, next(self._numbers), message))

    def get(self, wait_s: float) -> Message | None:
        """Return the next message, or None if none comes within ``wait_s`` seconds."""
        try:
            return self._queue.get(timeout=wait_s)[2] if wait_s else self._queue.get_nowait()[2]
        except queue.Empty:
            return None
