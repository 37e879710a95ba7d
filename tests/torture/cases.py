"""Every case of a campaign over the fail points: which fault, at which passing of which point, on which vehicle.

Left out is what cannot be: a child is not killed at a point that is only ever passed while there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.torture.arming import Plan
from tests.torture.points import BUILDER, FAULTS, PLACES
from tests.torture.vehicles import (
    ASK,
    BOOT,
    BUSY,
    DAMAGED,
    DEPLOY,
    DESIRED,
    MEND,
    MET,
    MIX,
    REMEASURE,
    STOP,
    SWITCH,
    UPGRADE,
    Vehicle,
)

_VEHICLES = {
    "journal.migrate": UPGRADE,
    "journal.count": BOOT,
    "mqtt.birth.publish": BOOT,
    "server.start": BOOT,
    "store.mend.rename": MEND,
    "store.mend.fsync": MEND,
    "journal.queue": ASK,
    "journal.adopt": DESIRED,
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
    "builder.start": DEPLOY,
    "journal.count": BOOT,
    "mqtt.birth.publish": BOOT,
}
"""Places that are passed while a builder lives, and how they are made to be; at a start it is that of the self-test."""
_ALONE = {
    "journal.migrate",
    "journal.recover",
    "journal.file.rename",
    "journal.file.fsync",
    "store.mend.rename",
    "store.mend.fsync",
    "mqtt.farewell.publish",
}
"""Places that are passed before the first child is started, or after the last one has ended."""
SAVES = 8
"""Commits of a switch, from its acceptance to its end."""
TIMES = {
    "store.admit.fsync": 3,
    "store.publish.fsync": 6,
    "served_copy.fsync": 2,
    "journal.file.rename": 3,
    "journal.file.fsync": 3,
    "mix.rename": 2,
}
"""How often these are passed for one file, or one artifact."""


@dataclass(frozen=True)
class Case:
    """One fault on one vehicle."""

    plan: Plan
    vehicle: Vehicle

    def __str__(self) -> str:
        return f"{self.vehicle.name}: {self.plan}"


def all_cases() -> list[Case]:
    """Return every case, those of one vehicle together."""
    found = [case for place in PLACES for side in ("before", "after") for case in _of(f"{place}.{side}", place)]
    order = list(dict.fromkeys(case.vehicle.name for case in found))
    return sorted(found, key=lambda case: order.index(case.vehicle.name))


def why_not(point: str, fault: str) -> str | None:
    """Return why a fault cannot come at a point, None if it can."""
    place = point.rpartition(".")[0]
    if fault == "kill-server" and place in _ALONE:
        return "the first child is not started yet, or the last one has ended"
    if fault == "kill-server" and point == "server.start.before":
        return "there is no server, or none would be started"
    if fault == "kill-builder" and (place not in _BUILDING or point == "builder.start.before"):
        return "no builder lives: the supervisor gets there only when none is at work"
    return None


def _of(point: str, place: str) -> list[Case]:
    cases = []
    for fault in FAULTS:
        vehicle = _VEHICLES.get(place, SWITCH)
        if why_not(point, fault):
            continue
        if fault == "kill-builder":
            vehicle = _BUILDING[place]
        numbers = [1]
        if fault == "kill-supervisor":
            numbers = list(range(1, (SAVES if place == "journal.save" else TIMES.get(place, 1)) + 1))
        cases += [Case(Plan(point, fault, number), vehicle) for number in numbers]
    return cases
