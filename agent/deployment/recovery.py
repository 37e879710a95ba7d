"""What to serve when the server keeps dying. Pure."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from agent.deployment.phases import MAX_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.deployment.models import Served

WINDOW_S = 600.0


class Mode(str, Enum):
    """How much of what should be served is tried."""

    CURRENT = "current"
    LAST_GOOD = "last_good"
    SAFE = "safe"

    def __str__(self) -> str:
        return self.value


def mode(starts: Sequence[float], now: float) -> Mode:
    """Return what to try next, given the monotonic seconds of earlier starts that ended in a crash.

    Three starts in ten minutes with the current models, three more with the ones before them, then none: the agent
    stays reachable and its health says why.
    """
    recent = sum(1 for start in starts if now - start < WINDOW_S)
    if recent < MAX_ATTEMPTS:
        return Mode.CURRENT
    return Mode.LAST_GOOD if recent < 2 * MAX_ATTEMPTS else Mode.SAFE


def select(served: Mapping[str, Served], mode: Mode) -> dict[str, Served]:
    """Return what the server should hold under ``mode``; without a previous release the current one is kept."""
    if mode is Mode.SAFE:
        return {}
    if mode is Mode.CURRENT:
        return dict(served)
    return {name: replace(item, current=item.previous or item.current) for name, item in served.items()}
