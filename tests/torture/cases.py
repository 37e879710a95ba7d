"""Every case of a campaign over the fail points: which fault, at which passing of which point, on which vehicle.

Left out is what cannot be: a child is not killed at a point that is only ever passed while there is none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.torture.arming import MODULES, Plan
from tests.torture.points import BUILDER, FAULTS, PLACES, POINTS, POWER_CUT
from tests.torture.vehicles import (
    ASK,
    BOOT,
    BUSY,
    DAMAGED,
    DEFER,
    DEFER_BUSY,
    DEPLOY,
    DESIRED,
    DISCONNECT,
    FOLLOWED,
    HALT,
    HALT_BUSY,
    MEND,
    MET,
    MET_BUSY,
    MIX,
    RECONNECT,
    REMEASURE,
    SETTINGS_BUSY,
    STOP,
    STRIPPED,
    SWITCH,
    UPGRADE,
    Vehicle,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_VEHICLES = {
    "journal.migrate": UPGRADE,
    "journal.count": BOOT,
    "mqtt.birth.publish": BOOT,
    "server.start": BOOT,
    "directory.fsync": STRIPPED,
    "store.mend.rename": MEND,
    "store.mend.fsync": MEND,
    "journal.queue": ASK,
    "journal.adopt": DESIRED,
    "journal.defer": DEFER,
    "journal.halt": HALT,
    "journal.settle": MET,
    "journal.note": DESIRED,
    "store.aside.rename": REMEASURE,
    "journal.recover": DAMAGED,
    "journal.file.rename": DAMAGED,
    "journal.file.fsync": DAMAGED,
    "mqtt.farewell.publish": STOP,
    "mix.rename": MIX,
    **dict.fromkeys(
        (
            "download.mark.fsync",
            "download.mark.rename",
            "store.admit.fsync",
            "store.admit.rename",
            "store.footprint.rename",
            "store.publish.fsync",
            "store.publish.rename",
            "builder.start",
            "artifact.fsync",
            "gate_file.fsync",
            "sidecar.fsync",
        ),
        DEPLOY,
    ),
}
_BUSY = ("journal.save", "journal.queue", "journal.acknowledged", "mqtt.report.publish", "mqtt.puback")
"""Places that the supervisor passes while a builder works, if it is asked for something meanwhile."""
_BUILDING = {
    **dict.fromkeys((*_BUSY, "mqtt.telemetry.publish"), BUSY),
    **{place: MIX if place.startswith("mix") else DEPLOY for place, role in PLACES.items() if role == BUILDER},
    "journal.defer": DEFER_BUSY,
    "journal.halt": HALT_BUSY,
    "journal.settle": MET_BUSY,
    **dict.fromkeys(("journal.adopt", "journal.note"), SETTINGS_BUSY),
    **dict.fromkeys(("served_copy.rename", "served_copy.fsync"), FOLLOWED),
    "builder.start": DEPLOY,
    **dict.fromkeys(("journal.count", "mqtt.birth.publish"), RECONNECT),
}
"""Places that are passed while a builder lives, and how they are made to be."""
_RUNNING = {"journal.count": DISCONNECT, "mqtt.birth.publish": DISCONNECT}
"""Places that are passed while a server lives if the way says so; elsewhere one lives anyway."""
_ALONE = {
    "journal.migrate",
    "journal.recover",
    "journal.file.rename",
    "journal.file.fsync",
    "directory.fsync",
    "store.mend.rename",
    "store.mend.fsync",
    "mqtt.farewell.publish",
}
"""Places that are passed before the first child is started, or after the last one has ended."""
SAVES = 8
"""Commits of a switch, from its acceptance to its end."""
TIMES = {
    "download.mark.fsync": 4,
    "download.mark.rename": 2,
    "store.admit.fsync": 3,
    "store.publish.fsync": 6,
    "served_copy.fsync": 2,
    "journal.file.rename": 3,
    "journal.file.fsync": 3,
    "mix.rename": 2,
    "journal.halt": 2,
}
"""How often these are passed for one file, or one artifact."""


@dataclass(frozen=True)
class Case:
    """One fault on one vehicle."""

    plan: Plan
    vehicle: Vehicle

    def __str__(self) -> str:
        return f"{self.vehicle.name}: {self.plan}"


def all_cases(faults: Sequence[str] = FAULTS) -> list[Case]:
    """Return every case of those faults, those of one vehicle together."""
    sides = [(f"{place}.{side}", place) for place in PLACES for side in ("before", "after")]
    found = [case for point, place in sides for case in _of(point, place, faults)]
    order = list(dict.fromkeys(case.vehicle.name for case in found))
    return sorted(found, key=lambda case: order.index(case.vehicle.name))


def why_not(point: str, fault: str) -> str | None:
    """Return why a fault cannot come at a point, None if it can."""
    place = point.rpartition(".")[0]
    if fault.removeprefix("kill-") in MODULES and place in _ALONE:
        return "the first child is not started yet, or the last one has ended"
    if fault == "kill-server" and point == "server.start.before":
        return "there is none, or it would not be started"
    if fault == "kill-builder" and (place not in _BUILDING or point == "builder.start.before"):
        return "the thread that gets there is the one that waits for a builder's result"
    return None


def scope() -> str:
    """Return in words how many points there are, how many pairs with a fault, and which of these cannot be."""
    pairs = [(point, fault) for point in POINTS for fault in FAULTS]
    reasons: dict[str, list[str]] = {}
    for point, fault in pairs:
        why = why_not(point, fault)
        if why:
            reasons.setdefault(f"{fault}, because {why}", []).append(point)
    cases = all_cases()
    tried = {(case.plan.point, case.plan.fault) for case in cases}
    head = (
        f"{len(PLACES)} places, {len(POINTS)} points, {len(FAULTS)} faults: {len(pairs)} pairs. {len(tried)} of them "
        f"are tried, in {len(cases)} cases: where an operation passes a point more than once, the supervisor is killed "
        "at each passing. The others cannot be:"
    )
    return "\n".join([head, "", *(f"* {why}: {_places(points)}." for why, points in reasons.items())])


def _places(points: list[str]) -> str:
    """Return points in words: a place when both its sides are meant."""
    sides = Counter(point.rpartition(".")[0] for point in points)
    whole = [f"`{place}`" for place, count in sides.items() if count > 1]
    return ", ".join([*whole, *(f"`{point}`" for point in points if sides[point.rpartition(".")[0]] == 1)])


def _of(point: str, place: str, faults: Sequence[str]) -> list[Case]:
    cases = []
    for fault in faults:
        vehicle = _VEHICLES.get(place, SWITCH)
        if why_not(point, fault):
            continue
        if fault == "kill-builder":
            vehicle = _BUILDING[place]
        if fault == "kill-server":
            vehicle = _RUNNING.get(place, vehicle)
        numbers = [1]
        if fault in {"kill-supervisor", POWER_CUT}:
            numbers = list(range(1, (SAVES if place == "journal.save" else TIMES.get(place, 1)) + 1))
        cases += [Case(Plan(point, fault, number), vehicle) for number in numbers]
    return cases
