"""States, phases and the rules of each phase, as data. No logic, no I/O.

A command is one line of phases; what happens when a phase fails, when the agent restarts in it, when somebody cancels
and when it takes too long is one row of ``RULES``. The machine reads this table and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.contract.enums import StrEnum


class State(StrEnum):
    """Where an operation stands; the terminal ones never change."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELED = "canceled"
    TIMED_OUT = "timed_out"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can happen any more."""
        return self not in (State.ACCEPTED, State.RUNNING)


class Phase(StrEnum):
    """What a running operation is doing."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    PLANNING = "planning"
    BUILDING = "building"
    LOADING = "loading"
    CANARY = "canary"
    ACTIVATING = "activating"
    TRIAL = "trial"
    ROLLING_BACK = "rolling_back"

    @property
    def is_of_server(self) -> bool:
        """Whether its work speaks to the server."""
        return self in (Phase.LOADING, Phase.CANARY, Phase.ACTIVATING, Phase.TRIAL, Phase.ROLLING_BACK)

    @property
    def when(self) -> str:
        """When something happened to an operation in this phase, in words."""
        return "while it waited" if self is Phase.QUEUED else f"during {self.value.replace('_', ' ')}"


class OnFailure(Enum):
    """What a failed phase leads to."""

    FAIL = "fail"  # the server was not touched: the operation failed, nothing else changed
    ROLL_BACK = "roll back"  # the server may hold the new model: restore what the journal says is current


class OnResume(Enum):
    """What a restart of the agent leads to when it finds an operation in a phase."""

    CONTINUE = "continue"  # the phase picks up its own partial work
    RESTART = "restart"  # the phase starts over, which counts as an attempt
    ROLL_BACK = "roll back"  # nobody watched: the new model has not proved itself


@dataclass(frozen=True)
class Rule:
    """One row: what ends a phase early and what follows."""

    on_failure: OnFailure
    on_resume: OnResume
    is_cancelable: bool
    deadline_s: float | None


_FAIL, _BACK = OnFailure.FAIL, OnFailure.ROLL_BACK
_CONTINUE, _RESTART, _RESTORE = OnResume.CONTINUE, OnResume.RESTART, OnResume.ROLL_BACK

RULES: dict[Phase, Rule] = {
    #                         failure  restart    cancel  deadline
    Phase.QUEUED: Rule(_FAIL, _CONTINUE, True, None),
    Phase.DOWNLOADING: Rule(_FAIL, _CONTINUE, True, 6 * 3600),
    Phase.VERIFYING: Rule(_FAIL, _CONTINUE, True, 1800),
    Phase.PLANNING: Rule(_FAIL, _CONTINUE, True, 300),
    Phase.BUILDING: Rule(_FAIL, _RESTART, True, 3600),
    Phase.LOADING: Rule(_BACK, _RESTART, True, 600),
    Phase.CANARY: Rule(_BACK, _RESTORE, True, 600),
    Phase.ACTIVATING: Rule(_BACK, _RESTORE, False, 120),
    Phase.TRIAL: Rule(_BACK, _RESTORE, False, 25 * 3600),
    Phase.ROLLING_BACK: Rule(_FAIL, _RESTART, False, 600),
}

_BUILD = (Phase.PLANNING, Phase.BUILDING)
_SWITCH = (Phase.LOADING, Phase.CANARY, Phase.ACTIVATING, Phase.TRIAL)

LINES: dict[str, tuple[Phase, ...]] = {
    "deploy": (Phase.DOWNLOADING, Phase.VERIFYING, *_BUILD, *_SWITCH),
    "set_method": (*_BUILD, *_SWITCH),
    "compare": (*_BUILD, *_SWITCH),
    "replan": (*_BUILD, *_SWITCH),
    "rollback": _SWITCH,
    "undeploy": (Phase.ACTIVATING,),
    "self_test": (Phase.VERIFYING,),
}

MAX_ATTEMPTS = 3
"""Tries of one phase, restarts of the agent included (Greengrass allows three launches)."""
MAX_WRITES = 28
"""Changes of one operation's record; breaks every loop that nobody thought of (Mender's cap)."""
RESERVED_WRITES = 6
"""Of these, kept back so that a rollback can always be finished: entry, three attempts, the end and one to spare."""
