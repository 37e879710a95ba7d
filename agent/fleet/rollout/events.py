"""What happens to a rollout, and what it sends: the values that go into the machine and come out of it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.enums import StrEnum


class Purpose(StrEnum):
    """What a device is sent something for."""

    DO = "do"  # the plan's command
    CANCEL = "cancel"  # stop it
    UNDO = "undo"  # take it back


@dataclass(frozen=True)
class Present:
    """A device came or went."""

    device: str
    is_online: bool


@dataclass(frozen=True)
class Told:
    """A device told the state of the rollout's operation, or of the one that takes it back."""

    device: str
    purpose: Purpose
    state: str
    detail: str | None = None


@dataclass(frozen=True)
class Serves:
    """A device told what it serves.

    Attributes:
        device: its id.
        is_ours: whether that is what the rollout brings.
        is_since: whether it said so after the operation that brought it had succeeded.
    """

    device: str
    is_ours: bool
    is_since: bool = False


@dataclass(frozen=True)
class NotNeeded:
    """There is nothing to take back on a device."""

    device: str
    why: str


Word = Present | Told | Serves | NotNeeded


@dataclass(frozen=True)
class Asked:
    """A person wants something: ``approve`` (with the wave), ``pause``, ``resume``, ``abort``."""

    what: str
    wave: int | None = None


@dataclass(frozen=True)
class Heard:
    """What came from the broker, and what people asked for before: all of it before anything is decided.

    Attributes:
        words: what the fleet said.
        asked: requests from other terminals, in their order; they come first, so that a person goes on only from what
            was known then.
    """

    words: tuple[Word, ...]
    asked: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True)
class Send:
    """Send a device what ``purpose`` says."""

    device: str
    purpose: Purpose


@dataclass(frozen=True)
class Refused:
    """The broker took none of these, and said so: it is as if they had never been decided."""

    sends: tuple[Send, ...]


Event = Heard | Ticked | Asked | Refused
Sends = tuple[Send, ...]
