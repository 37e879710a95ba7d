"""A check is a value: what was looked at, how it is, the numbers, and the next step to take. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class State(str, Enum):
    """How something is; ``not asked`` says neither well nor ill of it."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: stable; programs may look for it.
        state: how it is.
        detail: what was found, with the numbers.
        next_step: what to do about it; None where there is nothing to do.
    """

    name: str
    state: State
    detail: str
    next_step: str | None = None


def ok(name: str, detail: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name, State.OK, detail)


def warning(name: str, detail: str, next_step: str) -> Check:
    """Return a check that found what works, and had better be changed."""
    return Check(name, State.WARNING, detail, next_step)


def failed(name: str, detail: str, next_step: str) -> Check:
    """Return a check that found what does not work."""
    return Check(name, State.FAILED, detail, next_step)


def not_asked(name: str, detail: str, next_step: str | None = None) -> Check:
    """Return a check that could not be made, or would have done harm."""
    return Check(name, State.NOT_ASKED, detail, next_step)


def is_well(checks: Sequence[Check]) -> bool:
    """Return whether none of them failed."""
    return all(check.state is not State.FAILED for check in checks)


def counts(checks: Sequence[Check]) -> dict[str, int]:
    """Return how many checks are in each state."""
    return {state.value: sum(check.state is state for check in checks) for state in State}


def to_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return ``{"ok": …, "counts": …, "checks": [{"name", "state", "detail", "next_step"}]}``."""
    return {
        "ok": is_well(checks),
        "counts": counts(checks),
        "checks": [{**asdict(check), "state": check.state.value} for check in checks],
    }
