"""What to serve when the server keeps dying. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.contract.enums import StrEnum
from agent.deployment.phases import MAX_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent.deployment.models import Served

WINDOW_S = 600.0


class Mode(StrEnum):
    """How much of what should be served is tried."""

    CURRENT = "current"
    LAST_GOOD = "last_good"
    SAFE = "safe"


def mode(starts: Sequence[float], now: float) -> Mode:
    """Return what to try next, given the monotonic seconds of earlier starts that ended in a crash.

    Three starts in ten minutes with the current models, three more with the ones before them, then none: the agent
    stays reachable and its health says why.
    """
    recent = sum(1 for start in starts if now - start < WINDOW_S)
    if recent < MAX_ATTEMPTS:
        return Mode.CURRENT
    return Mode.LAST_GOOD if recent < 2 * MAX_ATTEMPTS else Mode.SAFE


def select(served: Mapping[str, Served], mode: Mode, unusable: Mapping[str, Collection[str]]) -> dict[str, Served]:
    """Return what the server should hold under ``mode``; without a previous release the current one is kept.

    Args:
        served: what the journal says.
        mode: how much of it is tried.
        unusable: by model, the releases that cannot be loaded; the other one of the two is taken, or none.
    """
    if mode is Mode.SAFE:
        return {}
    chosen = {}
    for name, item in served.items():
        order = [item.current, item.previous] if mode is Mode.CURRENT else [item.previous, item.current]
        usable = [release for release in order if release and release.id not in unusable.get(name, ())]
        if usable:
            previous = item.previous if usable[0] is item.current else None
            chosen[name] = replace(item, current=usable[0], previous=previous)
    return chosen
