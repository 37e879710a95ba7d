"""Who is in which wave. Pure, and the same on every machine that knows the same devices.

Devices are ordered by the lots that `agent.contract.staged` draws from the rollout's id and their own, so that each
rollout begins with others, and the same rollout always with the same. A wave takes its members in that order, and is
worked through in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.contract.staged import lot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.fleet.rollout.plan import Devices, Plan, Wave


@dataclass(frozen=True)
class Known:
    """What a device says of itself in ``capabilities``: the groups that it is in, and its labels."""

    groups: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Return whether it has every one of ``labels``."""
        return all(self.labels.get(name) == value for name, value in labels.items())


@dataclass(frozen=True)
class Membership:
    """Who takes part.

    Attributes:
        waves: the members of each wave, in the order in which their turn comes.
        left_out: who takes part and is in no wave.
        strangers: ids that the plan names and the broker does not know.
        outside: ids that the plan names, and that its ``[devices]`` leave out.
    """

    waves: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def members(plan: Plan, known: Mapping[str, Known]) -> Membership:
    """Return who is in which wave.

    Args:
        plan: the plan.
        known: the devices that the broker knows, with what they say of themselves.
    """
    named = {*plan.devices.ids, *(device for wave in plan.waves for device in wave.devices or ())}
    everybody = {**dict.fromkeys(named, Known()), **known}
    fleet = [device for device in everybody if _takes_part(plan.devices, device, everybody[device])]
    left = sorted(fleet, key=lambda device: lot(plan.id, device))
    waves: list[tuple[str, ...]] = []
    for wave in plan.waves:
        reached = sum(map(len, waves))
        taken = tuple(_of_wave(wave, left, everybody, total=len(fleet), reached=reached))
        waves.append(taken)
        gone = frozenset(taken)
        left = [device for device in left if device not in gone]
    strangers, outside = named - set(known), named & set(known) - set(fleet)
    return Membership(tuple(waves), tuple(left), tuple(sorted(strangers)), tuple(sorted(outside)))


def _takes_part(devices: Devices, device: str, known: Known) -> bool:
    if device in devices.exclude or (devices.ids and device not in devices.ids):
        return False
    return (not devices.groups or not known.groups.isdisjoint(devices.groups)) and known.has(devices.labels)


def _of_wave(wave: Wave, left: list[str], known: Mapping[str, Known], *, total: int, reached: int) -> Iterable[str]:
    if wave.percent is not None:
        return left[: max(0, math.ceil(total * wave.percent / 100 - 1e-9) - reached)]
    if wave.devices is not None:
        return [device for device in left if device in wave.devices]
    if wave.group is not None:
        return [device for device in left if wave.group in known[device].groups]
    return [device for device in left if known[device].has(wave.label or {})]
