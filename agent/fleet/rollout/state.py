"""What is known of a rollout: a value, and what can be counted in it. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.contract.enums import StrEnum

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.fleet.rollout.plan import Plan


class Status(StrEnum):
    """Where a rollout stands; the last two are final."""

    RUNNING = "running"
    PAUSED = "paused"
    ABORTING = "aborting"
    FINISHED = "finished"
    ABORTED = "aborted"

    @property
    def is_over(self) -> bool:
        """Whether nothing will be sent any more."""
        return self in (Status.FINISHED, Status.ABORTED)


class Stage(StrEnum):
    """Where a device stands."""

    WAITING = "waiting"  # its turn has not come
    AWAY = "away"  # its turn came while it was offline; nothing was sent
    STARTED = "started"  # it was sent the command: it is in flight
    SETTLED = "settled"  # it counts, one way or the other


class Outcome(StrEnum):
    """What a settled device counts as."""

    SUCCEEDED = "succeeded"  # its operation did, trial included
    FAILED = "failed"  # its operation ended otherwise
    TIMED_OUT = "timed_out"  # no end in time
    OFFLINE = "offline"  # away for too long, which the plan calls a failure
    SKIPPED = "skipped"  # away for too long, which the plan does not
    REGRESSED = "regressed"  # it succeeded, and serves something else by now

    @property
    def is_failure(self) -> bool:
        """Whether it counts against the wave."""
        return self not in (Outcome.SUCCEEDED, Outcome.SKIPPED)


class Undo(StrEnum):
    """How far the way back of a device is that was changed."""

    WANTED = "wanted"
    SENT = "sent"
    DONE = "done"
    NOT_NEEDED = "not_needed"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more is tried."""
        return self not in (Undo.WANTED, Undo.SENT)


@dataclass(frozen=True)
class Device:
    """One device that takes part.

    Attributes:
        wave: index of its wave.
        is_online: what its presence says.
        stage: where it stands.
        since: seconds since 1970 at which the stage began.
        was_sent: whether the command was sent, by this operator or one before.
        operation: the last state that the device told of the operation, None before it told one.
        detail: why the operation did not succeed, in the device's words.
        serves: whether it was seen serving what the rollout brings.
        outcome: what it counts as, once settled.
        undo: the way back, None for a device that needs none.
        undo_operation: the last state that the device told of taking it back, None before it told one.
        undo_since: seconds since 1970 at which that was wanted or sent.
        undo_detail: why the way back failed or is not needed.
    """

    wave: int
    is_online: bool = False
    stage: Stage = Stage.WAITING
    since: float = 0.0
    was_sent: bool = False
    operation: str | None = None
    detail: str | None = None
    serves: bool = False
    outcome: Outcome | None = None
    undo: Undo | None = None
    undo_operation: str | None = None
    undo_since: float = 0.0
    undo_detail: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether its turn is to come, or has come to nothing yet."""
        return self.stage in (Stage.WAITING, Stage.AWAY)


@dataclass(frozen=True)
class Rollout:
    """The state of a rollout.

    Attributes:
        devices: by id, in the order in which their turn comes.
        status: where it stands.
        reason: why it is paused or aborted.
        wave: index of the newest wave that was begun, -1 before the first.
        complete_since: since when that wave has reached its success, None before.
        approved: indices of waves that a person agreed to.
        forgiven: by index of the wave, how many failures a person has looked at and gone on from.
        accepted: indices of waves of which too little succeeded, which a person has accepted.
        opens: when the window opens that devices wait for whose turn has come, seconds since 1970; None for no wait.
        frontier: how many devices of the order an operator before this one has been at. Who is silent among them may
            have failed then, so nobody behind them is begun with until they have told something or are out of time. 0
            where the journal knows what they counted as.
    """

    devices: Mapping[str, Device]
    status: Status = Status.RUNNING
    reason: str | None = None
    wave: int = -1
    complete_since: float | None = None
    approved: frozenset[int] = frozenset()
    forgiven: Mapping[int, int] = field(default_factory=dict)
    accepted: frozenset[int] = frozenset()
    opens: float | None = None
    frontier: int = 0

    def of_wave(self, wave: int) -> Iterator[Device]:
        """Yield the devices of a wave."""
        return (device for device in self.devices.values() if device.wave == wave)

    @property
    def in_flight(self) -> int:
        """How many devices were sent a command, or its undoing, and have not answered with an end."""
        return sum(device.stage is Stage.STARTED or device.undo is Undo.SENT for device in self.devices.values())


@dataclass(frozen=True)
class Tally:
    """A wave, counted.

    Attributes:
        total: its devices.
        touched: those that were sent the command, or that count as failed without.
        succeeded, failed, skipped: settled ones.
    """

    total: int
    touched: int
    succeeded: int
    failed: int
    skipped: int

    @property
    def finished(self) -> int:
        """Those that tell something of the release."""
        return self.succeeded + self.failed

    @property
    def open(self) -> int:
        """Those that do not count yet."""
        return self.total - self.succeeded - self.failed - self.skipped


def tallies(plan: Plan, rollout: Rollout) -> list[Tally]:
    """Return every wave, counted."""
    counts: list[Counter[str]] = [Counter() for _ in plan.waves]
    for device in rollout.devices.values():
        count = counts[device.wave]
        is_failure = device.outcome is not None and device.outcome.is_failure
        count["total"] += 1
        count["touched"] += device.was_sent or is_failure
        count["failed"] += is_failure
        count["succeeded"] += device.outcome is Outcome.SUCCEEDED
        count["skipped"] += device.outcome is Outcome.SKIPPED
    names = ("total", "touched", "succeeded", "failed", "skipped")
    return [Tally(*(count[name] for name in names)) for count in counts]


def begin(waves: tuple[tuple[str, ...], ...]) -> Rollout:
    """Return a rollout of which nothing is known but who is in which wave."""
    return Rollout({device: Device(wave) for wave, members in enumerate(waves) for device in members})
