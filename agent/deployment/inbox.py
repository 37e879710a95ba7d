"""What reaches the engine: the messages of its inbox, beside the commands from the broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.contract.desired import DesiredMessage
from agent.deployment.intake import CommandMessage

if TYPE_CHECKING:
    from agent.contract.reports import Progress
    from agent.deployment.machine import Done, Failed
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
    progress: Progress


@dataclass(frozen=True)
class Connected:
    """The broker is there (again): it may have forgotten everything."""


@dataclass(frozen=True)
class ServerLost:
    """The server ended without being asked to."""

    detail: str


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
    | DesiredMessage
    | Outcome
    | Reopened
    | Started
    | Moved
    | Connected
    | ServerLost
    | CapabilitiesKnown
    | BudgetSeen
    | Stop
)
