"""What devices say of generations and groups: which number is free, and who would follow. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.topics import OWN_NAME, is_id
from agent.fleet.view import CAPABILITIES, REPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.fleet.view import Device

LIMIT = 2**53
"""Generations lie below."""
_SHOWN = 8
"""Names of groups in a sentence."""


@dataclass(frozen=True)
class Latest:
    """The newest generation that a device has.

    Attributes:
        generation: its number.
        device: the first device, by name, that has it.
    """

    generation: int
    device: str


def latest(devices: Iterable[Device], group: str | None) -> Latest | None:
    """Return the highest generation that devices say they have of a group, None for the device's own.

    A document that waits for its turn counts as well: devices compare what comes with the newest that they have.
    """
    source = OWN_NAME if group is None else group
    found = [Latest(number, device.name) for device in devices for number in _numbers(device, source)]
    return max(found, key=lambda each: each.generation, default=None)


@dataclass(frozen=True)
class Known:
    """Which generations there are of one document.

    Attributes:
        kept: the one that the broker keeps, None without one.
        unsure: why ``kept`` may not be all, in a sentence; None where it is certain.
        devices: the newest one that a device has.
    """

    kept: int | None
    unsure: str | None
    devices: Latest | None

    @property
    def highest(self) -> int:
        """The highest of all, 0 without any."""
        return max(self.kept or 0, self.devices.generation if self.devices else 0)

    @property
    def by_devices(self) -> Latest | None:
        """What devices have beyond what the broker keeps; None where that is nothing."""
        return (
            self.devices
            if self.devices and self.devices.generation > (-1 if self.kept is None else self.kept)
            else None
        )

    def why(self, number: int) -> str | None:
        """Return what to say of a number that was chosen by what devices have, None for any other."""
        newest = self.by_devices
        if newest is None or number != newest.generation + 1:
            return None
        return f"one above {newest.generation}, which {newest.device} has; the broker keeps {_kept(self.kept)}"

    def complaint(self, number: int) -> str | None:
        """Return what to say of a number that devices have already, None for one that is new to all."""
        newest = self.by_devices
        if newest is None or number > newest.generation:
            return None
        return (
            f"generation {number} is not newer than {newest.generation}, which {newest.device} has and keeps to\n"
            f"  --generation {newest.generation + 1}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        device = self.devices and {"generation": self.devices.generation, "device": self.devices.device}
        return {"broker": self.kept, "newest_of_devices": device}


def _kept(generation: int | None) -> str:
    return "none" if generation is None else str(generation)


@dataclass(frozen=True)
class Members:
    """Who is in a group.

    Attributes:
        group: its name.
        count: devices that say that they are in it.
        others: the groups that any device is in.
        grouped: devices that are in any group.
        known: devices that said anything.
    """

    group: str
    count: int
    others: tuple[str, ...]
    grouped: int
    known: int

    @property
    def complaint(self) -> str | None:
        """What to say where nobody is in the group, None where somebody is."""
        if self.count:
            return None
        where = f"{_devices(self.known)} known, none is in a group" if self.known else "no device is known"
        if self.others:
            more = ", …" if len(self.others) > _SHOWN else ""
            where = f"{_devices(self.grouped)} in: {', '.join(self.others[:_SHOWN])}{more}"
        return (
            f"no device says that it is in group {self.group} ({where})\n"
            "  who is to follow it has it in mqtt.groups, and will as soon as that is so"
        )


def members(devices: Iterable[Device], group: str) -> Members:
    """Return who is in a group, as devices say in ``capabilities``."""
    each = [_groups(device) for device in devices]
    names = {name for groups in each for name in groups}
    grouped = sum(bool(groups) for groups in each)
    return Members(group, sum(group in groups for groups in each), tuple(sorted(names)), grouped, len(each))


def _devices(count: int) -> str:
    return "1 device is" if count == 1 else f"{count} devices are"


def _groups(device: Device) -> frozenset[str]:
    groups = device.said.get(CAPABILITIES, {}).get("groups")
    told = groups if isinstance(groups, list) else []
    return frozenset(each for each in told if isinstance(each, str) and is_id(each))


def _numbers(device: Device, source: str) -> Iterator[int]:
    reported = device.said.get(REPORTED, {})
    desired = reported.get("desired")
    generations = desired.get("generations") if isinstance(desired, dict) else None
    told: list[Any] = [generations.get(source)] if isinstance(generations, dict) else []
    told.append(reported.get("generation") if source == OWN_NAME else device.groups.get(source, {}).get("generation"))
    yield from (each for each in told if isinstance(each, int) and not isinstance(each, bool) and 0 <= each < LIMIT)
